"""What a cache holds already, file and shards taken together, and how it becomes one file."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.cache.file import (
    NO_FILE,
    Columns,
    FeatureTable,
    columns_of,
    read_features,
)
from pipeline.cache.keys import RowKey
from pipeline.cache.publish import Source, publish
from pipeline.cache.shards import Shard
from pipeline.cache.view_plan import ViewPlan
from pipeline.images.scan import ImageRef, ImageSet


class Row(NamedTuple):
    """A row of the file to be: its key, its path, and its image, None where that is gone."""

    key: RowKey
    path: bytes
    ref: ImageRef | None


Distrusted = Mapping[str, frozenset[int]]  # layer key -> rows of the file that are damaged


class KnownRows:
    """Every row that need not be computed, found by content.

    Attributes
    ----------
    sources : layer key -> row key -> where its features stand.
    row_shapes : layer key -> shape of one row.
    engine : who computed them, None if there are none: the first one's name, version and measured
        error; where the user allowed others, or its version changed, those under ``also``.
    """

    def __init__(
        self,
        table: FeatureTable | None,
        shards: Iterable[Shard],
        distrusted: Distrusted | None = None,
        donors: Sequence[FeatureTable] = (),
    ) -> None:
        self.sources: dict[str, dict[RowKey, Source]] = defaultdict(dict)
        self.row_shapes: dict[str, tuple[int, ...]] = {}
        self.engine: Mapping[str, Any] | None = None
        if table is not None:
            self._add_table(table, distrusted or {})
        for shard in shards:
            self._add_shard(shard)
        for donor in donors:
            self._add_donor(donor)

    @staticmethod
    def fitting(
        donors: Iterable[FeatureTable], recorded: Mapping[str, Any] | None
    ) -> list[FeatureTable]:
        """Those of other files that may give rows: computed by the recorded engine, or, for an
        empty cache, all by one."""
        fitting = []
        for table in donors:
            engine = table.document["engine"]
            if not engine or "also" in engine:
                continue
            recorded = recorded or engine
            if engine["name"] == recorded["name"]:
                fitting.append(table)
        return fitting

    def has(self, layer: str, key: RowKey) -> bool:
        return key in self.sources[layer]

    def source(self, layer: str, row: Row) -> Source | None:
        """Where a row's features stand; None only if its image is gone and never had the layer."""
        sources = self.sources[layer]
        return sources.get(row.key) if row.ref is None else sources[row.key]

    def _add_donor(self, table: FeatureTable) -> None:
        """Take another file's rows of the images as they are."""
        self._add_engine(table.document["engine"])
        there = KnownRows(table, ())
        for layer, sources in there.sources.items():
            plain = {key: source for key, source in sources.items() if key.view == 0}
            self.sources[layer] = {**plain, **self.sources[layer]}
            self.row_shapes.setdefault(layer, there.row_shapes[layer])

    def _add_table(self, table: FeatureTable, distrusted: Distrusted) -> None:
        self._add_engine(table.document["engine"])
        keys = table.columns.row_keys()
        gone = np.flatnonzero(table.columns.labels == NO_FILE)
        for layer, shape in table.layers.items():
            self.row_shapes[layer] = shape
            bad = distrusted.get(layer, frozenset())
            readable = np.setdiff1d(gone, list(bad))
            empty = np.isnan(read_features(table, layer, readable))
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

    def _add_shard(self, shard: Shard) -> None:
        self._add_engine(shard.engine)
        for layer, shape in shard.row_shapes.items():
            self.row_shapes[layer] = shape
            for row, key in enumerate(shard.keys):
                self.sources[layer].setdefault(key, Source(shard.path, row))


def publish_rows(
    path: Path,
    *,
    table: FeatureTable | None,
    known: KnownRows,
    images: ImageSet,
    refs: Sequence[ImageRef],
    plan: ViewPlan,
    layers: Sequence[str],
    document: Mapping[str, Any],
) -> bool:
    """Write the cache file anew from what is known; False if it says all that already.

    Rows keep their order; new ones come after them; those whose image is gone keep their
    features under the label -1.
    """
    layers = sorted(known.row_shapes.keys() & set(layers))  # shards may hold others, half done
    rows = _arranged(table, refs, plan)
    columns = columns_of(
        labels=[NO_FILE if row.ref is None else row.ref.label for row in rows],
        splits=[0 if row.ref is None else row.ref.split for row in rows],
        paths=[row.path for row in rows],
        digests=[row.key.digest for row in rows],
        views=[row.key.view for row in rows],
    )
    sources = {layer: [known.source(layer, row) for row in rows] for layer in layers}
    if (
        table is not None
        and _says_so_already(table, columns, images, layers, document)
        # A shard may mend rows of the file, and be of a run that was killed before it published.
        and all(found is None or found.path == path for each in sources.values() for found in each)
    ):
        return False
    publish(
        path,
        document={**document, "engine": known.engine},
        classes=images.classes,
        columns=columns,
        layers={layer: (known.row_shapes[layer], sources[layer]) for layer in layers},
    )
    return True


def _arranged(table: FeatureTable | None, refs: Sequence[ImageRef], plan: ViewPlan) -> list[Row]:
    """The rows of the file to be: those that are there, each with its image, then the new ones."""
    waiting: dict[RowKey, dict[bytes, ImageRef]] = defaultdict(dict)
    wanted = [(RowKey(ref.digest, view), ref) for ref in refs for view in plan.of(ref)]
    for key, ref in wanted:
        waiting[key][ref.path] = ref
    present = set(waiting)
    rows: list[Row] = []
    if table is not None:
        for key, path in zip(table.columns.row_keys(), table.columns.paths.tolist(), strict=True):
            rows.append(Row(key, path, waiting[key].pop(path, None)))
    for place, row in enumerate(rows):
        if row.ref is None and waiting[row.key]:  # the same content under another name
            _, ref = waiting[row.key].popitem()
            rows[place] = Row(row.key, ref.path, ref)
    return [
        # An image that is gone keeps its row, a further copy of one that is there does not.
        *(row for row in rows if row.ref is not None or row.key not in present),
        *(Row(key, ref.path, ref) for key, ref in wanted if ref.path in waiting[key]),
    ]


def _says_so_already(
    table: FeatureTable,
    columns: Columns,
    images: ImageSet,
    layers: Sequence[str],
    document: Mapping[str, Any],
) -> bool:
    return (
        table.classes == images.classes
        and sorted(table.layers) == layers
        and all(
            table.document.get(name) == document.get(name)
            for name in ("set", "root", "views", "tta", "augmentation")
        )
        and columns.equals(table.columns)
    )
