"""Duplicates in a cache: identical files, and near duplicates of one picture."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from pipeline.cores import usable_cores
from pipeline.evaluation.groups import Rows, connected_sets
from pipeline.evaluation.probe import (
    FeatureRows,
    Floats,
    OutlierLimit,
    fit_components,
    row_blocks,
    sample_rows,
)

# Distances relative to that of the tenth neighbour, on 2,000 cats and dogs and 600 textiles with
# VGG16, MobileNetV2 and 32-pixel images: copies at JPEG quality 70 or 90 % size up to 0.27, central
# 95 % crops of photographs up to 0.38, merely similar pictures from 0.47. No fixed cosine separates
# them: 1 - cosine of crops is up to 0.12, of the nearest other pictures 0.07 to 0.35.
NEIGHBOUR = 10  # all pairs of up to ten near copies are found
CLOSE = 0.45
COMPONENTS = 128  # principal components; comparing a pair costs as many products
FALSE_POSITIVES = 1.0  # pairs expected by chance, if features have few dimensions
SAME = 2e-3  # distance of identical pixels after rounding
MIN_ROWS = 2 * NEIGHBOUR  # with fewer, the tenth neighbour is not near
SAMPLE = 2000  # rows to search neighbours in: 0.1 s for 2,000 rows, linear in their number
MAX_ROWS = 20_000  # comparing all pairs takes some seconds; more rows are compared within cells
NEAREST_CELLS = 2  # of a row, whose rows it is compared with; see `_pairs_in_cells`
MAX_COMPARED = 4e9  # pairs of rows in cells: 30 s on 2 cores
MAX_COMPONENT_BYTES = 1 << 30  # of the components of all rows: two million rows
MAX_PAIRS = 10_000  # nobody inspects more; the closest are kept
BLOCK_VALUES = 1 << 22  # 16 MiB of similarities at a time and thread


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two rows that show the same picture, the lower row number first.

    Attributes
    ----------
    similarity : cosine of their centred features, 1 for identical files. It does not decide
        which images are near duplicates (see `find_duplicates`).
    exact : whether the files are identical.
    across : whether they are in different splits or folds, which inflates test accuracy.
    """

    first: int
    second: int
    similarity: float
    exact: bool
    across: bool


def duplicate_sets(pairs: Sequence[DuplicatePair], count: int) -> Rows:
    """Return the number (N,), from 0, of each row's set; the rows of a pair are in one set."""
    firsts, seconds = [pair.first for pair in pairs], [pair.second for pair in pairs]
    return connected_sets(firsts, seconds, count)


