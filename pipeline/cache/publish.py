"""Find rows by content in the cache file and its shards; write a new file from both."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.cache.checksums import InvalidChecksumsError, read_checksums, write_checksums
from pipeline.cache.chunks import HDF5_LOCK, write_chunk
from pipeline.cache.file import (
    LIBVER,
    NO_FILE,
    Columns,
    FeatureTable,
    Row,
    RowKey,
    Source,
    create_features,
    make_columns,
    read_rows,
)
from pipeline.cache.hdf5 import damaged_error, open_hdf5
from pipeline.cache.row_index import RowIndex
from pipeline.durable import DiskFile, write_durably
from pipeline.images.scan import NO_SPLIT

MAX_OPEN_FILES = 16  # sources at a time
# A change of these needs a new file.
SET_FIELDS = ("set", "root", "folders", "task", "views", "tta", "augmentation")

Layers = Mapping[str, tuple[tuple[int, ...], Sequence[Source | None]]]  # row shape, row sources
Opened = tuple[h5py.File, Mapping[tuple[str, int], str]]  # file, (dataset, row) -> SHA-256


def publish_rows(
    path: Path,
    *,
    table: FeatureTable | None,
    index: RowIndex,
    rows: Sequence[Row],
    classes: tuple[str, ...],
    layers: Sequence[str],
    document: Mapping[str, Any],
) -> None:
    """Write the cache file, with its rows in the order of `arrange_rows`, unless it is current."""
    layers = sorted(index.row_shapes.keys() & set(layers))  # shards may have others
    rows = arrange_rows(table, rows)
    columns = make_columns(
        labels=[row.label for row in rows],
        splits=[row.split for row in rows],
        paths=[row.path for row in rows],
        digests=[row.key.digest for row in rows],
        views=[row.key.view for row in rows],
        targets=[row.targets for row in rows],
        groups=[row.group for row in rows],
    )
    sources: dict[str, list[Source | None]] = {}
    for layer in layers:
        by_key = index.sources[layer]  # a row lacks a source only if its image is gone
        sources[layer] = [
            by_key.get(row.key) if row.label == NO_FILE else by_key[row.key] for row in rows
        ]
    if (
        table is not None
        and table.classes == classes
        and sorted(table.layers) == layers
        and all(table.document.get(name) == document.get(name) for name in SET_FIELDS)
        and columns.equals(table.columns)
        # A shard of a killed repair replaces rows of the file.
        and {row.path for rows in sources.values() for row in rows if row is not None} <= {path}
    ):
        return
    publish(
        path,
        document={**document, "engine": index.engine},
        classes=classes,
        columns=columns,
        layers={layer: (index.row_shapes[layer], sources[layer]) for layer in layers},
    )


def arrange_rows(table: FeatureTable | None, requested: Sequence[Row]) -> list[Row]:
    """Return the old file's rows in order, with label -1 for gone images, then new rows."""
    waiting = {(row.key, row.path): row for row in requested}
    rows: list[Row] = []
    gone: list[int] = []
    if table is not None:
        for place in zip(table.columns.row_keys(), table.columns.paths.tolist(), strict=True):
            if (row := waiting.pop(place, None)) is None:
                gone.append(len(rows))
                row = Row(*place, NO_FILE, NO_SPLIT)
            rows.append(row)
    if gone:
        renamed: dict[RowKey, list[Row]] = defaultdict(list)
        for row in waiting.values():
            renamed[row.key].append(row)
        for number in gone:
            if others := renamed.get(rows[number].key):
                rows[number] = others.pop()
                del waiting[rows[number].key, rows[number].path]
        # A gone image keeps its row; a gone copy of an existing image does not.
        present = {row.key for row in requested}
        rows = [row for row in rows if row.label != NO_FILE or row.key not in present]
    return [*rows, *waiting.values()]


def publish(
    path: Path,
    *,
    document: Mapping[str, Any],
    classes: Sequence[str],
    columns: Columns,
    layers: Layers,
) -> None:
    """Write a complete cache file under a temporary name and rename it to ``path``.

    ``layers`` : layer key -> (shape of one row, source of each row; rows without one become NaN).
    """
    dtype = document["spec"]["dtype"]

    def write(stream: DiskFile) -> None:
        # Thousands of open shards exceed the system's limit; h5py closes those dropped here.
        open_source = lru_cache(MAX_OPEN_FILES)(_open_source)
        with h5py.File(stream, "w", libver=LIBVER) as file:
            file["spec"] = json.dumps(document)
            file.create_dataset("classes", data=list(classes), dtype=h5py.string_dtype())
            for name, values in columns.stored().items():
                file[name] = values
            for layer, (row_shape, sources) in layers.items():
                target = create_features(file, layer, row_shape, len(columns), dtype)
                size = target.chunks[0]
                for start in range(0, len(sources), size):
                    block = sources[start : start + size]
                    if not _copy_whole_chunk(target, start, block, open_source):
                        write_chunk(target, start, _gather(target, block, open_source))
                    stream.check()  # on a full disk the rest would accumulate in memory
        stream.check()  # an incomplete file gets no checksums
        write_checksums(stream)

    rows = (row for _, sources in layers.values() for row in sources if row is not None)
    needs = sum(path.stat().st_size for path in {row.path for row in rows})  # size of all sources
    write_durably(path, write, needs=needs)


def _open_source(path: Path) -> Opened:
    """Open a cache file or shard, with the SHA-256 of its chunks."""
    file = open_hdf5(path)
    try:
        chunks = read_checksums(path).chunks
    except InvalidChecksumsError:  # a file of another program
        return file, {}
    return file, {(chunk.dataset, chunk.first_row): chunk.sha256 for chunk in chunks}


def _copy_whole_chunk(
    target: h5py.Dataset,
    start: int,
    block: Sequence[Source | None],
    open_source: Callable[[Path], Opened],
) -> bool:
    """Copy a block without decompressing if it is exactly one chunk of one file."""
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
    with HDF5_LOCK:
        mask, data = source.id.read_direct_chunk((first.row, *zeros))
    # HDF5 does not check its own checksum unless it decompresses a chunk.
    if sha256(data).hexdigest() != expected:
        raise damaged_error(first.path, name)
    with HDF5_LOCK:
        target.id.write_direct_chunk((start, *zeros), data, mask)
    return True


def _gather(
    target: h5py.Dataset, block: Sequence[Source | None], open_source: Callable[[Path], Opened]
) -> npt.NDArray[Any]:
    """Read a block's rows from their sources; NaN for a row without one."""
    rows = np.full((len(block), *target.shape[1:]), np.nan, target.dtype)
    pairs: dict[Path, list[tuple[int, int]]] = defaultdict(list)  # row of the block, of the file
    for row, source in enumerate(block):
        if source is not None:
            pairs[source.path].append((row, source.row))
    for path, numbers in pairs.items():
        block_rows, file_rows = np.array(numbers).T
        file, _ = open_source(path)
        try:
            rows[block_rows] = read_rows(file[target.name], file_rows, str(target.dtype))
        except OSError as error:  # HDF5's checksum failed
            if error.errno:
                raise
            raise damaged_error(path, target.name) from error
    return rows
