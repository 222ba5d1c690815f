"""Correct labels without touching an image: write suspects.csv, read it back once it was edited."""

import csv
import difflib
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import SPLIT_NAMES, FeatureTable
from pipeline.errors import BadDataError, NoInputError
from pipeline.evaluation.findings import Findings
from pipeline.text import printable

COLUMNS = ("path", "split", "label", "suggested", "label_probability", "suggested_probability",
           "new_label", "drop", "digest")  # fmt: skip
DROP = {"yes": True, "x": True, "1": True, "true": True}
KEEP = {"": False, "no": False, "0": False, "false": False}
DELIMITERS = ",;\t"  # what spreadsheets write, by country
FORMULA = ("=", "+", "-", "@")  # a spreadsheet computes a cell that begins so


@dataclass(frozen=True, kw_only=True)
class LabelEdits:
    """What a file of edits asks for, for the rows of one table.

    Attributes
    ----------
    labels : (N,) int64, the class numbers with what was relabelled.
    keep : (N,) bool, False for what was dropped.
    """

    labels: npt.NDArray[np.int64]
    keep: npt.NDArray[np.bool_]


def write_suspects(path: Path, findings: Findings) -> None:
    """Write the suspects as CSV, the likeliest label error first, two columns left to fill in.

    ``new_label`` takes the right class, ``drop`` takes ``yes``; what is left empty stays as it is.
    Names are written so that a spreadsheet neither breaks nor computes them; the digest tells
    which image is meant. The file begins with a byte order mark, or Excel would not take it for
    UTF-8.
    """
    table = findings.table
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for suspect in findings.suspects:
            writer.writerow(
                (
                    _cell(table.columns.paths[suspect.row]),
                    SPLIT_NAMES[table.columns.splits[suspect.row]],
                    _cell(table.classes[suspect.label]),
                    _cell(table.classes[suspect.suggested]),
                    f"{suspect.label_probability:.4f}",
                    f"{suspect.suggested_probability:.4f}",
                    "",
                    "",
                    table.columns.digests[suspect.row].tobytes().hex(),
                )
            )


def apply_label_edits(path: Path, table: FeatureTable) -> FeatureTable:
    """The table as the file wants it: relabelled rows carry their class, dropped ones are gone."""
    edits = read_label_edits(path, table)
    kept = np.flatnonzero(edits.keep)
    return replace(
        table,
        columns=replace(table.columns, labels=edits.labels).take(kept),
        file_rows=table.file_rows[kept],
    )


def read_label_edits(path: Path, table: FeatureTable) -> LabelEdits:
    """Read an edited suspects.csv, or any CSV with ``path`` or ``digest`` and an edit.

    A digest goes before a path and stands for every copy of that image, and so for its augmented
    views; to edit one of several identical files, leave its digest empty. A path stands for that
    file's rows alone. Comma, semicolon or tab may separate; further columns are not read.

    Raises NoInputError if the file cannot be read; BadDataError, with its line, for what cannot be
    done: an unknown class or image, an image to be both dropped and relabelled, or in two ways.
    """
    labels = table.columns.labels.copy()
    keep = np.ones(len(table), np.bool_)
    rows_of = _Finder(table)
    line_of_row: dict[int, int] = {}
    for line, record in _edits(path):
        place = f"{printable(path)}:{line}"
        new_label, drop = record["new_label"], _is_drop(record["drop"], place)
        if drop and new_label:
            raise BadDataError(f"{place} both drops and relabels the image; leave one empty")
        if not drop and not new_label:
            continue
        rows = rows_of(record, place)
        number = -1 if drop else _class_number(new_label, table.classes, place)
        for row in rows:
            before = -1 if not keep[row] else int(labels[row])
            if row in line_of_row and before != number:
                raise BadDataError(
                    f"{place} says otherwise than line {line_of_row[row]} about "
                    f"{printable(table.columns.paths[row])}; keep one of the lines"
                )
            line_of_row[row] = line
        keep[rows] = not drop
        if not drop:
            labels[rows] = number
    return LabelEdits(labels=labels, keep=keep)


