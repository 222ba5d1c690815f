"""Find rows whose label is probably wrong, by confident learning."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.groups import Rows
from pipeline.evaluation.metrics import Labels, Scores
from pipeline.evaluation.probe import (
    FeatureRows,
    Floats,
    fit_probe,
    principal_components,
    row_blocks,
    stratified_order,
)

# Cats and dogs with 20 wrong labels among 1,000, 4 draws and 2 bases: 17 to 20 of them are among
# the first 40 suspects with C = 10, 15 to 20 with C = 100.
FOLDS = 5
INVERSE_PENALTY = 10.0  # C
FEATURES = 256  # principal components; 1,280 features take 5 times as long
MAX_TRAINING_ROWS = 5000  # per fold; all rows are evaluated, up to this limit:
MAX_PROBABILITY_BYTES = (
    600 << 20
)  # of components and probabilities: 340,000 rows of 100 classes, 30 s
MAX_SUSPECTS = 100  # nobody inspects more

# 20 wrong labels among 1,000 cats and dogs, 50 draws each of EfficientNet-Lite0, MobileNetV2: all
# are among the first 60 in 97 of 100 draws; in 95 without neighbors, in about 87 in one round.
SECOND_PENALTY = 3.0  # C
NEIGHBORS = 10
MAX_DOUBTED = 20_000  # rows of `find_doubtful`, which compares all with all
DOUBTFUL = 1.5  # sum of the lead of the label and its share of the neighbors; at most about 2


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A row whose label is probably wrong, with out-of-fold probabilities of both classes."""

    row: int
    label: int
    suggested: int
    label_probability: float
    suggested_probability: float


def find_suspects(
    features: FeatureRows,
    labels: Labels,
    groups: Rows,
    class_count: int,
    seed: int = 0,
    *,
    note: Callable[[str], object] = lambda line: None,
    max_bytes: float = MAX_PROBABILITY_BYTES,
) -> list[Suspect]:
    """Return the labels that are most likely wrong, the likeliest first; 100 at most.

    Confident learning (Northcutt et al. 2021): a row's probabilities come from a model that was
    fitted on neither the row nor its duplicates, one of ``groups`` (N,). A class's threshold is its
    mean probability over the rows with that label. A row is suspect if another class exceeds its
    threshold by more than the label does. Classes with fewer than five groups are left out.

    Of rows whose components and probabilities exceed ``max_bytes`` a stratified sample is
    evaluated; ``note`` then receives one line.
    """
    count, most = len(labels), int(max_bytes) // (4 * FEATURES + 8 * class_count)
    rows = np.arange(count)
    if count > most:
        rows = np.sort(stratified_order(labels, np.random.default_rng(seed))[:most])
        note(f"label errors were searched for in {most:,} of {count:,} images (30 s)")
        labels, groups = labels[rows], groups[rows]
    fold = _assign_folds(labels, groups, seed)
    reduced = principal_components(features, FEATURES, rows)
    probabilities = out_of_fold(reduced, labels, fold, class_count, seed)
    found = rank_suspects(probabilities, labels, evaluated=fold >= 0)
    return [replace(each, row=int(rows[each.row])) for each in found]


def find_doubtful(
    features: FeatureRows, labels: Labels, groups: Rows, class_count: int, seed: int = 0
) -> list[Suspect]:
    """Return the labels that are most likely wrong, as `find_suspects`, and those that may be.

    The models are fitted twice, the second time without the suspects of the first: wrong labels
    attract others. To the lead of the label over the best other class is then added its share of
    the ten nearest rows (cosine) that are no suspects; rows of a sum below 1.5 are returned.
    """
    fold = _assign_folds(labels, groups, seed)
    features = principal_components(features, FEATURES, np.arange(len(labels)))
    every, evaluated = np.arange(len(labels)), fold >= 0
    fit = partial(out_of_fold, features, labels, fold, class_count, seed, penalty=SECOND_PENALTY)
    rank = partial(rank_suspects, labels=labels, evaluated=evaluated, most=len(labels))
    trained = np.setdiff1d(every, [each.row for each in rank(fit())])
    support = _share_of_neighbors(features, labels, groups, trained)
    return rank(fit(trained=np.isin(every, trained)), support=support, lead=DOUBTFUL)


