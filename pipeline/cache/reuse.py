"""Copy rows of other caches with the same features: of a renamed folder, or of another set.

They are committed as shards, like computed rows. Other files are only read; what is damaged or
open elsewhere is passed over, with a warning.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.checksums import find_damaged_rows
from pipeline.cache.content import FOLDER
from pipeline.cache.file import CHUNK_BYTES, RowKey, cache_files, read_all_rows, read_rows
from pipeline.cache.hdf5 import damaged_error, open_hdf5
from pipeline.cache.row_index import RowIndex
from pipeline.cache.shards import ShardFolder
from pipeline.errors import BadDataError, PipelineError
from pipeline.spec import FeatureSpec
from pipeline.text import counted, printable

SHARD_BYTES = 4 * CHUNK_BYTES

Rows = npt.NDArray[np.int64]
Block = tuple[str, list[RowKey], npt.NDArray[Any]]  # layer key, rows, their features

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class OtherRows:
    """The rows of another cache file, or of a shard of an interrupted run."""

    path: Path
    index: RowIndex
    augmentation: Mapping[str, Any] | None
    read: Callable[[str, Rows], npt.NDArray[Any]]  # layer key, row numbers -> features


def find_other_rows(
    *,
    spec: FeatureSpec,
    besides: Path,
    accepts_engine: Callable[[str], bool] = lambda name: True,
) -> Iterator[OtherRows]:
    """Yield the readable caches beside a cache file with features of a spec, the newest first.

    ``accepts_engine`` : called with the name of the engine that computed a cache.
    """
    folder = besides.parent
    files = (*cache_files(folder), *cache_files(folder / FOLDER))
    paths = [(path, _read_file) for path in files]
    paths += [(parts.with_suffix(".h5"), _read_shards) for parts in folder.glob("*.parts")]
    for path, read in paths:
        if path.resolve() == besides.resolve():
            continue
        try:
            for other in read(path, spec):
                engine = other.index.engine or {}
                has_engine = {"name", "version"} <= engine.keys()
                if has_engine and accepts_engine(str(engine["name"])):
                    yield other
        except (PipelineError, OSError) as error:
            _warn_unless_other_file(error)


def _warn_unless_other_file(error: PipelineError | OSError) -> None:
    """Warn that a cache is passed over, but not about files that are no caches."""
    level = logging.DEBUG if type(error) is BadDataError else logging.WARNING
    log.log(level, "passed over: %s", error)


def _read_file(path: Path, spec: FeatureSpec) -> Iterator[OtherRows]:
    table = read_all_rows(path)
    if table.spec.fingerprint == spec.fingerprint:
        yield OtherRows(path, RowIndex(table), table.document.get("augmentation"), table.features)


def _read_shards(path: Path, spec: FeatureSpec) -> Iterator[OtherRows]:
    for shard in ShardFolder(path, spec).read():
        read = partial(_read_from_shard, shard.path)
        yield OtherRows(shard.path, RowIndex(None, [shard]), shard.augmentation, read)


def _read_from_shard(path: Path, layer: str, rows: Rows) -> npt.NDArray[Any]:
    with open_hdf5(path) as file:
        return read_rows(file[f"features/{layer}"], rows)


def copy_rows(
    missing: Mapping[str, Sequence[RowKey]],
    others: Iterable[OtherRows],
    shards: ShardFolder,
    *,
    recorded: Mapping[str, Any] | None,
) -> None:
    """Commit the rows that other caches have, to ``shards``.

    ``missing`` : layer key -> rows. Views are copied only if they are drawn as those of ``shards``,
    and rows only of one engine: the ``recorded`` one, else that of the first cache.
    """
    remaining = {layer: list(dict.fromkeys(keys)) for layer, keys in missing.items()}
    for other in others:
        engine = other.index.engine or {}
        if recorded and recorded["name"] != engine["name"]:
            continue
        count = 0
        for layer, keys, features in _read_blocks(other, remaining, shards.augmentation):
            stored = features.astype(shards.spec.dtype)
            shards.commit(keys, {layer: stored}, engine=engine, copied=True)
            recorded = engine
            count += len(keys)
            copied = set(keys)
            remaining[layer] = [key for key in remaining[layer] if key not in copied]
        if count:
            log.info("%s copied from %s", counted(count, "row"), printable(other.path))
        if not any(remaining.values()):
            return


def _read_blocks(
    other: OtherRows,
    wanted: Mapping[str, Sequence[RowKey]],
    augmentation: Mapping[str, Any] | None,
) -> Iterator[Block]:
    """Yield the wanted rows of a cache in blocks, until one cannot be read."""
    has_same_views = other.augmentation == augmentation
    for layer, keys in wanted.items():
        sources = other.index.sources[layer]
        found = [key for key in keys if key in sources and (has_same_views or not key.view)]
        try:
            damaged = find_damaged_rows(other.path, layer, [sources[key].row for key in found])
            if damaged:
                _warn_unless_other_file(damaged_error(other.path, f"features/{layer}"))
            intact = [key for key in found if sources[key].row not in damaged]
            row_bytes = 4 * int(np.prod(other.index.row_shapes.get(layer, ())))  # float32
            size = max(1, SHARD_BYTES // row_bytes)
            for start in range(0, len(intact), size):
                block = intact[start : start + size]
                rows = np.array([sources[key].row for key in block])
                yield layer, block, other.read(layer, rows)
        except (PipelineError, OSError) as error:
            _warn_unless_other_file(error)
            return
