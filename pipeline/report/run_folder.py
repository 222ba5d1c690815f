"""Write the folder of a run: a comparison's tables, plots, report and models."""

import csv
import io
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Literal

from pipeline.durable import check_writable, write_durably
from pipeline.errors import CannotCreateError
from pipeline.evaluation.label_edits import write_suspects
from pipeline.evaluation.predictions_file import PREDICTIONS, write_predictions
from pipeline.evaluation.result import Comparison, Setting, without_nan
from pipeline.evaluation.table import explain_views, markdown_table
from pipeline.evaluation.tasks import TASKS
from pipeline.models.bundle import save_bundle
from pipeline.models.head_layers import why_not_exportable
from pipeline.models.runs import MODELS_FOLDER, ROW_IDENTITY, SUFFIX
from pipeline.spec import CLASSES
from pipeline.text import file_name, printable

Save = Literal["all", "best", "none"]

log = logging.getLogger("pipeline")


def write_run(
    comparison: Comparison,
    results: Path,
    *,
    command: str | None = None,
    smoothing: float = 0.8,
    save: Save = "all",
) -> Path:
    """Write a comparison's tables, plots, report and models to a new folder in ``results``.

    The tables and models are complete before the audit begins; a failure or an interrupt of what
    follows leaves them.

    ``command`` is the command line, ``smoothing`` that of curves.png, ``save`` selects the models.
    """
    check_writable(results)
    folder = _create_folder(results, str(comparison.run["caches"][0]["set"]))
    comparison = _save_models(comparison, folder, save)
    _write_tables(replace(comparison, audit=None), folder, command)
    _write_settings(comparison, folder / "settings.csv")
    if comparison.task == CLASSES:
        write_predictions(folder / PREDICTIONS, comparison)
    try:
        _write_findings(comparison, folder, command, smoothing)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted before the report; the table is complete in {printable(folder)}"
        ) from None
    return folder


def _write_tables(comparison: Comparison, folder: Path, command: str | None) -> None:
    """Write results.json, results.csv and results.md, which show the notices of the audit."""
    from pipeline.report.markup import render

    document = comparison.document()
    document["run"] |= {"folder": printable(folder), "command": command}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    _write_text(folder / "results.json", f"{text}\n")
    file = io.StringIO()
    writer = csv.DictWriter(file, comparison.results[0].columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(document["rows"])
    _write_text(folder / "results.csv", file.getvalue())
    markdown = render(
        "results.md",
        set_name=str(comparison.run["caches"][0]["set"]),
        notices=comparison.notices,
        recommendation=comparison.recommendation,
        table=markdown_table(comparison.results),
        run=comparison.run,
        task=comparison.task,
        views=explain_views(comparison.results),
        is_trained=any(outcome.history for outcome in comparison.outcomes),
        command=command,
    )
    _write_text(folder / "results.md", markdown)


def _write_findings(
    comparison: Comparison, folder: Path, command: str | None, smoothing: float
) -> None:
    """Write the plots; audit the data; write the tables with its notices, and the report."""
    from pipeline.evaluation.audit import tolerate
    from pipeline.report.html import report_html  # 0.5 s of matplotlib
    from pipeline.report.plots import write_confusion, write_curves

    has_classes = comparison.task == CLASSES
    if has_classes:
        with tolerate("confusion.png", log.warning):
            write_confusion(comparison.shown, comparison.classes, folder / "confusion.png")
    outcomes = (comparison.shown, *comparison.outcomes)
    trained = next((outcome for outcome in outcomes if outcome.history), None)
    if trained is not None:
        with tolerate("curves.png", log.warning):
            write_curves(trained, folder / "curves.png", smoothing=smoothing)
    if comparison.findings is not None:
        if has_classes:
            with tolerate("suspects.csv", log.warning):
                write_suspects(folder / "suspects.csv", comparison.findings)
        _write_tables(comparison, folder, command)
    report = report_html(comparison, command=command, smoothing=smoothing)
    _write_text(folder / "report.html", report)


def _write_text(path: Path, text: str) -> None:
    write_durably(path, lambda file: file.write(text.encode("utf-8")))


def _save_models(comparison: Comparison, folder: Path, save: Save) -> Comparison:
    """Save models; return the comparison with their paths, and the reasons for unsaved ones."""
    models = folder / MODELS_FOLDER
    one_layer = len({outcome.result.layer for outcome in comparison.outcomes}) == 1
    outcomes, not_saved, not_exportable = [], [], defaultdict(list)
    for outcome in comparison.outcomes:
        result, bundle, reason = outcome.result, outcome.bundle, outcome.not_saved
        if save == "none" or (save == "best" and not result.recommended):
            bundle, reason = None, f"--save {save}"
        if bundle is not None:
            models.mkdir(exist_ok=True)
            name = result.head if one_layer else f"{result.head}-{result.layer}"
            paths = (models / f"{each}{SUFFIX}" for each in _number_names(file_name(name)))
            path = next(path for path in paths if not path.exists())
            save_bundle(bundle, path)
            result = replace(result, model=f"{MODELS_FOLDER}/{path.name}")
            if bundle.task == CLASSES and (reason := why_not_exportable(bundle)):
                not_exportable[reason].append(printable(path.stem))
        else:
            row = {name: getattr(result, name) for name in ROW_IDENTITY}
            not_saved.append({**row, "reason": reason})
        outcomes.append(replace(outcome, result=result))
    for reason, names in not_exportable.items():
        log.info("saved, but cannot be exported: %s (%s)", ", ".join(names), reason)
    run = {**comparison.run, "save": save, "not_saved": not_saved}
    return replace(comparison, outcomes=tuple(outcomes), run=run)


def _number_names(name: str) -> Iterator[str]:
    """Yield ``name``, ``name-2``, ``name-3``, …, for names that exist already."""
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def _write_settings(comparison: Comparison, path: Path) -> None:
    """Write every setting of the search, with its validation results in the first fit."""
    identity = ("head", "input", "base", "layer", "fingerprint")
    titles = names = [field.name for field in fields(Setting)]
    if comparison.task != CLASSES:
        names = [name for name in names if name != "validation_log_loss"]
        measure = f"validation_{TASKS[comparison.task].measure}"
        titles = [measure if name == "validation_accuracy" else name for name in names]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*identity, *titles])
        for outcome in comparison.outcomes:
            row = outcome.result.row()
            for setting in outcome.settings:
                values = without_nan({name: getattr(setting, name) for name in names})
                writer.writerow([*(row[name] for name in identity), *values.values()])


def _create_folder(results: Path, set_name: str) -> Path:
    """Create ``2026-11-21_143000-textile``; append a number if it exists."""
    for name in _number_names(f"{datetime.now():%Y-%m-%d_%H%M%S}-{file_name(set_name)}"):
        folder = results / name
        try:
            folder.mkdir()  # not exist_ok: two runs may start in the same second
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise CannotCreateError(
                f"cannot create {folder} ({error.strerror}); choose another --out"
            ) from error
    return folder
