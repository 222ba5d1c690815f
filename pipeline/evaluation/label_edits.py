"""Correct labels without changing images: write suspects.csv, apply its edited copy."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.file import FeatureTable
from pipeline.errors import BadDataError, PipelineError, UsageError
from pipeline.evaluation.image_lookup import (
    ImageLookup,
    assign,
    composed,
    did_you_mean,
    read_records,
)
from pipeline.heads.names import classes_of_normal
from pipeline.images.scan import SPLIT_NAMES
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.evaluation.audit import AuditResult

COLUMNS = ("path", "split", "label", "suggested", "label_probability", "suggested_probability",
           "new_label", "drop", "digest")  # fmt: skip
DROP, KEEP = {"yes", "x", "1", "true"}, {"", "no", "0", "false"}
DROPPED = -1  # instead of a class number

log = logging.getLogger("pipeline")


def write_suspects(path: Path, findings: "AuditResult") -> None:
    """Write the suspects as CSV, the likeliest label error first, with two empty columns to edit.

    The user writes the right class into ``new_label``, or ``yes`` into ``drop``. The file starts
    with a byte order mark, without which Excel does not read UTF-8.
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


def set_normal(name: str, tables: Sequence[FeatureTable]) -> list[FeatureTable]:
    """Return the tables with two classes: the normal one, and one of all other images.

    ``normal`` in their documents names the normal class. Raises UsageError if it is none of theirs.
    """
    merged = []
    for table in tables:
        normal = class_number(name, table.classes, "--normal", UsageError)
        labels = (table.columns.labels != normal).astype(np.int64)
        merged.append(
            replace(
                table,
                document={**table.document, "normal": table.classes[normal]},
                classes=classes_of_normal(table.classes[normal]),
                columns=replace(table.columns, labels=labels),
            )
        )
    return merged


def apply_label_edits(
    paths: Sequence[Path], tables: Sequence[FeatureTable], *, more_classes: Sequence[str] = ()
) -> list[FeatureTable]:
    """Return the tables with relabelled rows and without dropped ones.

    For each image, later files override earlier ones. Classes without images are removed.
    ``more_classes`` may be assigned, too.

    Raises BadDataError if no row of a table remains, and the errors of `read_label_edits`.
    """
    classes = [table.classes for table in tables]
    tables = [
        replace(table, classes=tuple(dict.fromkeys((*table.classes, *more_classes))))
        for table in tables
    ]
    new_labels = [table.columns.labels.copy() for table in tables]
    for path in paths:
        for labels, edits in zip(new_labels, read_label_edits(path, tables), strict=True):
            labels[list(edits)] = list(edits.values())
    edited = []
    for table, labels in zip(tables, new_labels, strict=True):
        kept = np.flatnonzero(labels != DROPPED)
        columns = replace(table.columns, labels=labels).take(kept)
        edited.append(replace(table, columns=columns, file_rows=table.file_rows[kept]))
        if not len(kept):
            files = ", ".join(map(printable, paths))
            raise BadDataError(f"--labels {files} drops every image of {printable(table.path)}")
    used = {table.classes[label] for table in edited for label in np.unique(table.columns.labels)}
    empty = sorted({name for table in edited for name in table.classes} - used)
    if dropped := [name for name in empty if name in set().union(*classes)]:
        names = ", ".join(map(printable, dropped))
        log.warning("--labels drops every image of %s; removed from the classes", names)
    return [_remove_classes(table, empty) for table in edited]


def _remove_classes(table: FeatureTable, names: Sequence[str]) -> FeatureTable:
    """Return the table without classes that no row has; the others are renumbered."""
    is_kept = np.array([name not in names for name in table.classes])
    numbers = np.cumsum(is_kept) - 1  # old class number -> new class number
    return replace(
        table,
        classes=tuple(name for name in table.classes if name not in names),
        columns=replace(table.columns, labels=numbers[table.columns.labels]),
    )


def read_label_edits(path: Path, tables: Sequence[FeatureTable]) -> list[dict[int, int]]:
    """Read an edited suspects.csv, or any CSV with ``path`` or ``digest`` and an edit.

    To edit one of several identical files, leave its digest empty (see `ImageLookup`).

    Returns, for each table, row -> class number or `DROPPED`, for edited rows only.

    Raises NoInputError if the file cannot be read; BadDataError, with the line, for an unknown
    class, an image of no table, or contradicting edits.
    """
    edits: list[dict[int, tuple[int, str]]] = [{} for _ in tables]
    lookup = ImageLookup([table.columns for table in tables])
    for line, record in read_records(path, option="--labels", values=("new_label", "drop")):
        if not has_edit(record, line):
            continue
        for table, edit, rows in zip(
            tables, edits, lookup.find_or_raise(record, line), strict=True
        ):
            if rows:
                assign(edited_label(record, table.classes, line), rows, line, edit, table.columns)
    return [{row: number for row, (number, _) in edit.items()} for edit in edits]


def has_edit(record: Mapping[str, str], line: str) -> bool:
    """Return whether a record drops or relabels its image; raises BadDataError if it does both."""
    drop = record["drop"].strip().lower()
    if drop not in DROP | KEEP:
        received = printable(record["drop"])
        raise BadDataError(f"{line}: drop: expected yes or empty; received {received!r}")
    if drop in DROP and record["new_label"]:
        raise BadDataError(f"{line} both drops and relabels the image; leave one empty")
    return drop in DROP or bool(record["new_label"])


def edited_label(record: Mapping[str, str], classes: tuple[str, ...], line: str) -> int:
    """Return the class number of a record with an edit, or `DROPPED`."""
    return class_number(record["new_label"], classes, line) if record["new_label"] else DROPPED


def class_number(
    name: str,
    classes: tuple[str, ...],
    line: str,
    error: type[PipelineError] = BadDataError,
) -> int:
    """Return the number of a class by its name, in any Unicode form, or as it is printed.

    Raises ``error``, with the line, for a name that is of none or of several.
    """
    if name in classes:
        return classes.index(name)
    spelling = composed(name.strip())
    spellings = [{composed(each.strip()), composed(printable(each).strip())} for each in classes]
    numbers = [number for number, of_class in enumerate(spellings) if spelling in of_class]
    if len(numbers) == 1:
        return numbers[0]
    problem = "means several classes" if numbers else "is not a class"
    hint = did_you_mean(spelling, set().union(*spellings)) or (
        f"; the classes are {', '.join(map(printable, classes[:10]))}"
        + (" and others" if len(classes) > 10 else "")
    )
    raise error(f"{line}: {printable(name).strip() or 'an empty name'} {problem}{hint}")
