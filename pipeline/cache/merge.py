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
    Source,
    columns_of,
    publish,
    read_features,
)
from pipeline.cache.keys import RowKey
from pipeline.cache.shards import Shard
from pipeline.images.scan import ImageRef, ImageSet


class KnownRows:
    """Every row that need not be computed, found by content.

    Attributes
    ----------
    sources : layer key -> row key -> where its features stand.
    row_shapes : layer key -> shape of one row.
    engine : who computed them, None if there are none.
    """

    def __init__(self, table: FeatureTable | None, shards: Iterable[Shard]) -> None:
        self.sources: dict[str, dict[RowKey, Source]] = defaultdict(dict)
        self.row_shapes: dict[str, tuple[int, ...]] = {}
        self.engine: Mapping[str, str] | None = None
        if table is not None:
            self._add_table(table)
        for shard in shards:
            self._add_shard(shard)

    def has(self, layer: str, key: RowKey) -> bool:
        return key in self.sources[layer]

    def _add_table(self, table: FeatureTable) -> None:
        self.engine = table.document["engine"]
        keys = table.columns.keys()
        gone = np.flatnonzero(table.columns.labels == NO_FILE)
        for layer, shape in table.layers.items():
            self.row_shapes[layer] = shape
            empty = np.isnan(read_features(table, layer, gone))
            never_had = set(gone[empty.all(axis=tuple(range(1, empty.ndim)))].tolist())
            self.sources[layer] = {
                key: Source(table.path, row) for row, key in enumerate(keys) if row not in never_had
            }

    def _add_shard(self, shard: Shard) -> None:
        self.engine = shard.engine
        for layer, shape in shard.row_shapes.items():
            self.row_shapes[layer] = shape
            for row, key in enumerate(shard.keys):
                self.sources[layer].setdefault(key, Source(shard.path, row))


class _Row(NamedTuple):
    """A row of the file to be: its key, its path, and its image, None where that is gone."""

    key: RowKey
    path: bytes
    ref: ImageRef | None


def publish_rows(
    path: Path,
    *,
    table: FeatureTable | None,
    known: KnownRows,
    images: ImageSet,
    refs: Sequence[ImageRef],
    document: Mapping[str, Any],
) -> bool:
    """Write the cache file anew from what is known; False if it says all that already.

    Rows keep their order; new ones come after them; those whose image is gone keep their
    features under the label -1.
    """
    layers = sorted(known.row_shapes)
    rows = _arranged(table, refs)
    columns = columns_of(
        labels=[NO_FILE if row.ref is None else row.ref.label for row in rows],
        splits=[0 if row.ref is None else row.ref.split for row in rows],
        paths=[row.path for row in rows],
        digests=[row.key.digest for row in rows],
        views=[row.key.view for row in rows],
    )
    if table is not None and _says_so_already(table, columns, images, layers, document):
        return False
    publish(
        path,
        document={**document, "engine": known.engine},
        classes=images.classes,
        columns=columns,
        layers={
            layer: (known.row_shapes[layer], [known.sources[layer].get(row.key) for row in rows])
            for layer in layers
        },
    )
    return True


def _arranged(table: FeatureTable | None, refs: Sequence[ImageRef]) -> list[_Row]:
    """The rows of the file to be: those that are there, each with its image, then the new ones."""
    waiting: dict[RowKey, dict[bytes, ImageRef]] = defaultdict(dict)
    for ref in refs:
        waiting[RowKey(ref.digest)][ref.path] = ref
    present = set(waiting)
    rows: list[_Row] = []
    if table is not None:
        for key, path in zip(table.columns.keys(), table.columns.paths.tolist(), strict=True):
            rows.append(_Row(key, path, waiting[key].pop(path, None)))
    for place, row in enumerate(rows):
        if row.ref is None and waiting[row.key]:  # the same content under another name
            _, ref = waiting[row.key].popitem()
            rows[place] = _Row(row.key, ref.path, ref)
    return [
        # An image that is gone keeps its row, a further copy of one that is there does not.
        *(row for row in rows if row.ref is not None or row.key not in present),
        *(
            _Row(RowKey(ref.digest), ref.path, ref)
            for ref in refs
            if ref.path in waiting[RowKey(ref.digest)]
        ),
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
        and all(table.document.get(name) == document[name] for name in ("set", "root"))
        and columns.equals(table.columns)
    )
