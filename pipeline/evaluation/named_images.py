"""CSV files in which people name images: read, and their images found, however they are spelled."""

import csv
import difflib
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.cache.file import Columns
from pipeline.errors import BadDataError, NoInputError
from pipeline.text import printable

NAMES = ("path", "digest")
DELIMITERS = ",;\t"  # what spreadsheets write, by country
FORMULA = ("=", "+", "-", "@")  # a spreadsheet computes a cell that begins so


def read_records(
    path: Path, *, option: str, values: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The place, FILE:LINE, and the cells of each record: path, digest and ``values``.

    Comma, semicolon or tab may separate; missing cells are empty, further columns are not read.

    Raises NoInputError if the file, which ``option`` names, cannot be read; BadDataError, with its
    line, if it is no CSV in UTF-8 or has not path or digest and one of ``values`` as columns.
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


class ImageFinder:
    """Find the rows of an image in several tables: by its digest, else by its path.

    A digest goes before a path and stands for every copy of that image, and so for its augmented
    views; a path, in any of its spellings, for that file's rows alone.
    """

    def __init__(self, tables: Sequence[Columns]) -> None:
        self._tables = [_Index(columns) for columns in tables]

    def find(self, record: Mapping[str, str], place: str) -> list[list[int]]:
        """The rows in each table; none where it does not hold the image.

        Raises BadDataError, with the place, for a record that names no image or several.
        """
        digest, path = record["digest"].strip().lower(), record["path"]
        if digest:
            return [table.by_digest.get(digest, []) for table in self._tables]
        if not path:
            raise BadDataError(f"{place} names no image: path and digest are empty")
        return [table.rows_at(path, place) for table in self._tables]

    def must_find(self, record: Mapping[str, str], place: str) -> list[list[int]]:
        """`find`; raises BadDataError where no table holds the image."""
        found = self.find(record, place)
        if any(found):
            return found
        if digest := record["digest"].strip().lower():
            raise BadDataError(f"{place}: no image has the digest {printable(digest)}")
        known = (spelling for table in self._tables for spelling in table.spellings)
        path = record["path"]
        raise BadDataError(
            f"{place}: no image is called {printable(path)}{did_you_mean(path, known)}"
        )


class _Index:
    """The rows of one table by digest and by path."""

    def __init__(self, columns: Columns) -> None:
        self._paths = columns.paths
        self.spellings = _by_spelling(columns.paths.tolist())
        self.by_digest: dict[str, list[int]] = {}
        for row, digest in enumerate(columns.digests):
            self.by_digest.setdefault(digest.tobytes().hex(), []).append(row)

    def rows_at(self, path: str, place: str) -> list[int]:
        named = self.spellings.get(path) or self.spellings.get(bare(path)) or set()
        if len(named) > 1:
            raise BadDataError(
                f"{place}: {len(named)} images are called {printable(path)}; name one by its digest"
            )
        return [int(row) for name in named for row in np.flatnonzero(self._paths == name)]


def _by_spelling(paths: Iterable[bytes]) -> dict[str, set[bytes]]:
    """Path as a person or `cell` spells it -> the paths that it may mean.

    Exactly the name of one file is that file, whatever else it may spell.
    """
    exact: dict[str, set[bytes]] = {}
    others: dict[str, set[bytes]] = {}
    for path in set(paths):
        exact[os.fsdecode(path)] = {path}
        for spelling in (bare(os.fsdecode(path)), bare(printable(path))):
            others.setdefault(spelling, set()).add(path)
    return others | exact


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name as the end of an error; empty where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {printable(close[0])}?" if close else ""


def cell(name: str | bytes) -> str:
    """A name that a spreadsheet takes for text."""
    text = printable(name)
    return f"'{text}" if text.startswith(FORMULA) else text


def bare(text: str) -> str:
    """A name without the apostrophe of `cell`, composed, so that two spellings compare equal."""
    if text.startswith("'") and text[1:].startswith(FORMULA):
        text = text[1:]
    return unicodedata.normalize("NFC", text)
