"""Features that a cache holds already, found by the content of an image."""

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

ROWS_AT_ONCE = 64  # 32 MiB of InceptionV3's maps, a chunk or two of the file


class CachedFeatures:
    """What a bundle takes, in the cache that it was trained on and in those of a folder."""

    def __init__(self, bundle: Bundle, cache_dir: Path) -> None:
        self._layer = bundle.layer
        self._plan = bundle.plan
        self._rows: list[tuple[FeatureTable, dict[bytes, list[int]]]] = []  # digest -> its rows
        trained_on = Path(str(bundle.document["cache"]))
        pattern = f"*-{bundle.spec.fingerprint}.h5"
        paths = [trained_on, *sorted(cache_dir.glob(pattern)), *cache_dir.glob(f"images/{pattern}")]
        for path in {path.resolve(): path for path in paths if path.is_file()}.values():
            try:
                table = read_table(path)
            except PipelineError as error:
                log.warning("%s; until then its images are computed anew", error)
                continue
            if table.spec == bundle.spec and table.layers.get(bundle.layer) == bundle.shape:
                self._rows.append((table, self._rows_of(table)))

    def _rows_of(self, table: FeatureTable) -> dict[bytes, list[int]]:
        """Of each image that a table has all views of, their rows."""
        if self._plan.views and not has_same_augmentation(table, self._plan):
            return {}
        rows = {key: row for row, key in enumerate(table.columns.row_keys())}
        numbers = range(self._plan.views + 1)
        found = {
            digest: [rows.get(RowKey(digest, view), -1) for view in numbers]
            for digest, view in rows
            if view == 0
        }
        return {digest: places for digest, places in found.items() if -1 not in places}

    def features(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], npt.NDArray[np.float32]]]:
        """Read what is known, in blocks: digests, (V, b, *shape) float32, view 0 the image."""
        left = set(digests)
        at_once = max(1, ROWS_AT_ONCE // (self._plan.views + 1))
        for table, rows in self._rows:
            found = sorted((rows[digest], digest) for digest in left & rows.keys())
            left -= rows.keys()
            for start in range(0, len(found), at_once):
                block = found[start : start + at_once]
                places = np.array([rows for rows, _ in block]).T  # (V, b)
                features = table.features(self._layer, places.ravel())
                yield (
                    [digest for _, digest in block],
                    features.reshape(*places.shape, *features.shape[1:]),
                )


def has_same_augmentation(table: FeatureTable, plan: ViewPlan) -> bool:
    """Whether a cache's views, however many, are drawn as a plan's are."""
    try:
        return ViewPlan.from_document(table.document).augmentation == plan.augmentation
    except ValueError:
        return False
