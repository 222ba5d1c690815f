"""Sets in Parquet or Arrow files with the bytes of images, as Hugging Face's datasets writes them.

Rows are read in batches, in the order of the file; no file is loaded as a whole.
"""

import json
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pipeline.errors import BadDataError, UnreachableError
from pipeline.images.config import LabelConfig
from pipeline.images.manifest import as_text, parse_split
from pipeline.images.scan import NO_SPLIT, TRAIN, ImageSet, Skipped
from pipeline.images.shards import labelled_set, splits_of_shards
from pipeline.images.source import MAX_FILE, FileStat, FileStore, ImageSource
from pipeline.text import error_text, file_size, printable

BATCH_ROWS = 32  # a few MB of photographs
HELD_ROWS = 256  # read rows that threads may still request
BUFFER = 2**20  # bytes of a column that are read ahead; 0 would read a whole row group
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content")
LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "cls", "y")
SCANNED_ROWS = 10_000
MAX_NAME = 80  # characters of an image's name in a path


class _Table:
    """A Parquet or Arrow file of a store; raises BadDataError if it cannot be read."""

    def __init__(self, store: FileStore, path: str, place: str) -> None:
        try:
            import pyarrow
        except ImportError as error:
            raise UnreachableError(
                f"pyarrow, which reads {printable(place)}, is missing: pip install -e '.[notebook]'"
            ) from error
        self.place, self._store, self._path = place, store, os.fsencode(path)
        self.pyarrow = pyarrow
        self.is_parquet = path.lower().endswith(".parquet")
        reader = self._open()
        self.schema = reader.schema_arrow if self.is_parquet else reader.schema

    def image_column(self) -> str | None:
        """Return the name of the column with the bytes of images, or None."""
        return _image_column(self.pyarrow, self.schema)

    def batches(
        self, columns: Sequence[str], *, first_row: int = 0, rows: int = BATCH_ROWS
    ) -> Iterator[tuple[int, Any]]:
        """Yield the number of the first row and the columns of each batch.

        The batches begin at a row group that is not after ``first_row``.
        """
        try:
            reader = self._open()
            start = 0
            if self.is_parquet:
                groups = list(range(reader.num_row_groups))
                sizes = [reader.metadata.row_group(group).num_rows for group in groups]
                while len(groups) > 1 and start + sizes[groups[0]] <= first_row:
                    start += sizes[groups.pop(0)]
                batches = reader.iter_batches(
                    rows, row_groups=groups, columns=list(columns), use_threads=False
                )
            else:
                batches = (batch.select(list(columns)) for batch in _arrow_batches(reader))
            for batch in batches:
                yield start, batch
                start += len(batch)
        except (self.pyarrow.ArrowException, ValueError) as error:
            raise self._damaged(error) from error

    def _open(self) -> Any:
        file = self._store.open(self._path)
        try:
            if self.is_parquet:
                from pyarrow import parquet

                return parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
            try:
                return self.pyarrow.ipc.open_file(file)
            except self.pyarrow.ArrowInvalid:
                file.seek(0)
                return self.pyarrow.ipc.open_stream(file)
        except (self.pyarrow.ArrowException, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> BadDataError:
        kind = "Parquet" if self.is_parquet else "Arrow"
        return BadDataError(
            f"{printable(self.place)} cannot be read as {kind} ({error_text(error)[:120]}): "
            f"copy it again"
        )


def _arrow_batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from reader


class _Rows:
    """The image bytes of a table by row; fast for rows in order, as threads request them."""

    def __init__(self, table: _Table, column: str, *, is_struct: bool) -> None:
        self._table, self._column, self._is_struct = table, column, is_struct
        self._lock = threading.Lock()  # rows are read one batch after the other
        self._held: deque[tuple[int, Any]] = deque()  # first row, bytes
        self._batches: Iterator[tuple[int, Any]] = iter(())

    def read(self, row: int) -> bytes | None:
        with self._lock:
            if not self._held or not 0 <= row - self._held[0][0] <= 2 * HELD_ROWS:
                self._held.clear()
                self._batches = self._table.batches([self._column], first_row=row)
            while True:
                for first, values in self._held:
                    if first <= row < first + len(values):
                        content: bytes | None = values[row - first].as_py()
                        return content
                self._read_batch()

    def _read_batch(self) -> None:
        first, batch = next(self._batches, (0, None))
        if batch is None:
            raise OSError("the file has changed")
        values = batch.column(0)
        self._held.append((first, values.field("bytes") if self._is_struct else values))
        while len(self._held) > 2 and sum(len(held) for _, held in self._held) > HELD_ROWS:
            self._held.popleft()


class TableSource(ImageSource):
    """The images in the rows of Parquet and Arrow files.

    Paths are ``train-00000-of-00002.parquet/0000012-cat.jpg``: the file if there are several, the
    row, and the name that the row has. Raises BadDataError for a file without images.
    """

    def __init__(
        self,
        root: str,
        store: FileStore,
        shards: Sequence[str],
        options: LabelConfig | None = None,
    ) -> None:
        """Read labels, splits and groups only with ``options``, which may name their columns."""
        self._root = root
        self._options = options
        self._stats = [store.stat(os.fsencode(shard)) for shard in shards]
        self._rows: list[_Rows] = []
        self._places: dict[bytes, tuple[int, int]] = {}  # path -> file, row
        self.labels: dict[bytes, Any] = {}
        self.splits: dict[bytes, Any] = {}  # like groups, empty without such a column
        self.groups: dict[bytes, Any] = {}
        self.class_names: list[str] = []
        for number, shard in enumerate(shards):
            place = f"{root}/{shard}" if len(shards) > 1 else root
            table = _Table(store, shard, place)
            column = table.image_column()
            if column is None:
                raise BadDataError(
                    f"{printable(place)} has no column with the bytes of images: its columns are "
                    f"{printable(', '.join(table.schema.names))}"
                )
            self._index(number, table, column, f"{shard}/" if len(shards) > 1 else "")

    @property
    def root(self) -> str:
        return self._root

    def list(self) -> Iterator[bytes]:
        yield from self._places

    def stat(self, path: bytes) -> FileStat:
        """Return the version of the file and the row; the size is unknown, 0."""
        file, row = self._place(path)
        _, version, changed_ns = self._stats[file]
        return FileStat(0, version and (*version, row), changed_ns)

    def read(self, path: bytes) -> bytes:
        file, row = self._place(path)
        content = self._rows[file].read(row)
        if content is None:
            raise OSError("the row has no bytes, only a path: embed the images")
        if len(content) > MAX_FILE:
            raise OSError(f"too large for an image file: {file_size(len(content))}")
        return content

    def file_of(self, path: bytes) -> int:
        """Return the number of the file that a row is in."""
        return self._place(path)[0]

    def _place(self, path: bytes) -> tuple[int, int]:
        if path not in self._places:
            raise FileNotFoundError("the row is not in the file any more")
        return self._places[path]

    def _index(self, number: int, table: _Table, column: str, prefix: str) -> None:
        pa = table.pyarrow
        is_struct = pa.types.is_struct(table.schema.field(column).type)
        self._rows.append(_Rows(table, column, is_struct=is_struct))
        label = split = group = ""
        if self._options is not None:
            label = _label_column(table, self._options.label_column)
            split = _optional_column(table, self._options.split_column, "split")
            group = _optional_column(table, self._options.group_column, "group")
        names = _class_names(table.schema, label)
        if number and names != self.class_names:
            raise BadDataError(
                f"{printable(table.place)} names other classes than the files before it: expected "
                f"the same in all"
            )
        self.class_names = names
        has_path = is_struct and "path" in [f.name for f in table.schema.field(column).type]
        # Parquet reads a part of the column; Arrow has no parts, but copies nothing
        columns = list(dict.fromkeys(filter(None, (label, split, group))))
        if has_path:
            columns.append(f"{column}.path" if table.is_parquet else column)
        for first, batch in table.batches(columns, rows=SCANNED_ROWS):
            absent = [None] * batch.num_rows
            labels, splits, groups = (
                batch.column(each).to_pylist() if each else absent for each in (label, split, group)
            )
            paths = batch.column(column).field("path").to_pylist() if has_path else absent
            for index, name in enumerate(paths):
                row = first + index
                ending = "-" + os.path.basename(str(name))[-MAX_NAME:] if name else ""  # noqa: PTH119
                path = os.fsencode(f"{prefix}{row:07d}{ending}".replace("\0", ""))
                self._places[path] = number, row
                self.labels[path] = _whole(labels[index])
                if split:
                    self.splits[path] = splits[index]
                if group:
                    self.groups[path] = groups[index]


def image_column(store: FileStore, path: str) -> str | None:
    """Return the name of a file's column with the bytes of images, or None."""
    return _Table(store, path, path).image_column()


def _image_column(pa: Any, schema: Any) -> str | None:
    features = _features(schema)
    found = []
    for field in schema:
        is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        is_struct = pa.types.is_struct(field.type) and "bytes" in [each.name for each in field.type]
        if is_struct or is_bytes:
            is_image = features.get(field.name, {}).get("_type") == "Image"
            is_named = field.name in IMAGE_NAMES
            found.append((not is_image, not is_named, not is_struct, field.name))
    return min(found)[-1] if found else None


def _label_column(table: _Table, requested: str | None) -> str:
    """Return the name of the label's column; raises BadDataError if there is none, or several."""
    pa, schema = table.pyarrow, table.schema
    features = _features(schema)
    of_classes = [
        name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"
    ]
    named = [name for name in LABEL_NAMES if name in schema.names]
    found = named[:1] or of_classes
    if requested is not None:
        found = [name for name in schema.names if name == requested]
    if len(found) != 1:
        columns = printable(", ".join(schema.names))
        problem = "several columns of labels" if found else f"no column {requested or 'label'}"
        raise BadDataError(
            f"{printable(table.place)} has {printable(problem)} among {columns}: name the column "
            f"with --label-column, or pass --unlabeled"
        )
    kind = schema.field(found[0]).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)  # pandas writes whole numbers beside missing ones so
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    ):
        raise BadDataError(
            f"{printable(table.place)} has labels of type {kind} in {printable(found[0])}: "
            f"expected numbers of classes or texts; for others, use a manifest"
        )
    return found[0]


