"""Look into the data with features that are cached anyway: duplicates and likely label errors."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

from pipeline.cache.file import FeatureTable
from pipeline.evaluation.findings import DuplicatePair, Findings, Suspect
from pipeline.evaluation.inputs import input_of, read_input
from pipeline.evaluation.learning_curve import learning_curve
from pipeline.evaluation.probe import Components, fit_probe
from pipeline.evaluation.splits import TEST, TRAIN, VALIDATION, Splits
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.text import counted

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

# Label errors. Measured on cats and dogs with 20 wrong labels among 1,000, 4 draws of them and 2
# bases: 17 to 20 are among the first 40 suspects with C = 10, 15 to 20 with C = 100.
FOLDS = 5
PENALTY = 10.0
FEATURES = 256  # principal components to learn from; all 1,280 take 5 times as long
MOST_TRAINING_ROWS = 5000  # a fold learns from so many at most; every row is judged all the same
MOST_SUSPECTS = 100  # what a person looks through

PIXELS_A_SIDE = 16  # images as features are averaged to this: a crop moves edges by less

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Sides = npt.NDArray[np.uint8]  # split numbers, as in the cache
Probabilities = npt.NDArray[np.float64]


def look_into(
    table: FeatureTable,
    layer: str,
    *,
    splits: Splits,
    folds: Sequence[Rows] = (),
    features: Floats | None = None,
    seed: int = 0,
) -> tuple[Findings, tuple[str, ...]]:
    """Find duplicates and likely label errors, draw the learning curve; and say what to know.

    Looks at the rows that stand in a split. The notices are a line each, to be read before the
    table of results.

    Parameters
    ----------
    table : of images as they are, without augmented views, with the labels that count; what a
        person dropped is no row of it any more.
    splits : of its rows.
    folds : the test rows of each, where every row is tested once.
    features : (N, D) of all rows, where they were read before; else they are read: maps averaged,
        and images as features reduced to 16 × 16 pixels.
    seed : of folds and draws; the same gives the same findings.
    """
    side = _sides(splits, len(table))
    rows = np.flatnonzero(side > 0)
    labels, side = table.columns.labels[rows], side[rows]
    class_count = len(table.classes)
    # One thread: the BLAS of NumPy and that of SciPy wait for each other's threads in busy loops.
    with threadpool_limits(limits=1, user_api="blas"):
        chosen = audit_input(table, layer, rows) if features is None else features[rows]
        pairs = find_duplicates(chosen, table.columns.digests[rows], side)
        if folds:
            fold = np.empty(len(table), np.int64)
            fold[np.concatenate(folds)] = np.repeat(np.arange(len(folds)), list(map(len, folds)))
            pairs = _across(pairs, fold[rows])
        suspects = find_suspects(chosen, labels, linked_rows(pairs, len(rows)), class_count, seed)
        parts = [
            LabelledRows(chosen[side == part], labels[side == part])
            for part in (TRAIN, VALIDATION, TEST)
        ]
        curve = learning_curve(*parts, class_count=class_count, seed=seed)
    findings = Findings(
        table=table,
        layer=layer,
        duplicates=tuple(
            replace(pair, first=int(rows[pair.first]), second=int(rows[pair.second]))
            for pair in pairs
        ),
        suspects=tuple(replace(suspect, row=int(rows[suspect.row])) for suspect in suspects),
        learning_curve=curve,
    )
    return findings, tuple(_notices(pairs, side, in_folds=bool(folds)))


def _across(pairs: Sequence[DuplicatePair], fold: Rows) -> list[DuplicatePair]:
    """The pairs with what two folds part first; ``fold`` (N,) is that which tests a row."""
    told = [replace(pair, across=bool(fold[pair.first] != fold[pair.second])) for pair in pairs]
    return sorted(told, key=lambda pair: (not pair.across, -pair.similarity))


def audit_input(table: FeatureTable, layer: str, rows: Rows) -> Floats:
    """Features to look into (n, D): one vector per image, of images themselves 16 × 16 pixels."""
    features = read_input(table, layer, rows, input_of(table, layer, wanted=None, default="pooled"))
    shape = table.layers[layer]
    if table.spec.base != "pixels" or len(shape) != 3 or max(shape[:2]) <= PIXELS_A_SIDE:
        return features
    images: npt.NDArray[Any] = features.reshape(len(rows), *shape)
    for axis in (1, 2):
        edges = np.linspace(0, images.shape[axis], PIXELS_A_SIDE + 1).round().astype(int)
        sums = np.add.reduceat(images, edges[:-1], axis=axis)
        widths = np.diff(edges).astype(np.float32)
        images = sums / np.expand_dims(widths, tuple({0, 1, 2, 3} - {axis}))
    return images.reshape(len(rows), -1)


def _notices(pairs: Sequence[DuplicatePair], side: Sides, *, in_folds: bool) -> Iterator[str]:
    exact = [pair for pair in pairs if pair.kind == "exact"]
    of_files, in_all = (_test_rows_in_train(each, side) for each in (exact, pairs))
    across, files_across = (sum(pair.across for pair in each) for each in (pairs, exact))
    if in_all and not in_folds:
        yield (
            f"{counted(in_all, 'test image also stands', 'test images also stand')} in train "
            f"{_kinds(of_files, in_all - of_files, told=True)}"
        )
    elif across:
        yield (
            f"{counted(across, 'pair of duplicates stands', 'pairs of duplicates stand')} in two "
            f"{'folds' if in_folds else 'splits'} "
            f"{_kinds(files_across, across - files_across, told=in_folds)}"
        )
    if len(pairs) - len(exact) >= MOST_PAIRS:
        yield f"only the {MOST_PAIRS:,} closest near duplicates are listed"
    if len(side) > MOST_ROWS:
        yield f"of more than {MOST_ROWS:,} images, near duplicates are sought only of test images"


def _kinds(exact: int, near: int, *, told: bool) -> str:
    """How many of each kind, and what to do; ``told``: numbers of the table suffer from them.

    Of near duplicates nothing is claimed: in small sets some are only alike.
    """
    inflates = "exact ones inflate every number; " if told and exact else ""
    return f"(exact: {exact:,}, near: {near:,}): {inflates}look at them in report.html"


def _sides(splits: Splits, count: int) -> Sides:
    """The split number of each row (N,), 0 for rows in none."""
    side = np.zeros(count, np.uint8)
    side[splits.train] = TRAIN
    side[splits.validation] = VALIDATION
    side[splits.test] = TEST
    return side


def _test_rows_in_train(pairs: Sequence[DuplicatePair], side: Sides) -> int:
    groups = linked_rows(pairs, len(side))
    return int(np.isin(groups[side == TEST], groups[side == TRAIN]).sum())


def linked_rows(pairs: Sequence[DuplicatePair], count: int) -> Rows:
    """Number (N,), from 0, the sets of rows that pairs link."""
    first = [pair.first for pair in pairs]
    second = [pair.second for pair in pairs]
    links = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def find_duplicates(
    features: Floats,
    keys: npt.NDArray[np.void],
    splits: npt.NDArray[np.integer],
) -> list[DuplicatePair]:
    """Find rows that show the same picture: across splits first, then the most similar.

    Identical files are those of equal keys. Each is paired with the first of its split, and the
    first ones of the splits with each other, so that n copies make about n pairs.

    Near duplicates are much closer to each other than each is to its tenth neighbour: at 0.45 of
    that distance or less. The measure is the distance of normalised principal components, each
    divided by its own deviation and the mean one, so that what all pictures share counts little.
    Where features vary in few dimensions chance brings neighbours close, too: the share is then
    lowered until one pair is expected by chance, with the dimension estimated from the distances of
    the ten nearest (Levina & Bickel 2004).

    What it does not find: crops of a mere texture, such as cloth, which are other pictures to a
    convolutional base; all pairs of a group of more than ten near copies; anything near in fewer
    than 20 pictures. Of more than 20,000, only pairs with one of the highest split number (test)
    are sought.

    Parameters
    ----------
    features : (N, D) float32, one vector per row; not all equal.
    keys : (N,) void, what identical files share: their digests.
    splits : (N,) split numbers.
    """
    if not len(keys):
        return []
    _, content = np.unique(keys, return_inverse=True)
    places = np.stack([content, splits])
    _, representatives, copy_of = np.unique(places, axis=1, return_index=True, return_inverse=True)
    found = [
        (int(one), other, 1.0, True)
        for other, one in enumerate(representatives[copy_of.reshape(-1)])
        if one != other
    ]
    order = np.argsort(content[representatives], kind="stable")
    ends = np.flatnonzero(np.diff(content[representatives][order])) + 1
    for copies in np.split(representatives[order], ends):
        found += [(int(one), int(other), 1.0, True) for one, other in combinations(copies, 2)]
    unlike = content[representatives]
    for one, other, similarity in _near(features[representatives], splits[representatives]):
        if unlike[one] != unlike[other]:
            pair = (int(representatives[one]), int(representatives[other]))
            found.append((*pair, similarity, False))
    pairs = [
        DuplicatePair(
            first=min(one, other),
            second=max(one, other),
            similarity=similarity,
            kind="exact" if exact else "near",
            across=bool(splits[one] != splits[other]),
        )
        for one, other, similarity, exact in found
    ]
    return sorted(
        pairs,
        key=lambda pair: (
            not pair.across,
            -pair.similarity,
            pair.kind != "exact",
            pair.first,
            pair.second,
        ),
    )


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
    components = Components.of(features, COMPONENTS)
    variance = components.deviations**2
    scale = np.sqrt(variance + variance.mean())
    directions = components(features) / np.maximum(scale, np.finfo(np.float32).tiny)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(directions / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _reach(directions: Floats, sample: Rows) -> npt.NDArray[np.float32]:
    """How far from each row (n,) another picture can hardly be without being the same one."""
    count = len(directions)
    nearest = np.empty((count, NEIGHBOUR), np.float32)
    step = max(1, BLOCK_VALUES // len(sample))
    for start in range(0, count, step):
        block = slice(start, start + step)
        similar = directions[block] @ directions[sample].T
        own = np.flatnonzero((sample >= start) & (sample < start + step))
        similar[sample[own] - start, own] = -1
        highest = np.partition(similar, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR:]
        nearest[block] = np.sort(np.sqrt(np.maximum(2 - 2 * highest, 0)), axis=1)
    tenth = nearest[:, -1]
    spread = np.log(np.maximum(tenth[:, None], SAME) / np.maximum(nearest[:, :-1], SAME))
    dimension = 1 / max(float(np.median(spread.mean(axis=1))), 1e-3)
    # n²/2 pairs, each that close with chance NEIGHBOUR / sample · share^dimension
    chance = 2 * FALSE_ALARMS * len(sample) / (count**2 * NEIGHBOUR)
    share = min(CLOSE, chance ** (1 / dimension))
    return np.asarray(np.maximum(share * tenth, SAME), np.float32)


def find_suspects(
    features: Floats, labels: Rows, groups: Rows, class_count: int, seed: int = 0
) -> list[Suspect]:
    """The labels that are most likely wrong, the likeliest first; 100 at most.

    Confident learning (Northcutt et al. 2021): each row's probabilities come from a model that saw
    neither it nor its duplicates; less the mean probability of each class among the rows that carry
    its label, a row is suspect where another class has the highest; the margin ranks. Rows of a
    class of fewer than five groups are not judged.

    Parameters
    ----------
    features : (N, D) float32.
    labels : (N,) class numbers.
    groups : (N,) numbers; rows of one number are in one fold.
    class_count : K.
    seed : of the folds.
    """
    fold = _deal_folds(labels, groups, seed)
    features = Components.of(features, FEATURES)(features)
    probabilities = out_of_fold(features, labels, fold, class_count, seed)
    return rank_suspects(probabilities, labels, judged=fold >= 0)


def out_of_fold(
    features: Floats, labels: Rows, fold: Rows, class_count: int, seed: int = 0
) -> Probabilities:
    """Probabilities (N, K) of logistic regression fitted on the other folds; zero in fold -1.

    Rows of fold -1 are only learned from. A fold learns from 5,000 rows at most.
    """
    probabilities = np.zeros((len(labels), class_count))
    random = np.random.default_rng(seed)
    for number in range(FOLDS):
        held_out = np.flatnonzero(fold == number)
        rows = np.flatnonzero(fold != number)
        if len(rows) > MOST_TRAINING_ROWS:
            rows = np.sort(random.choice(rows, MOST_TRAINING_ROWS, replace=False))
        present, known = np.unique(labels[rows], return_inverse=True)
        if not len(held_out) or len(present) < 2:
            continue
        train = TrainingSet(features[rows], known.astype(np.int64), len(present))
        classifier = fit_probe(train, PENALTY)
        probabilities[np.ix_(held_out, present)] = classifier.scores(features[held_out])
    return probabilities


def rank_suspects(
    probabilities: Probabilities, labels: Rows, *, judged: npt.NDArray[np.bool_]
) -> list[Suspect]:
    """The ranking of `find_suspects` from out-of-fold probabilities (N, K)."""
    rows = np.flatnonzero(judged)
    every, carried, known = np.arange(len(rows)), labels[rows], probabilities[rows]
    own = known[every, carried]
    counts = np.bincount(carried, minlength=known.shape[1])
    thresholds = np.bincount(carried, own, known.shape[1]) / np.maximum(counts, 1)
    thresholds[counts == 0] = math.inf  # a class that is not judged is not suggested
    above = known - thresholds
    mine = above[every, carried]
    above[every, carried] = -math.inf
    suggested = above.argmax(axis=1)
    margin = mine - above[every, suggested]
    wrong = np.flatnonzero(margin < 0)
    ranked = wrong[np.argsort(margin[wrong], kind="stable")][:MOST_SUSPECTS]
    return [
        Suspect(
            row=int(rows[place]),
            label=int(carried[place]),
            suggested=int(suggested[place]),
            label_probability=float(own[place]),
            suggested_probability=float(known[place, suggested[place]]),
        )
        for place in ranked
    ]


def _deal_folds(labels: Rows, groups: Rows, seed: int) -> Rows:
    """Deal the groups of each class to folds in turn (N,); -1 for classes of too few groups.

    A group counts for the class of its first row.
    """
    random = np.random.default_rng(seed)
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    fold = np.full(len(first), -1)
    for label in np.unique(labels[first]):
        of_class = random.permutation(np.flatnonzero(labels[first] == label))
        if len(of_class) >= FOLDS:
            fold[of_class] = (np.arange(len(of_class)) + random.integers(FOLDS)) % FOLDS
    return np.asarray(fold[member], np.int64)
