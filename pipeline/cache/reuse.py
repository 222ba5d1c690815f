"""Copy rows of other caches with the same features: of a renamed folder, or of another set.

They are committed as shards, like computed rows. Other files are only read; what is damaged or
open elsewhere is passed over.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.checksums import find_chunk_damage
from pipeline.cache.config import ViewPlan
from pipeline.cache.file import CHUNK_BYTES, FeatureTable, RowKey, cache_files, read_all_rows
from pipeline.cache.row_index import RowIndex
from pipeline.cache.shards import ShardFolder
from pipeline.errors import DamagedError, PipelineError
from pipeline.spec import FeatureSpec
from pipeline.text import counted, printable

SHARD_BYTES = 4 * CHUNK_BYTES

Block = tuple[str, list[RowKey], npt.NDArray[Any]]  # layer key, rows, their features

log = logging.getLogger("pipeline")


def find_sources(
    folder: Path,
    *,
    spec: FeatureSpec,
    besides: Path,
    accepts_engine: Callable[[str], bool] = lambda name: True,
) -> Iterator[FeatureTable]:
    """Yield the readable caches of a folder with features of a spec, the newest first.

    ``accepts_engine`` : called with the name of the engine that computed a cache.
    """
    for path in (*cache_files(folder), *cache_files(folder / "images")):
        if path.resolve() == besides.resolve():
            continue
        try:
            table = read_all_rows(path)
        except (PipelineError, OSError) as error:
            log.debug("%s", error)
            continue
        engine = table.document["engine"] or {}
        has_engine = {"name", "version"} <= engine.keys()
        if table.spec == spec and has_engine and accepts_engine(str(engine["name"])):
            yield table


def copy_rows(
    missing: Mapping[str, Sequence[RowKey]],
    sources: Iterable[FeatureTable],
    shards: ShardFolder,
    plan: ViewPlan,
) -> None:
    """Commit the rows that other caches have, to ``shards``.

    ``missing`` : layer key -> rows. Views are copied only if they are drawn as in ``plan``.
    """
    remaining = {layer: list(dict.fromkeys(keys)) for layer, keys in missing.items()}
    for table in sources:
        if not any(remaining.values()):
            return
        count = 0
        for layer, keys, features in _pass_over_errors(_read_rows(table, remaining, plan)):
            shards.commit(keys, {layer: features}, engine=table.document["engine"])
            copied = set(keys)
            remaining[layer] = [key for key in remaining[layer] if key not in copied]
            count += len(keys)
        if count:
            log.info("%s copied from %s", counted(count, "row"), printable(table.path))


def _pass_over_errors(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield the blocks before the first error in reading them; errors in their use are raised."""
    while True:
        try:
            block = next(blocks)
        except StopIteration:
            return
        except (PipelineError, OSError) as error:
            log.debug("%s", error)
            return
        yield block


def _read_rows(
    table: FeatureTable, wanted: Mapping[str, Sequence[RowKey]], plan: ViewPlan
) -> Iterator[Block]:
    """Yield blocks of the wanted rows that a table has."""
    try:
        has_same_views = ViewPlan.from_document(table.document).augmentation == plan.augmentation
    except ValueError:
        has_same_views = False
    index = RowIndex(table)
    for layer, keys in wanted.items():
        rows = index.sources[layer]
        found = [key for key in keys if key in rows and (has_same_views or not key.view)]
        if not found:
            continue
        if damages := find_chunk_damage(table.path, layer, [rows[key].row for key in found]):
            raise DamagedError(f"{printable(table.path)}: {damages[0].what}")
        row_bytes = int(np.prod(table.layers[layer])) * np.dtype(table.spec.dtype).itemsize
        size = max(1, SHARD_BYTES // row_bytes)
        for start in range(0, len(found), size):
            block = found[start : start + size]
            numbers = np.array([rows[key].row for key in block])
            yield layer, block, table.features(layer, numbers).astype(table.spec.dtype)
