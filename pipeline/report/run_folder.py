"""results/<run>/: what a comparison leaves behind."""

import csv
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import CannotCreateError
from pipeline.evaluation.label_edits import write_suspects
from pipeline.evaluation.result import COLUMN_NAMES, Comparison, Setting, without_nan
from pipeline.evaluation.rows import times_views
from pipeline.evaluation.table import explain_views, markdown_table
from pipeline.models.bundle import SUFFIX, save_bundle
from pipeline.models.runs import FOLDER, ROW_IDENTITY
from pipeline.text import printable

Save = Literal["all", "best", "none"]


def check_writable(results: Path) -> None:
    """Make the results folder before the work begins, not after; raises CannotCreateError."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=results).cleanup()
    except OSError as error:
        raise CannotCreateError(
            f"cannot make the results folder {results} ({error.strerror}); choose another --out"
        ) from error


def write_run(
    comparison: Comparison,
    results: Path,
    *,
    command: str | None = None,
    smoothing: float = 0.8,
    save: Save = "all",
) -> Path:
    """Write a comparison's tables, plots, report and heads into a new folder below ``results``.

    Parameters
    ----------
    command : what was typed, for results.md and results.json.
    smoothing : factor of the moving average in curves.png, 0 for none.
    save : which heads to save: all, the best (which is recommended) or none.
    """
    from pipeline.report.html import write_report  # 0.5 s of matplotlib
    from pipeline.report.plots import draw_confusion, draw_curves

    check_writable(results)
    set_name = str(comparison.run["caches"][0]["set"])
    folder = _new_folder(results, set_name)
    comparison = _save_models(comparison, folder, save)
    document = comparison.document()
    document["run"] |= {"folder": printable(folder), "command": command}
    (folder / "results.json").write_text(
        json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMN_NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(document["rows"])
    (folder / "results.md").write_text(_markdown(comparison, set_name, command), "utf-8")
    _write_settings(comparison, folder / "settings.csv")
    if comparison.findings is not None:
        write_suspects(folder / "suspects.csv", comparison.findings)
    draw_confusion(comparison.shown, comparison.classes, folder / "confusion.png")
    looked_at = (comparison.shown, *comparison.outcomes)
    trained = next((each for each in looked_at if each.history), None)
    if trained is not None:
        draw_curves(trained, folder / "curves.png", smoothing=smoothing)
    write_report(comparison, folder / "report.html", command=command, smoothing=smoothing)
    return folder


def _save_models(comparison: Comparison, folder: Path, save: Save) -> Comparison:
    """The comparison with the files of its saved heads, and in ``run`` why others have none."""
    models = folder / FOLDER
    one_layer = len({outcome.result.layer for outcome in comparison.outcomes}) == 1
    outcomes, not_saved = [], []
    for outcome in comparison.outcomes:
        result, bundle, reason = outcome.result, outcome.bundle, outcome.not_saved
        if save == "none" or (save == "best" and not result.recommended):
            bundle, reason = None, f"--save {save}"
        if bundle is not None:
            models.mkdir(exist_ok=True)
            path = _free_path(models, result.head if one_layer else f"{result.head}-{result.layer}")
            save_bundle(bundle, path)
            result = replace(result, model=f"{FOLDER}/{path.name}")
        else:
            row = {name: getattr(result, name) for name in ROW_IDENTITY}
            not_saved.append({**row, "reason": reason})
        outcomes.append(replace(outcome, result=result))
    run = {**comparison.run, "save": save, "not_saved": not_saved}
    return replace(comparison, outcomes=tuple(outcomes), run=run)


def _free_path(folder: Path, name: str) -> Path:
    """``logistic.skops``, with a number from 2 where another row took that name."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip(".-_")
    endings = chain([""], (f"-{number}" for number in count(2)))
    paths = (folder / f"{plain}{ending}{SUFFIX}" for ending in endings)
    return next(path for path in paths if not path.exists())


def _write_settings(comparison: Comparison, path: Path) -> None:
    """Every setting that was tried, with what it reached on validation, in the first fit."""
    identity = ("head", "input", "base", "layer", "fingerprint")
    names = [field.name for field in fields(Setting)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*identity, *names])
        for outcome in comparison.outcomes:
            row = outcome.result.row()
            for setting in outcome.settings:
                tried = without_nan({name: getattr(setting, name) for name in names})
                writer.writerow([*(row[name] for name in identity), *tried.values()])


def _new_folder(results: Path, set_name: str) -> Path:
    """``2026-11-21_143000-textile``, with a number where another run took that name."""
    name = re.sub(r"[^\w.-]+", "_", set_name).strip(".-_") or "set"
    plain = f"{datetime.now():%Y-%m-%d_%H%M%S}-{name}"
    attempt = 1
    while True:
        folder = results / (plain if attempt == 1 else f"{plain}-{attempt}")
        try:
            folder.mkdir()  # not exist_ok: making it is what claims the name
        except FileExistsError:
            attempt += 1
        except OSError as error:
            raise CannotCreateError(
                f"cannot make {folder} ({error.strerror}); choose another --out"
            ) from error
        else:
            return folder


def _markdown(comparison: Comparison, set_name: str, command: str | None) -> str:
    run = comparison.run
    trained = any(outcome.history for outcome in comparison.outcomes)
    lines = [
        f"# Heads on {_escape(set_name)}",
        "",
        *(f"> {_escape(notice)}\n" for notice in comparison.notices),
        f"**{_escape(comparison.recommendation)}**",
        "",
        markdown_table(comparison.results),
        "",
        f"{run['created']}, pipeline on Python {run['versions']['python']}. Settings were chosen "
        "on validation (val), and so were the best head, those that are as good (≈ best) and the "
        "simplest of these (*). Test was scored once, by the chosen ones; in brackets the 95 % "
        "Wilson interval, behind ± the standard deviation over folds or seeds. p: exact McNemar "
        "test against the best head on the same test images, Holm-corrected."
        f"{explain_views(comparison.results)}",
        "",
        "![confusion matrix](confusion.png)",
        *(["![loss and accuracy by epoch](curves.png)"] if trained else []),
        "",
    ]
    lines += [_describe(cache) for cache in run["caches"]]
    if command is not None:
        lines += ["", "```sh", printable(command), "```"]
    return "\n".join(lines) + "\n"


def _describe(cache: Mapping[str, Any]) -> str:
    spec = cache["spec"]
    counts = (
        f"{name} {sum(each.values()):,}{times_views(cache['views' if name == 'train' else 'tta'])}"
        for name, each in cache["split_counts"].items()
    )
    return (
        f"- `{cache['path']}`: {spec['base']} at {spec['image_size']}, "
        f"{_escape(', '.join(cache['layers']))}, fingerprint `{cache['fingerprint']}`; "
        f"{_escape(cache['split_source'])} ({', '.join(counts)})"
    )


def _escape(text: str) -> str:
    """A name as plain text in Markdown."""
    return re.sub(r"([\\`*_<>&|\[\]#])", r"\\\1", printable(text))
