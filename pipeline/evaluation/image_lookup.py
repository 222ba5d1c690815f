"""CSV files in which people name images: read, and their images found, however they are spelled."""

import csv
import difflib
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.cache.file import Columns
from pipeline.errors import BadDataError, NoInputError
from pipeline.text import printable

NAMES = ("path", "digest")
T = TypeVar("T")

DELIMITERS = ",;\t"  # what spreadsheets write, by country


def read_records(
    path: Path, *, option: str, values: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place, FILE:LINE, and the cells of each record: path, digest and ``values``.

    Missing cells are empty, further columns are not read.

    Raises NoInputError if the file, which ``option`` names, cannot be read; BadDataError, with its
    line, if it is no CSV in UTF-8 or lacks path or digest, or every one of ``values``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NoInputError(
            f"{option} {printable(path)} cannot be read: {error.strerror}"
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
        columns = [name.strip().lower() for name in next(reader, [])]
        if not set(NAMES) & set(columns) or not set(values) & set(columns):
            raise BadDataError(
                f"{printable(path)}:1 needs the columns path or digest, and {' or '.join(values)}; "
                f"received {printable(header.strip())!r}"
            )
        for cells in reader:
            record = dict.fromkeys((*NAMES, *values), "")
            record.update(zip(columns, cells, strict=False))
            yield f"{printable(path)}:{reader.line_num}", record
    except csv.Error as error:
        raise BadDataError(f"{printable(path)}:{reader.line_num} is no CSV: {error}") from error


class ImageLookup:
    """Find the rows of an image in several tables: by its digest, else by its path.

    A digest goes before a path and stands for every copy of that image, and so for its augmented
    views; a path, in any of its spellings, for that file's rows alone.
    """

    def __init__(self, tables: Sequence[Columns]) -> None:
        self._tables = tables
        self._spellings = [_by_spelling(columns.paths.tolist()) for columns in tables]
        self._by_digest: list[dict[str, list[int]]] = []
        for columns in tables:
            self._by_digest.append({})
            for row, digest in enumerate(columns.digests):
                self._by_digest[-1].setdefault(digest.tobytes().hex(), []).append(row)

    def find(self, record: Mapping[str, str], place: str) -> list[list[int]]:
        """The rows in each table; raises BadDataError for a record of no image or of several."""
        digest, path = record["digest"].strip().lower(), record["path"]
        if digest:
            return [by_digest.get(digest, []) for by_digest in self._by_digest]
        if not path:
            raise BadDataError(f"{place} names no image: path and digest are empty")
        found = []
        for columns, spellings in zip(self._tables, self._spellings, strict=True):
            named = spellings.get(path) or spellings.get(composed(path)) or set()
            if len(named) > 1:
                raise BadDataError(
                    f"{place}: {len(named)} images are called {printable(path)}; name one by its "
                    f"digest"
                )
            found.append(
                [int(row) for name in named for row in np.flatnonzero(columns.paths == name)]
            )
        return found

    def find_or_raise(self, record: Mapping[str, str], place: str) -> list[list[int]]:
        """`find`; raises BadDataError where no table holds the image."""
        found = self.find(record, place)
        if any(found):
            return found
        if digest := record["digest"].strip().lower():
            raise BadDataError(f"{place}: no image has the digest {printable(digest)}")
        path, known = record["path"], chain.from_iterable(self._spellings)
        raise BadDataError(
            f"{place}: no image is called {printable(path)}{did_you_mean(path, known)}"
        )


def assign(
    value: T, rows: Iterable[int], place: str, assigned: dict[int, tuple[T, str]], columns: Columns
) -> None:
    """Note the value of rows and the place that says so; raises BadDataError if another differs."""
    for row in rows:
        before, said = assigned.setdefault(row, (value, place))
        if before != value:
            raise BadDataError(
                f"{place} says otherwise than {said} about {printable(columns.paths[row])}; "
                f"keep one of the lines"
            )


def _by_spelling(paths: Iterable[bytes]) -> dict[str, set[bytes]]:
    """Spelling -> the paths that it may mean; a file's exact name means that file alone."""
    exact: dict[str, set[bytes]] = {}
    others: dict[str, set[bytes]] = {}
    for path in set(paths):
        exact[os.fsdecode(path)] = {path}
        for spelling in (composed(os.fsdecode(path)), composed(printable(path))):
            others.setdefault(spelling, set()).add(path)
    return others | exact


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error with the nearest known name; empty where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {printable(close[0])}?" if close else ""


def composed(text: str) -> str:
    """The text in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)