def find_duplicates(
    features: FeatureRows,
    keys: npt.NDArray[np.void],
    splits: npt.NDArray[np.integer],
    *,
    folds: npt.NDArray[np.integer] | None = None,
    note: Callable[[str], object] = lambda line: None,
    max_bytes: float = MAX_COMPONENT_BYTES,
) -> list[DuplicatePair]:
    """Return pairs of rows that show the same picture: across splits first, then by similarity.

    Each copy of a file is paired with the first one in its split, and the first ones of the splits
    with each other, so that n copies make about n pairs.

    Near duplicates are at most 0.45 times as far apart as each is from its tenth neighbour.
    Principal components are divided by √(variance + mean variance), and rows by their length, so
    that properties of all pictures count little. In few dimensions chance neighbours are close,
    too: the factor is then lowered until one pair is expected by chance. The dimension is estimated
    from the ten nearest neighbours (Levina & Bickel 2004).

    The search misses crops of a texture, such as cloth, whose features differ; some pairs of more
    than ten near copies; and near duplicates among fewer than 20 pictures. More than 20,000
    pictures are compared only with those near the same of 2,000 sampled pictures, and past four
    thousand million comparisons only some: those of the highest split number (test) first.

    Parameters
    ----------
    features : (N, D) float32, not all equal.
    keys : (N,) void, digests; identical files share one.
    splits : (N,) split numbers.
    folds : (N,) fold numbers; if given, ``across`` refers to folds instead of splits.
    note : receives one line if near duplicates are searched for in some of the rows only.
    max_bytes : memory for components, 512 bytes a row: of more rows some are searched, as above.
    """
    parts = splits if folds is None else folds
    _, content = np.unique(keys, return_inverse=True)
    files = content.reshape(-1) * (int(splits.max(initial=0)) + 1) + splits
    # copies of a file in one split have one representative: the first of them
    _, representatives, copy_of = np.unique(files, return_index=True, return_inverse=True)
    firsts = representatives[copy_of]  # (N,)
    copies = np.flatnonzero(firsts != np.arange(len(firsts)))
    rows = [(int(firsts[row]), int(row), 1.0, True) for row in copies]
    _, starts, counts = np.unique(
        content.reshape(-1)[representatives], return_index=True, return_counts=True
    )
    for start, count in zip(starts[counts > 1], counts[counts > 1], strict=True):
        for one, other in combinations(representatives[start : start + count].tolist(), 2):
            rows.append((one, other, 1.0, True))
    is_first = splits == splits.max(initial=0)
    searched = np.sort(representatives)
    if len(searched) > (most := int(max_bytes) // (4 * COMPONENTS)):
        searched = np.sort(searched[_by_priority(is_first[searched])[:most]])
    near = _find_near(features, searched, is_first, parts, note, len(representatives))
    for one, other, similarity in near:
        if content[one] != content[other]:
            rows.append((one, other, similarity, False))
    pairs = [
        DuplicatePair(
            first=int(min(one, other)),
            second=int(max(one, other)),
            similarity=similarity,
            exact=is_exact,
            across=bool(parts[one] != parts[other]),
        )
        for one, other, similarity, is_exact in rows
    ]
    return sorted(
        pairs, key=lambda pair: (not pair.across, -pair.similarity, not pair.exact, pair.first,
                                 pair.second),
    )  # fmt: skip


def _find_near(
    features: FeatureRows,
    rows: Rows,
    is_first: npt.NDArray[np.bool_],
    parts: npt.NDArray[np.integer],
    note: Callable[[str], object],
    total: int,
) -> Iterator[tuple[int, int, float]]:
    """Yield near duplicates among rows (n,): two of them and the cosine of their features.

    Of too many pairs, those across ``parts`` (N,) are kept first: many copies of one picture in
    train must not hide copies of test images. ``total`` is the number of rows that should be
    searched, for the ``note``.
    """
    count = len(rows)
    if count < MIN_ROWS:
        return
    sample = sample_rows(count, SAMPLE)
    drawn = features[rows[sample]]
    limit = OutlierLimit(drawn)
    direct = _Directions(limit(drawn))
    directions = np.empty((count, direct.width), np.float32)
    sums = np.zeros(features.shape[1])  # float64: a square of float32 overflows from 1e19 on
    for block in row_blocks(count, features.shape[1]):
        limited = limit(features[rows[block]])
        sums += limited.sum(axis=0, dtype=np.float64)
        directions[block] = direct(limited)
    nearest, radius = _near_sampled(directions, sample)
    least = 1 - radius**2 / 2  # the cosine at that distance
    part = parts[rows]

    def compare(ones: Rows, others: Rows) -> tuple[Rows, Rows, npt.NDArray[np.float64]]:
        """Return pairs of near duplicates: the lower rows, the higher, and how they rank."""
        similar = directions[ones] @ directions[others].T
        at, to = np.nonzero(similar >= np.maximum(least[ones, None], least[others]))
        ranks = similar[at, to].astype(np.float64)
        ranks[part[ones][at] != part[others][to]] += 2
        if len(at) > 4 * MAX_PAIRS:  # of very many equal pictures: each pair is there twice at most
            chosen = np.argpartition(-ranks, 4 * MAX_PAIRS)[: 4 * MAX_PAIRS]
            at, to, ranks = at[chosen], to[chosen], ranks[chosen]
        low, high = np.minimum(ones[at], others[to]), np.maximum(ones[at], others[to])
        _, kept = np.unique(low * count + high, return_index=True)
        kept = kept[low[kept] < high[kept]]
        kept = kept[np.argsort(-ranks[kept], kind="stable")[:MAX_PAIRS]]
        return low[kept], high[kept], ranks[kept]

    cells = None if count <= MAX_ROWS else _Cells(nearest, is_first[rows])
    blocks = _all_pairs(count) if cells is None else cells.blocks()
    if (searched := count if cells is None else cells.searched) < total:
        note(f"near duplicates were searched for in {searched:,} of {total:,} images (30 s)")
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(lambda block: compare(*block), blocks))
    first, second, ranks = map(np.concatenate, zip(*found, strict=True))
    _, once = np.unique(first * count + second, return_index=True)
    closest = once[np.argsort(-ranks[once], kind="stable")[:MAX_PAIRS]]
    needed, position = np.unique([first[closest], second[closest]], return_inverse=True)
    offsets = limit(features[rows[needed]]) - sums / count  # float64
    lengths = np.linalg.norm(offsets, axis=1)
    for one, other in position.reshape(2, -1).T.tolist():
        length = float(lengths[one] * lengths[other])
        cosine = float(offsets[one] @ offsets[other]) / length if length else 1.0
        yield int(rows[needed[one]]), int(rows[needed[other]]), min(1.0, cosine)