def _edits(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the four cells that count, of each record; missing ones are empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NoInputError(
            f"--labels {printable(path)} cannot be read: {error.strerror}"
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadDataError(
            f"{printable(path)}:{line} is not UTF-8; save it as CSV UTF-8, and name an image whose "
            f"path is no text by its digest"
        ) from error
    header = text.partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=header.count), strict=True
    )
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if not {"path", "digest"} & set(names) or not {"new_label", "drop"} & set(names):
            raise BadDataError(
                f"{printable(path)}:1 needs the columns path or digest, and new_label or drop; "
                f"received {printable(header.strip())!r}"
            )
        for cells in reader:
            record = dict.fromkeys(("path", "digest", "new_label", "drop"), "")
            record.update(zip(names, cells, strict=False))
            yield reader.line_num, record
    except csv.Error as error:
        raise BadDataError(f"{printable(path)}:{reader.line_num} is no CSV: {error}") from error


class _Finder:
    """Find the rows of an image by its digest, else by its path in any of its spellings."""

    def __init__(self, table: FeatureTable) -> None:
        self._paths = table.columns.paths
        self._spellings = _by_spelling(self._paths.tolist())
        self._by_digest: dict[str, list[int]] = {}
        for row, digest in enumerate(table.columns.digests):
            self._by_digest.setdefault(digest.tobytes().hex(), []).append(row)

    def __call__(self, record: Mapping[str, str], place: str) -> list[int]:
        digest, path = record["digest"].strip().lower(), record["path"]
        if digest:
            if digest not in self._by_digest:
                raise BadDataError(f"{place}: no image has the digest {printable(digest)}")
            return self._by_digest[digest]
        if not path:
            raise BadDataError(f"{place} names no image: path and digest are empty")
        named = self._spellings.get(path) or self._spellings.get(_bare(path)) or set()
        if not named:
            hint = _hint(path, self._spellings)
            raise BadDataError(f"{place}: no image is called {printable(path)}{hint}")
        if len(named) > 1:
            raise BadDataError(
                f"{place}: {len(named)} images are called {printable(path)}; name one by its digest"
            )
        return [int(row) for row in np.flatnonzero(self._paths == next(iter(named)))]


def _by_spelling(paths: Iterable[bytes]) -> dict[str, set[bytes]]:
    """Path as a person or `write_suspects` spells it -> the paths that it may mean.

    Exactly the name of one file is that file, whatever else it may spell.
    """
    exact: dict[str, set[bytes]] = {}
    others: dict[str, set[bytes]] = {}
    for path in set(paths):
        exact[os.fsdecode(path)] = {path}
        for spelling in (_bare(os.fsdecode(path)), _bare(printable(path))):
            others.setdefault(spelling, set()).add(path)
    return others | exact


def _class_number(name: str, classes: tuple[str, ...], place: str) -> int:
    wanted = _bare(name.strip())
    if name in classes:
        return classes.index(name)
    spelled: dict[str, set[int]] = {}
    for number, known in enumerate(classes):
        for spelling in (_bare(known), _bare(printable(known))):
            spelled.setdefault(spelling, set()).add(number)
    numbers = spelled.get(wanted, set())
    if len(numbers) != 1:
        problem = "means several classes" if numbers else "is no class"
        hint = _hint(wanted, spelled) or (
            f"; the classes are {', '.join(map(printable, classes[:10]))}"
            + (" and others" if len(classes) > 10 else "")
        )
        raise BadDataError(f"{place}: {printable(name)} {problem}{hint}")
    return next(iter(numbers))


def _is_drop(cell: str, place: str) -> bool:
    answer = (DROP | KEEP).get(cell.strip().lower())
    if answer is None:
        raise BadDataError(f"{place}: drop takes yes or nothing; received {printable(cell)!r}")
    return answer


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {printable(close[0])}?" if close else ""


def _cell(name: str | bytes) -> str:
    """A name that a spreadsheet takes for text."""
    text = printable(name)
    return f"'{text}" if text.startswith(FORMULA) else text


def _bare(text: str) -> str:
    """A name without the apostrophe of `_cell`, composed, so that two spellings compare equal."""
    if text.startswith("'") and text[1:].startswith(FORMULA):
        text = text[1:]
    return unicodedata.normalize("NFC", text)
