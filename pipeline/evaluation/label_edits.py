"""Correct labels without touching an image: write suspects.csv, read it back once it was edited."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.cache.file import SPLIT_NAMES, FeatureTable
from pipeline.errors import BadDataError
from pipeline.evaluation.audit import AuditResult
from pipeline.evaluation.image_lookup import (
    ImageLookup,
    assign,
    composed,
    did_you_mean,
    read_records,
)
from pipeline.text import printable

COLUMNS = ("path", "split", "label", "suggested", "label_probability", "suggested_probability",
           "new_label", "drop", "digest")  # fmt: skip
DROP, KEEP = {"yes", "x", "1", "true"}, {"", "no", "0", "false"}
DROPPED = -1  # in place of a class number

log = logging.getLogger("pipeline")


def write_suspects(path: Path, findings: AuditResult) -> None:
    """Write the suspects as CSV, the likeliest label error first, two columns left to fill in.

    ``new_label`` takes the right class, ``drop`` takes ``yes``. The file begins with a byte order
    mark, or Excel would not take it for UTF-8.
    """
    table = findings.table
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for suspect in findings.suspects:
            writer.writerow(
                (
                    printable(table.columns.paths[suspect.row]),
                    SPLIT_NAMES[table.columns.splits[suspect.row]],
                    printable(table.classes[suspect.label]),
                    printable(table.classes[suspect.suggested]),
                    f"{suspect.label_probability:.4f}",
                    f"{suspect.suggested_probability:.4f}",
                    "",
                    "",
                    table.columns.digests[suspect.row].tobytes().hex(),
                )
            )


def apply_label_edits(paths: Sequence[Path], tables: Sequence[FeatureTable]) -> list[FeatureTable]:
    """The tables as the files want them: relabelled rows carry their class, dropped ones are gone.

    Of several files the later goes before the earlier, image by image. A class without any image
    left in any table is left out.

    Raises BadDataError where a table would be left empty; otherwise as `read_label_edits` does.
    """
    wanted = [table.columns.labels.copy() for table in tables]
    for path in paths:
        for labels, edits in zip(wanted, read_label_edits(path, tables), strict=True):
            labels[list(edits)] = list(edits.values())
    edited = []
    for table, labels in zip(tables, wanted, strict=True):
        kept = np.flatnonzero(labels != DROPPED)
        columns = replace(table.columns, labels=labels).take(kept)
        edited.append(replace(table, columns=columns, file_rows=table.file_rows[kept]))
        if not len(kept):
            files = ", ".join(map(printable, paths))
            raise BadDataError(f"--labels {files} drops every image of {printable(table.path)}")
    left = {table.classes[label] for table in edited for label in np.unique(table.columns.labels)}
    gone = sorted({name for table in edited for name in table.classes} - left)
    if gone:
        names = ", ".join(map(printable, gone))
        log.warning("--labels leaves no image of %s, which is left out", names)
    return [_without_classes(table, gone) for table in edited]


def _without_classes(table: FeatureTable, gone: Sequence[str]) -> FeatureTable:
    """The table without classes that it has no row of; those that stay are numbered anew."""
    stay = np.array([name not in gone for name in table.classes])
    numbers = np.cumsum(stay) - 1  # old class number -> new one
    return replace(
        table,
        classes=tuple(name for name in table.classes if name not in gone),
        columns=replace(table.columns, labels=numbers[table.columns.labels]),
    )


def read_label_edits(path: Path, tables: Sequence[FeatureTable]) -> list[dict[int, int]]:
    """Read an edited suspects.csv, or any CSV with ``path`` or ``digest`` and an edit.

    To edit one of several identical files, leave its digest empty (see `ImageLookup`).

    Returns, for each table, row -> its class number or `DROPPED`; rows to leave alone are missing.

    Raises NoInputError if the file cannot be read; BadDataError, with its line, for an unknown
    class, an image that no table holds, or edits that contradict one another.
    """
    edits: list[dict[int, tuple[int, str]]] = [{} for _ in tables]
    finder = ImageLookup([table.columns for table in tables])
    for place, record in read_records(path, option="--labels", values=("new_label", "drop")):
        new_label, answer = record["new_label"], record["drop"].strip().lower()
        if answer not in DROP | KEEP:
            received = printable(record["drop"])
            raise BadDataError(f"{place}: drop takes yes or nothing; received {received!r}")
        drop = answer in DROP
        if drop and new_label:
            raise BadDataError(f"{place} both drops and relabels the image; leave one empty")
        if not drop and not new_label:
            continue
        for table, edit, rows in zip(
            tables, edits, finder.find_or_raise(record, place), strict=True
        ):
            if rows:
                number = DROPPED if drop else _class_number(new_label, table.classes, place)
                assign(number, rows, place, edit, table.columns)
    return [{row: number for row, (number, _) in edit.items()} for edit in edits]


def _class_number(name: str, classes: tuple[str, ...], place: str) -> int:
    if name in classes:
        return classes.index(name)
    wanted = composed(name.strip())
    spelled = [{composed(each), composed(printable(each))} for each in classes]
    numbers = [number for number, spellings in enumerate(spelled) if wanted in spellings]
    if len(numbers) == 1:
        return numbers[0]
    problem = "means several classes" if numbers else "is no class"
    hint = did_you_mean(wanted, set().union(*spelled)) or (
        f"; the classes are {', '.join(map(printable, classes[:10]))}"
        + (" and others" if len(classes) > 10 else "")
    )
    raise BadDataError(f"{place}: {printable(name)} {problem}{hint}")
