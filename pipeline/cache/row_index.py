"""Which rows a cache has: in its file, and in the shards of an interrupted run."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.cache.file import NO_FILE, FeatureTable, RowKey, Source
from pipeline.cache.shards import Shard

DamagedRows = Mapping[str, frozenset[int]]  # layer key -> rows of the file to compute again


class RowIndex:
    """The source of each row's features by layer and row key; the file precedes the shards.

    ``engine`` : name, version and measured error of the first engine that computed rows; ``also``
    in it lists other engines and versions. None without rows.
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
        """Add the rows of a file, except damaged ones and those of gone images that are all NaN."""
        self._add_engine(table.document["engine"])
        keys = table.columns.row_keys()
        gone = np.flatnonzero(table.columns.labels == NO_FILE)
        for layer, shape in table.layers.items():
            self.row_shapes[layer] = shape
            damaged_rows = damaged.get(layer, frozenset())
            readable = np.setdiff1d(gone, list(damaged_rows))
            nan = np.isnan(table.features(layer, readable))
            empty_rows = readable[nan.all(axis=tuple(range(1, nan.ndim)))]
            excluded = {*damaged_rows, *empty_rows.tolist()}
            self.sources[layer] = {
                key: Source(table.path, row) for row, key in enumerate(keys) if row not in excluded
            }

    def _add_engine(self, engine: Mapping[str, Any] | None) -> None:
        """Record an engine and its ``also``: the first in ``engine``, others in its ``also``."""
        if engine is None:
            return
        if self.engine is None:
            self.engine = engine
            return
        also = list(self.engine.get("also", ()))
        names = {(other["name"], other["version"]) for other in (self.engine, *also)}
        for other in ({**engine, "also": ()}, *engine.get("also", ())):
            if (other["name"], other["version"]) not in names:
                also.append({name: value for name, value in other.items() if name != "also"})
        self.engine = {**self.engine, "also": also} if also else self.engine
