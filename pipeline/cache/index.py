"""The rows that need not be computed, in the cache file and its shards, found by content."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.cache.file import NO_FILE, FeatureTable
from pipeline.cache.keys import RowKey, Source
from pipeline.cache.shards import Shard

DamagedRows = Mapping[str, frozenset[int]]  # layer key -> rows of the file to compute again


class RowIndex:
    """Where the features of each row are; the file's before those of shards.

    Attributes
    ----------
    sources : layer key -> row key -> where its features are.
    row_shapes : layer key -> shape of one row.
    engine : who computed them, None if there are none: the first one's name, version and measured
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
