"""Find rows by content in the cache file and its shards; write the file anew from both."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.cache.checksums import InvalidChecksumsError, read_checksums, write_checksums
from pipeline.cache.chunks import write_chunk
from pipeline.cache.file import (
    LIBVER,
    NO_FILE,
    Columns,
    FeatureTable,
    Row,
    RowKey,
    Source,
    columns_of,
    create_features,
    damaged,
    read_rows,
)
from pipeline.cache.shards import Shard
from pipeline.cache.validation import COLUMN_DTYPES
from pipeline.durable import DiskFile, write_durably
from pipeline.images.scan import NO_SPLIT

DamagedRows = Mapping[str, frozenset[int]]  # layer key -> rows of the file to compute again


class RowIndex:
    """Where the features of each row are, by layer and row key; the file's before those of shards.

    ``engine`` computed them, None if there are none: the first one's name, version and measured
    error; another version or engine is listed under ``also``.
    """

    def __init__(
        self,
        table: FeatureTable | None,
        shards: Iterable[Shard] = (),
        damaged: DamagedRows | None = None,
    ) -> None:
        self.sources: dict[str, dict[RowKey, Source]] = defaultdict(dict)
        self.row_shapes: dict[str, tuple[int, ...]] = {}
        self.engine: Mapping[str, Any] | None = None
        if table is not None:
            self._add_table(table, damaged or {})
        self.add_shards(shards)

    def add_shards(self, shards: Iterable[Shard]) -> None:
        """Add committed rows; adding a shard again changes nothing."""
        for shard in shards:
            self._add_engine(shard.engine)
            for layer, shape in shard.row_shapes.items():
                self.row_shapes[layer] = shape
                for row, key in enumerate(shard.keys):
                    self.sources[layer].setdefault(key, Source(shard.path, row))

    def _add_table(self, table: FeatureTable, damaged: DamagedRows) -> None:
        self._add_engine(table.document["engine"])
        keys = table.columns.row_keys()
        gone = np.flatnonzero(table.columns.labels == NO_FILE)
        for layer, shape in table.layers.items():
            self.row_shapes[layer] = shape
            bad = damaged.get(layer, frozenset())
            readable = np.setdiff1d(gone, list(bad))
            empty = np.isnan(table.features(layer, readable))
            out = {*bad, *readable[empty.all(axis=tuple(range(1, empty.ndim)))].tolist()}
            self.sources[layer] = {
                key: Source(table.path, row) for row, key in enumerate(keys) if row not in out
            }

    def _add_engine(self, engine: Mapping[str, Any] | None) -> None:
        if engine is None:
            return
        if self.engine is None:
            self.engine = engine
            return
        also = list(self.engine.get("also", ()))
        known = {(each["name"], each["version"]) for each in (self.engine, *also)}
        if (engine["name"], engine["version"]) not in known:
            self.engine = {**self.engine, "also": [*also, dict(engine)]}


OPEN_FILES = 16  # sources at a time
SET_FIELDS = ("set", "root", "views", "tta", "augmentation")  # of the document

Layers = Mapping[str, tuple[tuple[int, ...], Sequence[Source | None]]]  # row shape, row sources
Opened = tuple[h5py.File, Mapping[tuple[str, int], str]]  # a file, its chunks' SHA-256


def publish_rows(
    path: Path,
    *,
    table: FeatureTable | None,
    index: RowIndex,
    rows: Sequence[Row],
    classes: tuple[str, ...],
    layers: Sequence[str],
    document: Mapping[str, Any],
) -> bool:
    """Write the cache file anew, its rows as `arrange_rows`; False if it says all that already."""
    layers = sorted(index.row_shapes.keys() & set(layers))  # shards may hold others, half done
    rows = arrange_rows(table, rows)
    columns = columns_of(
        labels=[row.label for row in rows],
        splits=[row.split for row in rows],
        paths=[row.path for row in rows],
        digests=[row.key.digest for row in rows],
        views=[row.key.view for row in rows],
    )
    sources: dict[str, list[Source | None]] = {  # None only for a gone image without the layer
        layer: [
            found.get(row.key) if row.label == NO_FILE else found[row.key]
            for found in [index.sources[layer]]
            for row in rows
        ]
        for layer in layers
    }
    if (
        table is not None
        and table.classes == classes
        and sorted(table.layers) == layers
        and all(table.document.get(name) == document.get(name) for name in SET_FIELDS)
        and columns.equals(table.columns)
        # A shard may mend rows of the file, and be of a run that was killed before it published.
        and all(found is None or found.path == path for each in sources.values() for found in each)
    ):
        return False
    publish(
        path,
        document={**document, "engine": index.engine},
        classes=classes,
        columns=columns,
        layers={layer: (index.row_shapes[layer], sources[layer]) for layer in layers},
    )
    return True


def arrange_rows(table: FeatureTable | None, wanted: Sequence[Row]) -> list[Row]:
    """Rows of the old file in their order, under the label -1 if their image is gone; then new."""
    waiting: dict[RowKey, dict[bytes, Row]] = defaultdict(dict)
    for row in wanted:
        waiting[row.key][row.path] = row
    present = set(waiting)
    rows: list[Row] = []
    if table is not None:
        for key, path in zip(table.columns.row_keys(), table.columns.paths.tolist(), strict=True):
            rows.append(waiting[key].pop(path, Row(key, path, NO_FILE, NO_SPLIT)))
    for place, row in enumerate(rows):
        if row.label == NO_FILE and waiting[row.key]:  # the same content under another name
            _, rows[place] = waiting[row.key].popitem()
    return [
        # An image that is gone keeps its row, a further copy of one that is there does not.
        *(row for row in rows if row.label != NO_FILE or row.key not in present),
        *(row for row in wanted if row.path in waiting[row.key]),
    ]


def publish(
    path: Path,
    *,
    document: Mapping[str, Any],
    classes: Sequence[str],
    columns: Columns,
    layers: Layers,
) -> None:
    """Write a complete cache file beside its place, check it, and rename it there.

    ``layers`` : layer key -> (shape of one row, the source of each row; NaN fills one without).
    """
    dtype = document["spec"]["dtype"]

    def write(stream: DiskFile) -> None:
        # Thousands of shards would pass the system's limit; h5py closes those that the cache drops.
        open_source = lru_cache(OPEN_FILES)(_open_source)
        with h5py.File(stream, "w", libver=LIBVER) as file:
            file["spec"] = json.dumps(document)
            file.create_dataset("classes", data=list(classes), dtype=h5py.string_dtype())
            for name in COLUMN_DTYPES:
                file[name] = getattr(columns, name)
            for layer, (row_shape, sources) in layers.items():
                target = create_features(file, layer, row_shape, len(columns), dtype)
                size = target.chunks[0]
                for start in range(0, len(sources), size):
                    block = sources[start : start + size]
                    if not _copy_whole_chunk(target, start, block, open_source):
                        write_chunk(target, start, _gather(target, block, open_source))
                    stream.check()  # on a full disk the rest would pile up in memory
        stream.check()  # of a half-written file nothing can be sealed
        write_checksums(stream)

    rows = (row for _, sources in layers.values() for row in sources if row is not None)
    needs = sum(path.stat().st_size for path in {row.path for row in rows})  # as all sources
    write_durably(path, write, needs=needs)


def _open_source(path: Path) -> Opened:
    file = h5py.File(path, "r")
    try:
        chunks = read_checksums(path).chunks
    except InvalidChecksumsError:  # another writer's file: nothing to hold its chunks against
        return file, {}
    return file, {(chunk.dataset, chunk.first_row): chunk.sha256 for chunk in chunks}


def _copy_whole_chunk(
    target: h5py.Dataset,
    start: int,
    block: Sequence[Source | None],
    open_source: Callable[[Path], Opened],
) -> bool:
    """Copy a block as it is stored, if it is exactly one chunk of one file."""
    size, first, name = target.chunks[0], block[0], target.name.removeprefix("/")
    if first is None or first.row % size:
        return False
    if list(block) != [Source(first.path, first.row + offset) for offset in range(size)]:
        return False
    file, digests = open_source(first.path)
    source, expected = file[name], digests.get((name, first.row))
    if expected is None or (source.chunks, source.dtype) != (target.chunks, target.dtype):
        return False
    zeros = (0,) * (target.ndim - 1)
    mask, data = source.id.read_direct_chunk((first.row, *zeros))
    # HDF5 does not look at its own checksum of a chunk that it does not decompress.
    if sha256(data).hexdigest() != expected:
        raise damaged(first.path)
    target.id.write_direct_chunk((start, *zeros), data, mask)
    return True


def _gather(
    target: h5py.Dataset, block: Sequence[Source | None], open_source: Callable[[Path], Opened]
) -> npt.NDArray[Any]:
    """Read a block's rows from wherever they are; NaN where there is no source."""
    rows = np.full((len(block), *target.shape[1:]), np.nan, target.dtype)
    places: dict[Path, list[tuple[int, int]]] = defaultdict(list)
    for place, source in enumerate(block):
        if source is not None:
            places[source.path].append((place, source.row))
    for path, found in places.items():
        to, wanted = np.array(found).T
        file, _ = open_source(path)
        try:
            rows[to] = read_rows(file[target.name], wanted, str(target.dtype))
        except OSError as error:  # HDF5's checksum failed
            raise damaged(path) from error
    return rows
