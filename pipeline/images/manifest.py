"""Read a manifest: a table of image paths with labels and, optionally, splits and groups."""

import csv
import difflib
import io
import json
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import BadDataError, NoInputError, UnreachableError
from pipeline.images.config import ALL_COLUMNS, LabelConfig
from pipeline.images.decode import FORMATS, register_heic
from pipeline.images.scan import (
    NO_SPLIT,
    SPLIT_FOLDERS,
    SPLIT_NAMES,
    TRAIN,
    URL_REASON,
    FoundFile,
    ImageSet,
    Skipped,
    is_url,
)
from pipeline.images.source import FolderSource
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION, UNLABELLED
from pipeline.text import counted, printable

MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = ",;\t"  # spreadsheets use these, by country
SEPARATOR = "|"  # of several labels in a cell
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?")  # 001 is text
TRUE, FALSE = {"True", "TRUE", "true"}, {"False", "FALSE", "false"}
YES, NO = TRUE | {"1", "1.0"}, FALSE | {"0", "0.0"}

LONGEST = 200  # characters of a path in an error
MISSING = "does not exist"
SURPLUS = "\0"  # the column of cells beyond the first line's; a name that no file has

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Manifest:
    """A manifest in memory: its name in messages, the folder of its paths, and its rows.

    The index of the data frame ``rows`` is the place of each row in messages.
    """

    name: str
    folder: Path
    rows: Any


@dataclass(frozen=True)
class _Row:
    """A row whose image exists: its absolute path, and the other values as text."""

    place: str
    path: str
    labels: tuple[str, ...]
    split: int
    group: str


def is_manifest(path: Path) -> bool:
    """Return whether a name is that of a manifest, not of a folder."""
    return path.suffix.lower() in MANIFESTS and not path.is_dir()


def is_frame(data: Any) -> bool:
    """Return whether an object is a pandas data frame; does not load pandas."""
    return "pandas" in sys.modules and isinstance(data, sys.modules["pandas"].DataFrame)


def read_manifest(data: Any, options: LabelConfig) -> ImageSet:
    """Find the images and labels that a file or data frame names.

    Classes are ordered as numbers if all are, else by name. An image that is listed twice counts
    once; in a multi-label set it has the labels of all its rows.

    Raises NoInputError for a missing file; BadDataError if a column is missing, rows contradict one
    another, or more than half of the rows cannot be used.
    """
    manifest = _open_frame(data) if is_frame(data) else _open_file(Path(data))
    if options.root is not None:
        if not options.root.is_dir():
            raise NoInputError(f"--root {printable(options.root)} is not a folder")
        manifest = replace(manifest, folder=Path(os.path.abspath(options.root)))  # noqa: PTH100
    reader = _RowReader(manifest, options)
    task = options.labels_are
    rows, skipped = reader.read()
    classes = reader.label_columns
    if task in (CLASSES, MULTILABEL) and options.label_columns is None:
        names = class_names({label for row in rows for label in row.labels})
        classes = tuple(dict.fromkeys(names.values()))
        rows = [replace(row, labels=tuple(names[each] for each in row.labels)) for row in rows]
    if task == CLASSES:
        _check_classes(Counter(label for row in rows for label in row.labels))
    rows = list(_merge_rows(rows, unite=task == MULTILABEL))
    number_of = {name: number for number, name in enumerate(classes)}
    # The lowest folder that contains all images and the folder of the manifest
    base = os.path.commonpath([manifest.folder, *(row.path for row in rows)])
    prefix = len(os.path.join(base, ""))  # noqa: PTH118 - / ends in a separator already
    files = [
        FoundFile(
            path=os.fsencode(row.path[prefix:].replace(os.sep, "/")),
            label=number_of[row.labels[0]] if task == CLASSES else 0,
            split=row.split,
            targets=_targets(row.labels, classes, task),
            group=row.group.encode(errors="backslashreplace"),
        )
        for row in rows
    ]
    if any(file.split for file in files) and not any(file.split == TRAIN for file in files):
        raise BadDataError(f"{manifest.name} has rows of other splits, but none of train")
    column = options.label_column or ""
    if options.label_columns is not None:
        column = f"{classes[0]}+{len(classes) - 1}"
    if is_frame(data):
        place, parts = manifest.folder / "dataframe", [manifest.folder.name, "dataframe"]
    else:
        place, parts = Path(data).resolve(), [Path(data).absolute().parent.name, Path(data).stem]
    parts += [column, UNLABELLED * (task == UNLABELLED)]
    return ImageSet(
        source=FolderSource(Path(base), manifest=os.fspath(place)),
        name="-".join(filter(None, parts)),
        # HDF5 stores neither lone surrogates nor NUL
        classes=tuple(
            name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
            for name in classes
        ),
        files=tuple(sorted(files, key=lambda file: (file.split, file.path))),
        skipped=tuple(dict.fromkeys(skipped)),
        task=task,
        folders={"": base},
    )


