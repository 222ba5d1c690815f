"""Find the newest run of classify, and the bundle file of a head."""

import difflib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import BadDataError, CannotCreateError, NoInputError, UsageError
from pipeline.text import printable

log = logging.getLogger(__name__)

MODELS_FOLDER = "models"  # in a run folder
SUFFIX = ".skops"  # of a bundle file
OLD_SUFFIX = ".safetensors"  # of format 1
ROW_IDENTITY = ("head", "input", "layer", "cache")


class NotSavedError(UsageError):
    """A head of a run that has no bundle file."""


def find_bundle(run: Path, head: str | None = None) -> Path:
    """Return the bundle file of a run's head.

    Parameters
    ----------
    run : a folder of classify, or a bundle file.
    head : as in the results table, ``logistic``, or a model file's name without suffix; the best
        row on validation if several match. None for the recommended head.

    Raises NoInputError for a missing run, NotSavedError for a head that was not saved, UsageError
    for one that the run does not have, BadDataError for invalid results.
    """
    if run.is_file():
        if head is not None:
            raise UsageError(f"{printable(run)} is a model: leave out --head {printable(head)}")
        return run
    document, rows = read_results(run)
    saved = [row for row in rows if row["model"]]
    names = ", ".join(dict.fromkeys(printable(row["head"]) for row in saved)) or "none"
    if head is None:
        chosen = next((row for row in rows if row["recommended"]), None)
    else:  # the best first, as in the table
        chosen = next((row for row in [*saved, *rows] if head in _names_of(row)), None)
    if chosen is None:
        problem = "it recommends no head" if head is None else f"it has no head {printable(head)}"
        known = [name for row in saved for name in _names_of(row)]
        if similar := difflib.get_close_matches(head or "", known, n=1):
            problem += f", did you mean {printable(similar[0])}?"
        raise UsageError(f"{printable(run)}: {problem}; saved heads: {names}")
    if not chosen["model"]:
        identity = {name: chosen[name] for name in ROW_IDENTITY}
        reasons = (
            entry.get("reason")
            for entry in document["not_saved"]
            if identity.items() <= entry.items()
        )
        raise NotSavedError(
            f"{printable(run)}: {printable(chosen['head'])} was not saved "
            f"({printable(str(next(reasons, 'by an older version')))}); saved heads: {names}"
        )
    return _model_path(run, chosen)


def saved_bundles(run: Path) -> list[Path]:
    """Return the bundle files of a run in the order of its table, the best on validation first."""
    return [_model_path(run, row) for row in read_results(run)[1] if row["model"]]


def _model_path(run: Path, row: Mapping[str, Any]) -> Path:
    path = run / str(row["model"])
    try:
        inside = path.resolve().is_relative_to(run.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise BadDataError(f"{printable(path)} is a link out of the run: name the file itself")
    return path


def new_export_folder(bundle: Path, format: str, out: Path | None = None) -> Path:
    """Return the folder of an export, by default in the bundle's run.

    Raises CannotCreateError if it exists, BadDataError if ``exports`` is a link out of the run.
    """
    run = bundle.parent.parent if bundle.parent.name == MODELS_FOLDER else bundle.parent
    exports = run / "exports"
    if out is None and (
        exports.is_symlink() or not exports.resolve().is_relative_to(run.resolve())
    ):
        raise BadDataError(f"{printable(exports)} is a link out of the run: choose --out")
    folder = exports / f"{bundle.stem}-{format}" if out is None else out
    if os.path.lexists(folder):
        raise CannotCreateError(f"{printable(folder)} exists: choose another --out")
    return folder


def newest_run(results: Path = Path("results")) -> Path:
    """Return the newest run that has a saved head, else the newest; NoInputError without runs."""
    written = sorted(results.glob("*/results.json"), key=lambda path: path.stat().st_mtime_ns)
    if not written:
        raise NoInputError(
            f"there is no run in {printable(results)}/; run python -m pipeline.classify first"
        )
    newest = written[-1].parent
    for path in reversed(written):
        if any(bundle.is_file() for bundle in saved_bundles(path.parent)):
            if path.parent != newest:
                log.warning(
                    "%s has no saved head: using %s", printable(newest), printable(path.parent)
                )
            return path.parent
    return newest


def _names_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["head"], f"{row['head']}:{row['input']}", Path(row["model"]).stem


def read_results(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the ``run`` and the rows of a run's results.json.

    Raises NoInputError if there is none, BadDataError if it is not one of classify.
    """
    path = run / "results.json"
    if not path.parent.exists():
        raise NoInputError(f"{printable(path.parent)} does not exist: name a run or saved model")
    if not path.is_file():
        raise NoInputError(
            f"{printable(path.parent)} is not a run of classify: it has no {path.name}"
        )
    try:
        document = json.loads(path.read_text("utf-8"))
        rows = [{"model": "", **row} for row in document["rows"]]
        about = {"not_saved": [], **document["run"]}
        about["not_saved"] = [dict(entry) for entry in about["not_saved"]]
        for row in rows:
            texts = [row[name] for name in ("model", *ROW_IDENTITY)]
            if not all(isinstance(text, str) for text in texts) or "recommended" not in row:
                raise ValueError(row)
            if row["model"] and not re.fullmatch(
                rf"{MODELS_FOLDER}/[^/\\\\]+({SUFFIX}|{OLD_SUFFIX})", row["model"]
            ):
                raise ValueError(row)  # the path is outside the run
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadDataError(f"{printable(path)} is not a results.json of classify") from error
    return about, rows
