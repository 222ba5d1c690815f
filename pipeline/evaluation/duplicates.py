"""Rows of a cache that show the same picture: identical files, and near duplicates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from pipeline.evaluation.groups import linked
from pipeline.evaluation.probe import fit_components

# Near duplicates. Measured on 2,000 cats and dogs and 600 textiles with VGG16, MobileNetV2 and
# 32-pixel images: copies at JPEG quality 70 or 90 % size lie at up to 0.27 of the distance of the
# tenth neighbour, central 95 % crops of photographs at up to 0.38, pictures that merely look alike
# at 0.47 and more. No fixed cosine does that: 1 - cosine of crops goes up to 0.12, of the nearest
# strangers it is 0.07 to 0.35.
NEIGHBOUR = 10  # groups of up to ten near copies are found whole
CLOSE = 0.45
COMPONENTS = 128  # principal components: what a comparison costs
FALSE_ALARMS = 1.0  # pairs expected by chance where features have few dimensions
SAME = 2e-3  # distance that rounding leaves between identical pixels
FEWEST_ROWS = 2 * NEIGHBOUR  # below, a tenth neighbour is no neighbour
SAMPLE = 2000  # rows that neighbours are measured on: 0.1 s for 2,000 rows, linear in their number
MOST_ROWS = 20_000  # all pairs of so many take some seconds; of more, only those with a test image
MOST_PAIRS = 10_000  # more cannot be looked at; the closest are kept
BLOCK_VALUES = 1 << 24  # 64 MiB of similarities at a time

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two rows that show the same picture, the lower row number first.

    Attributes
    ----------
    similarity : cosine of their centred features, 1 for identical files. It does not decide what
        is near: how far other images are does.
    exact : whether the files are identical.
    across : whether they stand in different splits or folds, which inflates test accuracy.
    """

    first: int
    second: int
    similarity: float
    exact: bool
    across: bool


def linked_rows(pairs: Sequence[DuplicatePair], count: int) -> Rows:
    """Number (N,), from 0, the sets of rows that pairs link."""
    return linked([pair.first for pair in pairs], [pair.second for pair in pairs], count)


def find_duplicates(
    features: Floats,
    keys: npt.NDArray[np.void],
    splits: npt.NDArray[np.integer],
    *,
    folds: npt.NDArray[np.integer] | None = None,
) -> list[DuplicatePair]:
    """Find rows that show the same picture: across splits first, then the most similar.

    Each identical file is paired with the first of its split, and the first ones of the splits with
    each other, so that n copies make about n pairs.

    Near duplicates lie at 0.45 or less of the distance to the tenth neighbour of either. Distances
    are of normalised principal components, each divided by its own deviation and the mean one, so
    that what all pictures share counts little. In few dimensions chance brings neighbours close,
    too: the share is then lowered until one pair is expected by chance, with the dimension
    estimated from the ten nearest (Levina & Bickel 2004).

    Not found: crops of a mere texture, such as cloth, which a convolutional base takes for other
    pictures; all pairs of more than ten near copies; anything near in fewer than 20 pictures. Of
    more than 20,000, only pairs with one of the highest split number (test) are sought.

    Parameters
    ----------
    features : (N, D) float32, not all equal.
    keys : (N,) void, the digests that identical files share.
    splits : (N,) split numbers.
    folds : (N,) fold numbers, where pairs are across these and not across splits.
    """
    parts = splits if folds is None else folds
    _, content = np.unique(keys, return_inverse=True)
    places = np.stack([content, splits])
    _, representatives, copy_of = np.unique(places, axis=1, return_index=True, return_inverse=True)
    firsts = representatives[copy_of.reshape(-1)]  # (N,) of the same file in the same split
    exact = [(one, other) for other, one in enumerate(firsts) if one != other]
    order = np.argsort(content[representatives], kind="stable")
    ends = np.flatnonzero(np.diff(content[representatives][order])) + 1
    for copies in np.split(representatives[order], ends):
        exact += combinations(copies, 2)
    found = [(one, other, 1.0, True) for one, other in exact]
    for one, other, similarity in _near(features[representatives], splits[representatives]):
        pair = representatives[[one, other]]
        if content[pair[0]] != content[pair[1]]:
            found.append((*pair, similarity, False))
    pairs = [
        DuplicatePair(
            first=int(min(one, other)),
            second=int(max(one, other)),
            similarity=similarity,
            exact=is_exact,
            across=bool(parts[one] != parts[other]),
        )
        for one, other, similarity, is_exact in found
    ]
    return sorted(
        pairs, key=lambda pair: (not pair.across, -pair.similarity, not pair.exact, pair.first,
                                 pair.second),
    )  # fmt: skip


def _near(features: Floats, splits: npt.NDArray[np.integer]) -> Iterator[tuple[int, int, float]]:
    """Near duplicates among features (n, D): two places and the cosine of the centred features."""
    count = len(features)
    if count < FEWEST_ROWS:
        return
    sample = np.arange(count)
    if count > SAMPLE:
        sample = np.sort(np.random.default_rng(0).choice(count, SAMPLE, replace=False))
    directions = _directions(features)
    reach = _reach(directions, sample)
    least = 1 - reach**2 / 2  # the cosine at that distance
    whole = count <= MOST_ROWS
    queries = np.arange(count) if whole else np.flatnonzero(splits == splits.max())
    firsts, seconds, cosines = [], [], []
    step = max(1, BLOCK_VALUES // count)
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        left = start if whole else 0  # pairs with earlier rows were seen
        similar = directions[block] @ directions[left:].T
        at, others = np.nonzero(similar >= np.maximum(least[block, None], least[left:]))
        values = similar[at, others]
        ones, others = block[at], others + left
        once = ones < others
        if not whole:
            once |= splits[ones] != splits[others]
        kept = np.flatnonzero(once)
        kept = kept[np.argsort(-values[kept], kind="stable")[:MOST_PAIRS]]
        firsts.append(ones[kept])
        seconds.append(others[kept])
        cosines.append(values[kept])
    mean = features.mean(axis=0)
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    for place in np.argsort(-np.concatenate(cosines), kind="stable")[:MOST_PAIRS]:
        one, other = features[first[place]] - mean, features[second[place]] - mean
        lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
        cosine = float(one @ other) / lengths if lengths else 1.0
        yield int(first[place]), int(second[place]), min(1.0, cosine)


def _directions(features: Floats) -> Floats:
    """Unit vectors (n, d): principal components, evened out."""
    components = fit_components(features, COMPONENTS)
    variance = components.explained_variance_
    scale = np.sqrt(variance + variance.mean())
    directions = components.transform(features) / np.maximum(scale, np.finfo(np.float32).tiny)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(directions / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _reach(directions: Floats, sample: Rows) -> npt.NDArray[np.float32]:
    """How far from each row (n,) another picture can hardly be without being the same one."""
    count = len(directions)
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOUR + 1, algorithm="brute")
    distances, _ = neighbours.fit(directions[sample]).kneighbors(directions)
    distances[sample, :-1] = distances[sample, 1:]  # the first neighbour of these is themselves
    distances = np.maximum(distances[:, :-1], SAME)
    tenth = distances[:, -1]
    spread = np.log(tenth[:, None] / distances[:, :-1])
    dimension = 1 / max(float(np.median(spread.mean(axis=1))), 1e-3)
    # n²/2 pairs, each that close with chance NEIGHBOUR / sample · share^dimension
    chance = 2 * FALSE_ALARMS * len(sample) / (count**2 * NEIGHBOUR)
    share = min(CLOSE, chance ** (1 / dimension))
    return np.asarray(np.maximum(share * tenth, SAME), np.float32)
