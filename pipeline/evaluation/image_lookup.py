"""Read CSV files that name images, and find these images in tables."""

import difflib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TypeVar

from pipeline.cache.file import Columns
from pipeline.errors import BadDataError, NoInputError
from pipeline.images.manifest import SURPLUS, read_csv
from pipeline.text import printable

T = TypeVar("T")

NAMES = ("path", "digest")


def read_records(
    path: Path, *, option: str, values: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the line, ``FILE:LINE``, and the cells of each record: path, digest and ``values``.

    Missing cells are empty; other columns are ignored.

    Raises NoInputError if the file, the value of ``option``, cannot be read; BadDataError, with the
    line, if it is not CSV in UTF-8 or lacks both path and digest, or all of ``values``.
    """
    try:
        frame = read_csv(path)
    except OSError as error:
        raise NoInputError(
            f"{option} {printable(path)} cannot be read: {error.strerror}"
        ) from error
    except BadDataError as error:
        raise BadDataError(f"{error}; name images with other paths by their digest") from error
    columns = [name.lower() for name in frame.columns.drop(SURPLUS)]
    if not set(NAMES) & set(columns) or not set(values) & set(columns):
        received = printable(", ".join(columns))
        raise BadDataError(
            f"{printable(path)}:1 needs the columns path or digest, and {' or '.join(values)}; "
            f"received {received!r}"
        )
    for line, *cells in frame.itertuples():
        record = dict.fromkeys((*NAMES, *values), "")
        record.update(zip(columns, cells, strict=False))
        yield line, record


class ImageLookup:
    """Finds the rows of an image in several tables: by its digest, else by its path.

    A digest matches every copy of the file, with its augmented views; a path, in any spelling,
    matches that file's rows only.
    """

    def __init__(self, tables: Sequence[Columns]) -> None:
        self._tables = tables

    @cached_property
    def _by_digest(self) -> list[dict[str, list[int]]]:
        digests = [map(bytes.hex, columns.digests.tolist()) for columns in self._tables]
        return [_rows_by_value(each) for each in digests]

    @cached_property
    def _by_path(self) -> list[dict[bytes, list[int]]]:
        return [_rows_by_value(columns.paths.tolist()) for columns in self._tables]

    @cached_property
    def _spellings(self) -> list[dict[str, set[bytes]]]:
        """The paths of each spelling, by table: a second for 100,000; digests do not need it."""
        return [_by_spelling(by_path) for by_path in self._by_path]

    def find(self, record: Mapping[str, str], line: str) -> list[list[int]]:
        """Return the rows in each table; raises BadDataError for an ambiguous or empty name."""
        digest, path = record["digest"].strip().lower(), record["path"]
        if digest:
            return [by_digest.get(digest, []) for by_digest in self._by_digest]
        if not path:
            raise BadDataError(f"{line} names no image: path and digest are empty")
        rows = []
        for by_path, spellings in zip(self._by_path, self._spellings, strict=True):
            names = spellings.get(path) or spellings.get(composed(path)) or set()
            if len(names) > 1:
                raise BadDataError(
                    f"{line}: {len(names)} images are called {printable(path)}; name one by its "
                    f"digest"
                )
            rows.append([row for name in names for row in by_path[name]])
        return rows

    def find_or_raise(self, record: Mapping[str, str], line: str) -> list[list[int]]:
        """Return the same rows; raises BadDataError if no table contains the image."""
        rows = self.find(record, line)
        if any(rows):
            return rows
        if digest := record["digest"].strip().lower():
            raise BadDataError(f"{line}: no image has the digest {printable(digest)}")
        path, names = record["path"], chain.from_iterable(self._spellings)
        raise BadDataError(
            f"{line}: no image is called {printable(path)}{did_you_mean(path, names)}"
        )


def assign(
    value: T, rows: Iterable[int], line: str, assigned: dict[int, tuple[T, str]], columns: Columns
) -> None:
    """Assign a line's value to rows; raises BadDataError if another line's value differs."""
    for row in rows:
        value_before, line_before = assigned.setdefault(row, (value, line))
        if value_before != value:
            raise BadDataError(
                f"{line} contradicts {line_before} on {printable(columns.paths[row])}; "
                f"keep one of the lines"
            )


def _rows_by_value(values: Iterable[T]) -> dict[T, list[int]]:
    rows: dict[T, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return rows


def _by_spelling(paths: Iterable[bytes]) -> dict[str, set[bytes]]:
    """Map spellings to the paths they match; an exact path matches that file only."""
    exact: dict[str, set[bytes]] = {}
    others: dict[str, set[bytes]] = {}
    for path in paths:
        exact[os.fsdecode(path)] = {path}
        for spelling in (composed(os.fsdecode(path)), composed(printable(path))):
            others.setdefault(spelling, set()).add(path)
    return others | exact


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of an error that suggests the closest name, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {printable(close[0])}?" if close else ""


def composed(text: str) -> str:
    """Return the text in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text)
