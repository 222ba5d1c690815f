"""Duplicates in a cache: identical files, and near duplicates of one picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from pipeline.evaluation.groups import Rows, connected_sets
from pipeline.evaluation.probe import Floats, fit_components

# Distances relative to that of the tenth neighbour, on 2,000 cats and dogs and 600 textiles with
# VGG16, MobileNetV2 and 32-pixel images: copies at JPEG quality 70 or 90 % size up to 0.27, central
# 95 % crops of photographs up to 0.38, merely similar pictures from 0.47. No fixed cosine separates
# them: 1 - cosine of crops is up to 0.12, of the nearest other pictures 0.07 to 0.35.
NEIGHBOUR = 10  # all pairs of up to ten near copies are found
CLOSE = 0.45
COMPONENTS = 128  # principal components; comparing a pair costs as many products
FALSE_POSITIVES = 1.0  # pairs expected by chance, if features have few dimensions
FAR = 10  # times the median distance from the centre; photographs: at most 2.5
SAME = 2e-3  # distance of identical pixels after rounding
MIN_ROWS = 2 * NEIGHBOUR  # with fewer, the tenth neighbour is not near
SAMPLE = 2000  # rows to search neighbours in: 0.1 s for 2,000 rows, linear in their number
MAX_ROWS = 20_000  # all pairs take some seconds; with more rows, only pairs with a test image
MAX_PAIRS = 10_000  # nobody inspects more; the closest are kept
BLOCK_VALUES = 1 << 24  # 64 MiB of similarities at a time


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
    features: Floats,
    keys: npt.NDArray[np.void],
    splits: npt.NDArray[np.integer],
    *,
    folds: npt.NDArray[np.integer] | None = None,
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
    than ten near copies; and near duplicates among fewer than 20 pictures. For more than 20,000
    pictures, it compares only pairs with a picture of the highest split number (test).

    Parameters
    ----------
    features : (N, D) float32, not all equal.
    keys : (N,) void, digests; identical files share one.
    splits : (N,) split numbers.
    folds : (N,) fold numbers; if given, ``across`` refers to folds instead of splits.
    """
    parts = splits if folds is None else folds
    _, content = np.unique(keys, return_inverse=True)
    files = np.stack([content, splits])  # copies of a file in one split are one column
    _, representatives, copy_of = np.unique(files, axis=1, return_index=True, return_inverse=True)
    firsts = representatives[copy_of.reshape(-1)]  # (N,) first row of the same file and split
    rows = [(one, other, 1.0, True) for other, one in enumerate(firsts) if one != other]
    order = np.argsort(content[representatives], kind="stable")
    ends = np.flatnonzero(np.diff(content[representatives][order])) + 1
    for copies in np.split(representatives[order], ends):
        rows += [(one, other, 1.0, True) for one, other in combinations(copies, 2)]
    for i, j, similarity in _find_near(features[representatives], splits[representatives]):
        one, other = representatives[[i, j]]
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
    features: Floats, splits: npt.NDArray[np.integer]
) -> Iterator[tuple[int, int, float]]:
    """Yield near duplicates among features (n, D): two rows and the cosine of their features."""
    count = len(features)
    if count < MIN_ROWS:
        return
    sample = np.arange(count)
    if count > SAMPLE:
        sample = np.sort(np.random.default_rng(0).choice(count, SAMPLE, replace=False))
    features = _limit_outliers(features, sample)
    directions = _scale_components(features)
    radius = _largest_distances(directions, sample)
    least = 1 - radius**2 / 2  # the cosine at that distance
    is_complete = count <= MAX_ROWS
    queries = np.arange(count) if is_complete else np.flatnonzero(splits == splits.max())
    rows, cosines = [], []
    step = max(1, BLOCK_VALUES // count)
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        skipped = start if is_complete else 0  # earlier blocks compared these rows
        similar = directions[block] @ directions[skipped:].T
        at, others = np.nonzero(similar >= np.maximum(least[block, None], least[skipped:]))
        values = similar[at, others]
        ones, others = block[at], others + skipped
        is_new = ones < others
        if not is_complete:
            is_new |= splits[ones] != splits[others]
        kept = np.flatnonzero(is_new)
        kept = kept[np.argsort(-values[kept], kind="stable")[:MAX_PAIRS]]
        rows.append([ones[kept], others[kept]])
        cosines.append(values[kept])
    mean = features.mean(axis=0, dtype=np.float64)  # a square of float32 overflows from 1e19 on
    first, second = np.concatenate(rows, axis=1)
    for pair in np.argsort(-np.concatenate(cosines), kind="stable")[:MAX_PAIRS]:
        one, other = features[first[pair]] - mean, features[second[pair]] - mean
        lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
        cosine = float(one @ other) / lengths if lengths else 1.0
        yield int(first[pair]), int(second[pair]), min(1.0, cosine)


def _limit_outliers(features: Floats, sample: Rows) -> Floats:
    """Return features (n, D) with rows farther than `FAR` moved to that distance from the median.

    Otherwise a few huge values set the mean and the components, and all other rows look the same.
    """
    centre = np.median(features[sample], axis=0)
    offsets = features - centre
    lengths = np.sqrt(np.einsum("nd,nd->n", offsets, offsets, dtype=np.float64))
    limit = FAR * float(np.median(lengths))
    if not 0 < limit < lengths.max():
        return features
    shares = (limit / np.maximum(lengths, limit)).astype(np.float32)
    return np.asarray(centre + shares[:, None] * offsets)


def _scale_components(features: Floats) -> Floats:
    """Return unit vectors (n, d): principal components divided by their scales."""
    components = fit_components(features, COMPONENTS)
    variance = components[-1].explained_variance_
    scale = np.sqrt(variance + variance.mean())
    directions = components.transform(features) / np.maximum(scale, np.finfo(np.float32).tiny)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(directions / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _largest_distances(directions: Floats, sample: Rows) -> Floats:
    """Return the largest distance of a near duplicate from each row (n,)."""
    count = len(directions)
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOUR + 1, algorithm="brute")
    distances, _ = neighbours.fit(directions[sample]).kneighbors(directions)
    distances[sample, :-1] = distances[sample, 1:]  # a row is not its own neighbour
    distances = np.maximum(distances[:, :-1], SAME)
    tenth = distances[:, -1]
    spread = np.log(tenth[:, None] / distances[:, :-1])
    dimension = 1 / max(float(np.median(spread.mean(axis=1))), 1e-3)
    # n²/2 pairs are that close with probability NEIGHBOUR / sample · share^dimension each
    chance = 2 * FALSE_POSITIVES * len(sample) / (count**2 * NEIGHBOUR)
    share = min(CLOSE, chance ** (1 / dimension))
    return np.asarray(np.maximum(share * tenth, SAME), np.float32)