def _optional_column(table: _Table, requested: str | None, default: str) -> str:
    """Return the column of this name, in any case, or an empty string."""
    name = default if requested is None else requested
    found = [each for each in table.schema.names if each.lower() == name.lower()]
    if len(found) != 1 and requested:
        raise BadDataError(
            f"{printable(table.place)} has no column {printable(requested)} among "
            f"{printable(', '.join(table.schema.names))}"
        )
    return found[0] if len(found) == 1 else ""


def _features(schema: Any) -> dict[str, Any]:
    """Return the features of Hugging Face's datasets in a schema; empty without them."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: each for name, each in features.items() if isinstance(each, dict)}
    return {}


def _class_names(schema: Any, label: str) -> list[str]:
    names = _features(schema).get(label, {}).get("names")
    return list(map(str, names)) if isinstance(names, list) else []


def open_tables(
    root: str,
    name: str,
    store: FileStore,
    shards: Sequence[str],
    options: LabelConfig | None = None,
) -> ImageSet:
    """Find the images, classes, splits and groups in Parquet or Arrow files.

    Splits are in the names of the files, else in a column. Raises BadDataError.
    """
    options = options or LabelConfig()
    source = TableSource(root, store, shards, options)
    name += f"-{options.label_column}" * bool(options.label_column)
    split_of_shard = splits_of_shards(root, shards)
    split_of = {
        path: parse_split(as_text(split), f"{printable(root)}: {printable(path)}")
        for path, split in source.splits.items()
    }
    has_column = NO_SPLIT in split_of_shard.values() and any(split_of.values())
    is_unlabelled = {None, "", -1} if source.class_names else {None, ""}
    labels, skipped = {}, []
    for path, label in source.labels.items():
        split = split_of[path] if has_column else split_of_shard[shards[source.file_of(path)]]
        if isinstance(label, float):
            raise BadDataError(
                f"{printable(root)}: expected numbers of classes or texts as labels, received "
                f"{label}; for a regression, use a manifest"
            )
        if label in is_unlabelled:
            skipped.append(Skipped(path, "has no label"))
        elif has_column and split == NO_SPLIT:
            skipped.append(Skipped(path, "no split"))
        else:
            labels[path] = label, split
    if has_column and TRAIN not in split_of.values():
        raise BadDataError(f"{printable(root)} has rows of other splits, but none of train")
    return labelled_set(
        source,
        name,
        labels,
        class_names=source.class_names,
        skipped=skipped,
        groups={
            path: as_text(group).encode(errors="backslashreplace")
            for path, group in source.groups.items()
        },
    )


def _whole(value: Any) -> Any:
    """Return a whole number as int, NaN as None, and other values as they are."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else int(value) if value.is_integer() else value