def _by_priority(is_first: npt.NDArray[np.bool_]) -> Rows:
    """Return rows (n,) in the order to search them in: some first, else at random."""
    return np.argsort(~is_first + np.random.default_rng(0).random(len(is_first)))


def _all_pairs(count: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield blocks of rows, and the rows to compare them with: these and later ones."""
    step = max(1, BLOCK_VALUES // count)
    for start in range(0, count, step):
        yield np.arange(start, min(start + step, count)), np.arange(start, count)


class _Cells:
    """Rows (N,) by the sampled rows that are nearest to them (N, 10): a cell for each.

    The rows of a cell are those that are nearest to its sampled row, and are compared with those
    that have it among their ten nearest. Of pictures that are near duplicates nearly all are found.
    """

    def __init__(self, nearest: npt.NDArray[np.int16], is_first: npt.NDArray[np.bool_]) -> None:
        self._sizes = np.bincount(nearest.reshape(-1), minlength=SAMPLE)
        self._order = np.argsort(nearest, axis=None, kind="stable")
        comparisons = self._sizes[nearest[:, :NEAREST_CELLS]].sum(axis=1)
        priority = _by_priority(is_first)
        within = np.cumsum(comparisons[priority]) <= MAX_COMPARED
        self._is_searched = np.zeros(len(nearest), bool)
        self._is_searched[priority[within]] = True

    @property
    def searched(self) -> int:
        return int(self._is_searched.sum())

    def blocks(self) -> Iterator[tuple[Rows, Rows]]:
        """Yield the rows of each cell to compare, and those to compare them with."""
        for entries in np.split(self._order, self._sizes.cumsum()[:-1]):
            others, rank = np.divmod(entries, NEIGHBOUR)
            ones = others[(rank < NEAREST_CELLS) & self._is_searched[others]]
            step = max(1, BLOCK_VALUES // max(1, len(others)))
            for start in range(0, len(ones), step):
                yield ones[start : start + step], others


class _Directions:
    """Unit vectors in which near duplicates are close: components divided by their scales."""

    def __init__(self, sample: Floats) -> None:
        self._components = fit_components(sample, COMPONENTS)
        variance = self._components[-1].explained_variance_
        scale = np.sqrt(variance + variance.mean())
        self._scale = np.maximum(scale, np.finfo(np.float32).tiny)
        self.width = len(scale)

    def __call__(self, features: Floats) -> Floats:
        """Convert features (n, D) -> (n, d)."""
        directions = self._components.transform(features) / self._scale
        lengths = np.linalg.norm(directions, axis=1, keepdims=True)
        return np.asarray(directions / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _near_sampled(directions: Floats, sample: Rows) -> tuple[npt.NDArray[np.int16], Floats]:
    """Return the ten nearest sampled rows (n, 10), and the largest distance of near duplicates.

    The latter is (n,), of a near duplicate from each row.
    """
    count = len(directions)
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOUR + 1, algorithm="brute")
    neighbours.fit(directions[sample])
    nearest = np.empty((count, NEIGHBOUR), np.int16)
    tenth, spread = np.empty((2, count))
    place = np.full(count, -1)
    place[sample] = np.arange(len(sample))
    for block in row_blocks(count, len(sample)):
        distances, found = neighbours.kneighbors(directions[block])
        nearest[block] = found[:, :NEIGHBOUR]
        in_sample = np.flatnonzero(place[block] >= 0)
        distances[in_sample, :-1] = distances[in_sample, 1:]  # a row is not its own neighbour
        distances = np.maximum(distances[:, :-1], SAME)
        tenth[block] = distances[:, -1]
        spread[block] = np.log(distances[:, -1:] / distances[:, :-1]).mean(axis=1)
    dimension = 1 / max(float(np.median(spread)), 1e-3)
    # n²/2 pairs are that close with probability NEIGHBOUR / sample · share^dimension each
    chance = 2 * FALSE_POSITIVES * len(sample) / (count**2 * NEIGHBOUR)
    share = min(CLOSE, chance ** (1 / dimension))
    return nearest, np.asarray(np.maximum(share * tenth, SAME), np.float32)