def _share_of_neighbors(features: Floats, labels: Labels, groups: Rows, rows: Rows) -> Floats:
    """Return the share (N,) of each row's nearest ``rows`` that have its label; none of its group.

    A row without such neighbors has 1.
    """
    from sklearn.neighbors import NearestNeighbors

    if not len(rows):
        return np.ones(len(labels), np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    index = NearestNeighbors(n_neighbors=min(NEIGHBORS + 1, len(rows)), algorithm="brute")
    found = rows[index.fit(directions[rows]).kneighbors(directions, return_distance=False)]
    is_other = groups[found] != groups[:, None]  # (N, 11)
    same = ((labels[found] == labels[:, None]) & is_other).sum(axis=1)
    others = is_other.sum(axis=1)
    return np.asarray(np.where(others, same / np.maximum(others, 1), 1.0))


def out_of_fold(
    features: Floats,
    labels: Labels,
    fold: Rows,
    class_count: int,
    seed: int = 0,
    *,
    penalty: float = INVERSE_PENALTY,
    trained: npt.NDArray[np.bool_] | None = None,
) -> Scores:
    """Return out-of-fold probabilities (N, K); rows of fold -1 are in train for every fold.

    ``trained`` : (N,) whether a row may be in train.
    """
    probabilities = np.zeros((len(labels), class_count))
    random = np.random.default_rng(seed)
    for number in range(FOLDS):
        held_out = np.flatnonzero(fold == number)
        rows = np.flatnonzero((fold != number) & (True if trained is None else trained))
        if len(rows) > MAX_TRAINING_ROWS:
            rows = np.sort(random.choice(rows, MAX_TRAINING_ROWS, replace=False))
        if not len(held_out) or len(np.unique(labels[rows])) < 2:
            continue
        model = fit_probe(features[rows], labels[rows], penalty)
        for block in row_blocks(len(held_out), 8 * (features.shape[1] + class_count)):
            rows = held_out[block]
            probabilities[np.ix_(rows, model.classes_)] = model.predict_proba(features[rows])
    return probabilities


def rank_suspects(
    probabilities: Scores,
    labels: Labels,
    *,
    evaluated: npt.NDArray[np.bool_],
    support: Floats | float = 0.0,
    lead: float = 0.0,
    most: int = MAX_SUSPECTS,
) -> list[Suspect]:
    """Rank suspects by out-of-fold probabilities (N, K), among the evaluated rows (N,) bool.

    ``lead`` : of the label over the best other class, both above their thresholds, and ``support``
    (N,) of the label, added; a suspect's sum is lower.
    """
    rows = np.flatnonzero(evaluated)
    labels, class_count = labels[rows], probabilities.shape[1]
    of_label = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=class_count)
    thresholds = np.bincount(labels, of_label, class_count) / np.maximum(counts, 1)
    thresholds[counts == 0] = math.inf  # never suggest a class without evaluated rows
    suggested, margin = np.empty(len(rows), np.int64), np.empty(len(rows))
    for block in row_blocks(len(rows), class_count):
        above = probabilities[rows[block]] - thresholds
        every, of_block = np.arange(len(above)), labels[block]
        label_above = above[every, of_block]
        above[every, of_block] = -math.inf
        suggested[block] = above.argmax(axis=1)
        margin[block] = label_above - above[every, suggested[block]]
    margin += np.broadcast_to(support, len(evaluated))[rows]
    wrong = np.flatnonzero(margin < lead)
    ranked = wrong[np.argsort(margin[wrong], kind="stable")][:most]
    return [
        Suspect(
            row=int(rows[index]),
            label=int(labels[index]),
            suggested=int(suggested[index]),
            label_probability=float(of_label[index]),
            suggested_probability=float(probabilities[rows[index], suggested[index]]),
        )
        for index in ranked
    ]


def _assign_folds(labels: Labels, groups: Rows, seed: int) -> Rows:
    """Return the fold (N,) of each row, with about equally many groups of a class in each.

    The fold is -1 if the class has too few groups. A group has the class of its first row.
    """
    random = np.random.default_rng(seed)
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    fold = np.full(len(first), -1)
    for label in np.unique(labels[first]):
        of_class = random.permutation(np.flatnonzero(labels[first] == label))
        if len(of_class) >= FOLDS:
            fold[of_class] = (np.arange(len(of_class)) + random.integers(FOLDS)) % FOLDS
    return np.asarray(fold[member], np.int64)
