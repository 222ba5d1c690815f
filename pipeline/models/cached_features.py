"""Look up cached features of images by the digest of their files."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.cache.config import ViewPlan
from pipeline.cache.file import FeatureTable, RowKey, read_table
from pipeline.errors import PipelineError
from pipeline.models.bundle import Bundle

log = logging.getLogger(__name__)

ROWS_PER_BLOCK = 64  # 32 MiB of InceptionV3's maps, a chunk or two of the file


class CachedFeatures:
    """Cached features of a bundle's layer: in its training cache and in those in ``cache_dir``."""

    def __init__(self, bundle: Bundle, cache_dir: Path) -> None:
        self._layer = bundle.layer
        self._plan = bundle.plan
        self._rows: list[tuple[FeatureTable, dict[bytes, list[int]]]] = []  # digest -> view rows
        for table in _tables(bundle, cache_dir):
            self._rows.append((table, self._rows_of(table)))

    def _rows_of(self, table: FeatureTable) -> dict[bytes, list[int]]:
        """Return digest -> rows of its views, for the images that have every view in a table."""
        if self._plan.views and not has_same_augmentation(table, self._plan):
            return {}
        rows = {key: row for row, key in enumerate(table.columns.row_keys())}
        numbers = range(self._plan.views + 1)
        view_rows = {
            digest: [rows.get(RowKey(digest, view), -1) for view in numbers]
            for digest, view in rows
            if view == 0
        }
        return {digest: indices for digest, indices in view_rows.items() if -1 not in indices}

    def features(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], npt.NDArray[np.float32]]]:
        """Yield blocks: b digests and features (V, b, *shape) float32, view 0 (the image) first."""
        remaining = set(digests)
        block_size = max(1, ROWS_PER_BLOCK // (self._plan.views + 1))
        for table, rows in self._rows:
            cached = sorted((rows[digest], digest) for digest in remaining & rows.keys())
            remaining -= rows.keys()
            for start in range(0, len(cached), block_size):
                block = cached[start : start + block_size]
                indices = np.array([rows for rows, _ in block]).T  # (V, b)
                features = table.features(self._layer, indices.ravel())
                yield (
                    [digest for _, digest in block],
                    features.reshape(*indices.shape, *features.shape[1:]),
                )


def training_table(bundle: Bundle, cache_dir: Path) -> FeatureTable | None:
    """Return the cache of the training, which may have moved to ``cache_dir``; None if it is gone.

    It may contain images that were added since.
    """
    tables = _tables(bundle, cache_dir)
    return next((each for each in tables if each.document["set"] == bundle.document["set"]), None)


def _tables(bundle: Bundle, cache_dir: Path) -> Iterator[FeatureTable]:
    """Yield the caches with a bundle's features, that of the training first."""
    trained_on = Path(str(bundle.document["cache"]))
    pattern = f"*-{bundle.spec.fingerprint}.h5"
    paths = [trained_on, *sorted(cache_dir.glob(pattern)), *cache_dir.glob(f"images/{pattern}")]
    for path in {path.resolve(): path for path in paths if path.is_file()}.values():
        try:
            table = read_table(path)
        except PipelineError as error:
            log.warning("%s; until then its images are computed again", error)
            continue
        if table.spec == bundle.spec and table.layers.get(bundle.layer) == bundle.shape:
            yield table


def has_same_augmentation(table: FeatureTable, plan: ViewPlan) -> bool:
    """Return whether a cache's views have the augmentation of a plan."""
    try:
        return ViewPlan.from_document(table.document).augmentation == plan.augmentation
    except ValueError:
        return False
