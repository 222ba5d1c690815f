"""Features that a cache holds already, found by the content of an image."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable, read_table
from pipeline.errors import PipelineError
from pipeline.models.bundle import Bundle

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 64  # 32 MiB of InceptionV3's maps, a chunk or two of the file


class KnownFeatures:
    """The rows of all caches that hold what a bundle takes: its fingerprint and its layer.

    Looked at are the cache that it was trained on, where it was then, and those of a folder.
    """

    def __init__(self, bundle: Bundle, cache_dir: Path) -> None:
        self._layer = bundle.layer
        self._rows: list[tuple[FeatureTable, dict[bytes, int]]] = []  # digest -> row of the table
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
                keys = enumerate(table.columns.row_keys())
                rows = {key.digest: row for row, key in keys if key.view == 0}
                self._rows.append((table, rows))

    def features(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], npt.NDArray[np.float32]]]:
        """Read what is known of some images, in blocks: their digests, (b, *shape) float32."""
        left = set(digests)
        for table, rows in self._rows:
            found = sorted((rows[digest], digest) for digest in left & rows.keys())
            left -= rows.keys()
            for start in range(0, len(found), ROWS_AT_ONCE):
                block = found[start : start + ROWS_AT_ONCE]
                places = np.array([row for row, _ in block])
                yield [digest for _, digest in block], table.features(self._layer, places)
