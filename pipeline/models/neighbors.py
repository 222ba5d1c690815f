"""The cached images that are most similar to an image, and the distance to them."""

import logging
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable
from pipeline.errors import BadDataError
from pipeline.heads.inputs import PIXELS_PER_SIDE, flatten_or_pool, shrink_images
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION
from pipeline.text import printable

# Neighbors that a distance averages. AUROC of a class that was left out, of cats and dogs and of
# textiles: 0.956 to 0.990 with 1, 0.963 to 0.995 with 10; with 50 it falls again for two of four.
NEAREST = 10
# 100,000 × 1,280 on 2 cores: an index takes 5 s, then 7 ms for one image instead of 300 ms, with a
# recall of 0.999. In batches both take 10 ms per image; faiss' exact index takes 42 ms.
INDEXED_ROWS = 100_000
ROWS_PER_LIST = 1000  # of the index; a tenth of its lists is searched
SEARCHED_SHARE = 10
TRAINING_ROWS = 50  # per list, for 4 rounds of k-means
BLOCK_VALUES = 1 << 24  # 64 MiB of features are read at a time

Features = npt.NDArray[np.float32]
Distances = npt.NDArray[np.float64]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Neighbor:
    """A cached image similar to another.

    Attributes
    ----------
    path : relative to the image root of the cache.
    label : its class, as cached; of other tasks, its labels or its number.
    similarity : cosine of the angle between both images' features, -1 … 1.
    row : its number in the cache.
    """

    path: bytes
    label: str
    similarity: float
    row: int