def class_names(labels: set[str]) -> dict[str, str]:
    """Return the class of each label, in order: numbers by value, 1.0 as 1; other text by name.

    >>> class_names({"10", "2", "2.0"})
    {'2': '2', '2.0': '2', '10': '10'}
    >>> class_names({"10", "002"})
    {'002': '002', '10': '10'}
    """
    if all(map(NUMBER.fullmatch, labels)):
        ordered = sorted(labels, key=lambda label: (Decimal(label), label))
        return {label: f"{Decimal(label).normalize() + 0:f}" for label in ordered}
    if labels <= TRUE | FALSE:  # TRUE of Excel, true of JSON, True of Python
        return {label: label.title() for label in sorted(labels, key=str.title)}
    return {label: label for label in sorted(labels)}


class _RowReader:
    """Reads the rows of a manifest: finds its columns, then each row's image."""

    def __init__(self, manifest: Manifest, options: LabelConfig) -> None:
        self._manifest = manifest
        self._options = options
        self._names: list[str] = [name for name in manifest.rows.columns if name != SURPLUS]
        self._find = _ImageFinder(manifest.folder)
        path = self._column(options.path_column, "path", "--path-column", is_needed=True)
        split = self._column(options.split_column, "split", "--split-column")
        group = self._column(options.group_column, "group", "--group-column")
        self.label_columns = self._label_columns({path, split, group})
        self._columns = {"path": path, "split": split, "group": group}

    def read(self) -> tuple[list[_Row], list[Skipped]]:
        """Return the rows that can be used, and the others; BadDataError if these are more."""
        used = [name for name in self._columns.values() if name]
        rows: list[_Row] = []
        skipped: list[Skipped] = []
        frame = self._manifest.rows
        chosen = frame.loc[:, [*used, *self.label_columns]].astype(object)
        chosen = chosen.where(chosen.notna(), None)
        is_long = (frame[SURPLUS] != "") if SURPLUS in frame else [False] * len(frame)
        for (place, *values), has_more in zip(chosen.itertuples(name=None), is_long, strict=True):
            if has_more:
                skipped.append(Skipped(place.encode(), "has more cells than the first line"))
                continue
            texts = dict(zip(used, map(as_text, values), strict=False))
            path, split, group = (texts.get(name, "") for name in self._columns.values())
            try:
                if not path:
                    raise _UnusableRowError("no path")
                found = self._find(path)
                labels = self._labels(values[len(used) :])
                number = parse_split(split, place)
            except _UnusableRowError as error:
                name = path.encode(errors="backslashreplace") or place.encode()
                skipped.append(Skipped(name, str(error)))
            else:
                rows.append(_Row(place, found, labels, number, group))
        without_split = [row for row in rows if not row.split]
        if 0 < len(without_split) < len(rows):  # without any, there are no splits
            rows = [row for row in rows if row.split]
            folder = self._manifest.folder
            skipped += [
                Skipped(os.fsencode(os.path.relpath(row.path, folder)), "no split")
                for row in without_split
            ]
        if len(skipped) > len(rows) or not rows:
            raise self._unusable_error(skipped, len(rows))
        return rows, skipped

    def _unusable_error(self, skipped: Sequence[Skipped], usable: int) -> BadDataError:
        name = self._manifest.name
        if not skipped:
            return BadDataError(f"{name} has no rows")
        path, reason = printable(skipped[0].path), skipped[0].reason
        hint = self._find.hint(os.fsdecode(skipped[0].path)) if reason == MISSING else ""
        shown = path[:LONGEST] + "…" * (len(path) > LONGEST)
        return BadDataError(
            f"{len(skipped):,} of {counted(usable + len(skipped), 'row')} of {name} cannot be "
            f"used, e.g. {shown} ({reason}){hint}"
        )

    def _labels(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Return the labels of a row as text; of a regression, its number."""
        task = self._options.labels_are
        if self._options.label_columns is not None:
            texts = dict(zip(self.label_columns, map(as_text, values), strict=True))
            for name, text in texts.items():
                if text not in YES | NO:
                    raise _UnusableRowError(f"{name}: expected 0 or 1, received {text!r}")
            return tuple(name for name, text in texts.items() if text in YES)
        if task == UNLABELLED:
            return ()
        (value,) = values
        is_list = is_several(value)
        if task == MULTILABEL:
            labels = split_labels(value)
            if not labels and not is_list:
                raise _UnusableRowError("no label")
            return labels
        if is_list:
            raise _UnusableRowError("its label is a list, which needs --task multilabel")
        if not (text := as_text(value)):
            raise _UnusableRowError("no label")
        if task != REGRESSION:
            return (text,)
        if not is_number(text):
            raise _UnusableRowError(f"its label is not a number: {printable(text)}")
        return (repr(float(text)),)

    def _label_columns(self, others: set[str]) -> tuple[str, ...]:
        options, columns = self._options, self._names
        if options.labels_are == UNLABELLED:
            return ()
        if options.label_columns == ALL_COLUMNS:
            ignored = {"split": options.split_column == "", "group": options.group_column == ""}
            named = [
                name for name in columns if name not in others and not ignored.get(name.lower())
            ]
        elif options.label_columns is not None:
            names = options.label_columns
            named = names.split(",") if isinstance(names, str) else [str(each) for each in names]
            named = [name.strip() for name in named]
        else:
            flag = "--label-column"
            return (self._column(options.label_column, "label", flag, is_needed=True),)
        if not named:
            raise BadDataError(f"{self._manifest.name} has no columns of labels")
        found = [self._column(each, "", "--label-columns", is_needed=True) for each in named]
        return tuple(dict.fromkeys(found))

    def _column(
        self, requested: str | None, default: str, flag: str, *, is_needed: bool = False
    ) -> str:
        """Return the column of a name in any case; an empty string if there is none."""
        columns, place = self._names, self._manifest.name
        if requested == "" and not is_needed:
            return ""
        name = default if requested is None else requested
        same = [each for each in columns if each == name]
        same = same or [each for each in columns if each.lower() == name.lower()]
        if len(same) == 1:
            return same[0]
        if same:
            raise BadDataError(f"{place} has {len(same)} columns {printable(name)}: rename one")
        if requested is None and not is_needed:
            return ""
        cure = _did_you_mean(name, columns) if requested is not None else f"; name it with {flag}"
        if flag == "--label-column" and requested is None:
            cure += ", or pass --unlabeled"
        listed = ", ".join(map(printable, columns[:10])) + ", …" * (len(columns) > 10)
        raise BadDataError(
            f"{place} has no column {printable(name)}; it has {listed or 'none'}{cure}"
        )


class _UnusableRowError(Exception):
    """The reason why a row names no image with a label."""


class _ImageFinder:
    """Finds the file that a path in a manifest means."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = cache(_names_by_stem)

    def __call__(self, text: str) -> str:
        """Return the absolute path; ``a\\b`` may be ``a/b``, and ``b`` the only image ``b.jpg``."""
        for name in dict.fromkeys((text, text.replace("\\", "/"))):
            path = os.path.normpath(os.path.join(self._folder, name))  # noqa: PTH118 - faster
            if os.path.isfile(path):  # noqa: PTH113 - False for names that a system refuses
                return path
            parent, stem = os.path.split(path)
            names = self._names(parent).get(stem, [])
            if len(names) > 1:
                raise _UnusableRowError(f"means several files: {', '.join(sorted(names))}")
            if names:
                return os.path.join(parent, names[0])  # noqa: PTH118 - as above
        if is_url(text):
            raise _UnusableRowError(URL_REASON)
        is_folder = os.path.isdir(self._folder / text)  # noqa: PTH112 - as above
        raise _UnusableRowError("is a folder" if is_folder else MISSING)

    def hint(self, text: str) -> str:
        """Return the end of an error that names the folder in which a path exists, or ''."""
        with os.scandir(self._folder) as entries:
            folders = sorted(entry.path for entry in entries if entry.is_dir())
        for folder in (*folders, os.fspath(self._folder.parent)):
            try:
                _ImageFinder(Path(folder))(text)
            except _UnusableRowError:
                continue
            return f"; did you mean --root {printable(os.path.relpath(folder))}?"
        return ""


def _names_by_stem(folder: str) -> dict[str, list[str]]:
    """Return the image files of a folder by their names without suffix."""
    register_heic()
    suffixes = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    by_stem: dict[str, list[str]] = {}
    try:
        for name in os.listdir(folder):  # noqa: PTH208 - only names
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - as above
            if suffix.lower() in suffixes:
                by_stem.setdefault(stem, []).append(name)
    except (OSError, ValueError):
        pass
    return by_stem


def as_text(value: Any) -> str:
    """Return a value as text, stripped; 1.0 as ``1``, a missing value and NaN as ''."""
    if hasattr(value, "item"):
        value = value.item()  # of NumPy
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("nan", "<na>", "nat") else text


def parse_split(text: str, place: str) -> int:
    """Return the number of a split's name; NO_SPLIT for empty text; raises BadDataError."""
    if text.lower() in ("", SPLIT_NAMES[NO_SPLIT]):
        return NO_SPLIT
    if text.lower() in SPLIT_FOLDERS:
        return SPLIT_FOLDERS[text.lower()]
    raise BadDataError(
        f"{place}: the split is train, validation or test; received {printable(text)}"
        f"{_did_you_mean(text, SPLIT_FOLDERS)}; --split-column '' ignores the column"
    )


def is_several(value: Any) -> bool:
    """Return whether a value of a column of labels is a list of labels."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def split_labels(value: Any) -> tuple[str, ...]:
    """Return the labels in a list, or in text such as ``sun|sea``."""
    texts = map(as_text, value) if is_several(value) else as_text(value).split(SEPARATOR)
    return tuple(filter(None, map(str.strip, texts)))


def is_number(text: str) -> bool:
    """Return whether text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _targets(labels: Sequence[str], classes: Sequence[str], task: str) -> tuple[float, ...]:
    if task == REGRESSION:
        return (float(labels[0]),)
    return tuple(float(name in labels) for name in classes) if task == MULTILABEL else ()


def _merge_rows(rows: Iterable[_Row], *, unite: bool) -> Iterable[_Row]:
    """Return one row per image; raises BadDataError for rows that contradict one another."""
    by_path: dict[str, _Row] = {}
    for row in rows:
        first = by_path.setdefault(row.path, row)
        if unite:
            row = replace(row, labels=tuple(dict.fromkeys(first.labels + row.labels)))
        for column in ("labels", "split", "group"):
            is_same = getattr(first, column) == getattr(row, column)
            if not is_same and not (unite and column == "labels"):
                raise BadDataError(
                    f"{row.place} contradicts {first.place} on the {column.removesuffix('s')} of "
                    f"{printable(row.path)}: keep one of the rows"
                )
        by_path[row.path] = row
    return by_path.values()


def _check_classes(counts: Mapping[str, int]) -> None:
    """Warn of labels that look like something else."""
    if joined := [label for label in counts if SEPARATOR in label]:
        log.warning(
            "labels such as %s are one class each: if they are several labels, pass --task "
            "multilabel", printable(joined[0]),
        )  # fmt: skip
    single = sum(count == 1 for count in counts.values())
    if single > len(counts) / 2:
        log.warning(
            "%d of %d classes have one image: is the label column right? Numbers to predict need "
            "--task regression", single, len(counts),
        )  # fmt: skip


def _open_frame(frame: Any) -> Manifest:
    rows = _with_index_as_columns(frame)
    rows = rows.set_axis([f"row {printable(str(index))}" for index in frame.index])
    return Manifest("the data frame", Path.cwd(), rows.set_axis(map(str, rows.columns), axis=1))


def _open_file(path: Path) -> Manifest:
    name, suffix = printable(path), path.suffix.lower()
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise NoInputError(f"manifest {name} {URL_REASON if is_url(str(path)) else problem}")
    if suffix == ".parquet":
        rows = _read_parquet(path)
    elif suffix in (".csv", ".tsv"):
        rows = read_csv(path)
    else:
        rows = _read_json_lines(path)
    # The folder is not where a link leads
    return Manifest(name, Path(os.path.abspath(path.parent)), rows)  # noqa: PTH100


def _read_text(path: Path) -> str:
    """Read UTF-8, with a byte order mark or without, or UTF-16 with one."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith(UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadDataError(
            f"{printable(path)}:{line} is not UTF-8: save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from error
    if not text.strip():
        raise NoInputError(f"{printable(path)} is empty: expected columns such as path and label")
    return text


def read_csv(path: Path) -> Any:
    """Read a CSV file into a data frame of text, indexed by ``FILE:LINE``, without empty lines.

    The first line decides which delimiter separates the cells: a comma, semicolon or tab. Missing
    cells are empty. The last column, SURPLUS, is not empty in rows with more cells than the first.

    Raises NoInputError for an empty file; BadDataError if it is not CSV in UTF-8 or UTF-16.
    """
    import pandas

    text, name = _read_text(path), printable(path)
    table = text.lstrip("\r\n ")
    first = table.splitlines()[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader([first], delimiter=delimiter, skipinitialspace=True)
    columns = [cell.strip() for cell in next(reader)]
    widest = delimiter * len(columns) + "\n"  # pandas takes the number of columns from it
    try:
        frame = pandas.read_csv(
            io.StringIO(widest + table, newline=""),
            sep=delimiter,
            header=None,  # pandas would rename columns of equal names
            usecols=range(len(columns) + 1),
            index_col=False,
            skipinitialspace=True,
            dtype=str,  # 001 is not 1
            na_filter=False,
            skip_blank_lines=False,
        )
    except ValueError as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise BadDataError(f"{name} is not CSV: {reason}") from error
    cells = frame.apply(lambda column: column.str.count("\n")).sum(axis="columns")
    lines = frame.index + cells.cumsum() + text.count("\n", 0, len(text) - len(table))
    frame = frame.set_axis([f"{name}:{line}" for line in lines])
    return frame[(frame != "").any(axis="columns")][1:].set_axis([*columns, SURPLUS], axis=1)


def _read_json_lines(path: Path) -> Any:
    """Read one object per line; pandas.read_json would round whole numbers beside missing ones."""
    import pandas

    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{printable(path)}:{number}"
        try:
            rows[place] = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadDataError(f"{place} is not JSON: {error}") from error
        if not isinstance(rows[place], dict):
            raise BadDataError(f"{place} is not a JSON object: expected one per line")
    return pandas.DataFrame(list(rows.values()), index=list(rows), dtype=object)


def _read_parquet(path: Path) -> Any:
    import pandas

    try:
        # Other types would round whole numbers beside missing ones
        frame = pandas.read_parquet(path, dtype_backend="pyarrow")
    except ImportError as error:
        raise UnreachableError(
            "a Parquet file needs pyarrow, which is not installed: pip install -e '.[notebook]'"
        ) from error
    except (ValueError, OSError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise BadDataError(f"{printable(path)} is not a Parquet file: {error}") from error
    places = [f"{printable(path)}, row {number}" for number in range(1, len(frame) + 1)]
    return _with_index_as_columns(frame).set_axis(places)


def _with_index_as_columns(frame: Any) -> Any:
    """Return the frame with each named level of its index as a column too."""
    names = [name for name in frame.index.names if name is not None and name not in frame]
    return frame.reset_index(names) if names else frame


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {printable(close[0])}?" if close else ""