class CachedNeighbors:
    """The images of a cached layer as unit vectors: the mean of each map, divided by its length.

    Pixels are averaged to a grid of 16 × 16 instead. Augmented views are left out. ``features``
    (N, D), if they are in memory, are those means or grids of the images.
    """

    def __init__(self, table: FeatureTable, layer: str, features: Features | None = None) -> None:
        self.table = table
        self.layer = layer
        self.rows = np.flatnonzero(table.columns.views == 0)  # (N,)
        self._features = features

    def subset(self, positions: npt.NDArray[np.int64]) -> Self:
        """Return the neighbors among some of the images, by their positions in ``rows`` (n,)."""
        part = copy(self)
        for name in ("_index", "_copies", "vectors"):
            vars(part).pop(name, None)
        part.rows = self.rows[positions]
        part._features = None if self._features is None else self._features[positions]
        return part

    def references(self, count: int) -> Self:
        """Return the images that distances are to: at most ``count``, those of lowest digests.

        SHA-256 digests are as good as random, and the choice hardly changes when images are added.
        """
        if len(self.rows) <= count:
            return self
        digests = np.ascontiguousarray(self.table.columns.digests[self.rows])
        first_bytes = digests.view(">u8").reshape(len(digests), -1)[:, 0]
        return self.subset(np.sort(np.argsort(first_bytes, kind="stable")[:count]))

    @cached_property
    def vectors(self) -> Features:
        """The unit vectors (N, D); raises BadDataError for features that are not finite."""
        return self.vectors_of(np.arange(len(self.rows)))

    def vectors_of(self, positions: npt.NDArray[np.int64]) -> Features:
        """Return unit vectors (n, D) of images, as `vectors`, without reading the others."""
        if self._features is not None:
            return _divide_by_length(self._features[positions])
        rows = self.rows[positions]
        size = max(1, BLOCK_VALUES // int(np.prod(self.table.layers[self.layer])))
        blocks = [rows[start : start + size] for start in range(0, len(rows), size)] or [rows]
        vectors = np.concatenate(
            [self.unit_vectors(self.table.features(self.layer, block)) for block in blocks]
        )
        if not np.isfinite(vectors).all():
            raise BadDataError(
                f"{printable(self.table.path)}: layer {printable(self.layer)} contains values that "
                f"are not finite; extract again with --dtype float32"
            )
        return vectors

    def unit_vectors(self, features: Features) -> Features:
        """Convert features of the layer: (B, *shape) -> (B, D)."""
        if self.table.spec.base == "pixels" and features.ndim == 4:
            vectors = shrink_images(features, PIXELS_PER_SIDE)
        else:
            vectors = flatten_or_pool(features, "pooled")
        return _divide_by_length(vectors)

    def find(
        self, features: Features, count: int, digests: Sequence[bytes] | None = None
    ) -> list[tuple[Neighbor, ...]]:
        """Return the most similar images of each image (B, *shape), the most similar first.

        With the SHA-256 digests of the B files, a cached image is no neighbor of itself. If several
        cached files are identical to it, all are listed.
        """
        similarities, found = self._search(self.unit_vectors(features), count + 1)
        neighbors = []
        for index, (values, positions) in enumerate(zip(similarities, found, strict=True)):
            key = digests[index] if digests is not None else b""
            if self._copies[key] == 1:
                is_other = np.array([self._digest(position) != key for position in positions])
                values, positions = values[is_other], positions[is_other]
            pairs = zip(values[:count].tolist(), self.rows[positions[:count]].tolist(), strict=True)
            neighbors.append(tuple(self._neighbor(row, value) for value, row in pairs))
        return neighbors

    def distances(self, features: Features, digests: Sequence[bytes]) -> Distances:
        """Return the distance (B,) of images (B, *shape) to the cached ones, 0 … 2; see `measure`.

        ``digests`` are the SHA-256 digests of the B files.
        """
        return self.measure(self.unit_vectors(features), digests)

    def measure(self, vectors: Features, digests: Sequence[bytes]) -> Distances:
        """Return the mean cosine distance of unit vectors (B, D) to the ten nearest images.

        Cached files that are identical to an image are left out: new images have none.
        """
        copies = max((self._copies[digest] for digest in digests), default=0)
        similarities, found = self._search(vectors, NEAREST + copies)
        for index, (digest, positions) in enumerate(zip(digests, found, strict=True)):
            if self._copies[digest]:
                same = [self._digest(position) == digest for position in positions]
                similarities[index, same] = -np.inf
        return mean_distances(similarities)

    def _search(self, vectors: Features, count: int) -> tuple[Distances, npt.NDArray[np.int64]]:
        """Return similarities and positions (B, n) of the most similar vectors, descending."""
        count = min(count, len(self.rows))
        if hasattr(self._index, "kneighbors"):
            squares, positions = self._index.kneighbors(vectors, count)
            similarities = 1 - squares.astype(np.float64) / 2
        else:
            similarities, positions = self._index.search(vectors, count)  # -1: too few in the lists
            similarities = np.where(positions < 0, -1, similarities).astype(np.float64)
        return similarities.clip(-1, 1), positions

    @cached_property
    def _index(self) -> Any:
        """An index of scikit-learn or, for many rows and if it is installed, of faiss."""
        if len(self.rows) >= INDEXED_ROWS:
            try:
                import faiss
            except ImportError:
                log.info(
                    "%s images are compared one by one, as faiss is missing: pip install -e "
                    "'.[index]'", f"{len(self.rows):,}",
                )  # fmt: skip
            else:
                lists = max(1, len(self.rows) // ROWS_PER_LIST)
                width, metric = self.vectors.shape[1], faiss.METRIC_INNER_PRODUCT
                index: Any = faiss.index_factory(width, f"IVF{lists},Flat", metric)
                index.cp.niter = 4
                step = max(1, len(self.rows) // (lists * TRAINING_ROWS))
                index.train(np.ascontiguousarray(self.vectors[::step]))
                index.add(self.vectors)
                index.nprobe = max(1, lists // SEARCHED_SHARE)
                return index
        from sklearn.neighbors import NearestNeighbors

        # of unit vectors half the squared distance is 1 - cosine; it needs no copy of all rows
        return NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(self.vectors)

    @cached_property
    def _copies(self) -> Counter[bytes]:
        """The number of cached files with each digest."""
        return Counter(map(self._digest, range(len(self.rows))))

    def _digest(self, position: int) -> bytes:
        return bytes(self.table.columns.digests[self.rows[position]].tobytes())

    def _neighbor(self, row: int, similarity: float) -> Neighbor:
        path = bytes(self.table.columns.paths[row])
        return Neighbor(path, label_text(self.table, row), similarity, row)


def mean_distances(similarities: npt.NDArray[np.floating[Any]]) -> Distances:
    """Return the mean distance (B,) to the ten nearest of images by their cosines (B, n).

    Images of cosine -∞ are left out.
    """
    nearest = highest(similarities).astype(np.float64)
    is_other = np.isfinite(nearest)
    sums = np.where(is_other, 1 - nearest, 0).sum(axis=1)
    return np.asarray(sums / np.maximum(is_other.sum(axis=1), 1))


def highest(similarities: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the ten highest of each row (B, n), in any order."""
    count = similarities.shape[1]
    if count <= NEAREST:
        return similarities
    return np.partition(similarities, count - NEAREST, axis=1)[:, -NEAREST:]


def _divide_by_length(features: Features) -> Features:
    """Return unit vectors (n, D)."""
    tiny = np.finfo(np.float32).tiny
    largest = np.abs(features).max(axis=1, keepdims=True)  # squares of float32 may overflow
    with np.errstate(invalid="ignore"):  # `vectors_of` refuses them
        vectors = features / np.maximum(largest, tiny)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, tiny), np.float32)


def label_text(table: FeatureTable, row: int) -> str:
    """Return a row's class, its labels ``sea|sun``, or its number; empty without labels."""
    columns = table.columns
    if table.task == CLASSES:
        return str(table.classes[columns.labels[row]])
    if table.task == MULTILABEL:
        return "|".join(table.classes[label] for label in np.flatnonzero(columns.targets[row]))
    return f"{columns.targets[row, 0]:.6g}" if table.task == REGRESSION else ""
