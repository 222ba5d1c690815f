"""Rows whose label is probably wrong, by confident learning."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.probe import fit_components, fit_probe

# Measured on cats and dogs with 20 wrong labels among 1,000, 4 draws of them and 2
# bases: 17 to 20 are among the first 40 suspects with C = 10, 15 to 20 with C = 100.
FOLDS = 5
PENALTY = 10.0
FEATURES = 256  # principal components to learn from; all 1,280 take 5 times as long
MOST_TRAINING_ROWS = 5000  # a fold learns from so many at most; every row is judged all the same
MOST_SUSPECTS = 100  # what a person looks through

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A row whose label is probably wrong, with the out-of-fold probabilities of both classes."""

    row: int
    label: int
    suggested: int
    label_probability: float
    suggested_probability: float


def find_suspects(
    features: Floats, labels: Rows, groups: Rows, class_count: int, seed: int = 0
) -> list[Suspect]:
    """The labels that are most likely wrong, the likeliest first; 100 at most.

    Confident learning (Northcutt et al. 2021): each row's probabilities come from a model that saw
    neither it nor its duplicates; less the mean probability of each class among the rows that carry
    its label, a row is suspect where another class has the highest; the margin ranks. Rows of a
    class of fewer than five groups (N,) are not judged.
    """
    fold = _deal_folds(labels, groups, seed)
    features = fit_components(features, FEATURES).transform(features)
    probabilities = out_of_fold(features, labels, fold, class_count, seed)
    return rank_suspects(probabilities, labels, judged=fold >= 0)


def out_of_fold(
    features: Floats, labels: Rows, fold: Rows, class_count: int, seed: int = 0
) -> Probabilities:
    """Probabilities (N, K) by the probe of the other folds; zero in fold -1, only learned from."""
    probabilities = np.zeros((len(labels), class_count))
    random = np.random.default_rng(seed)
    for number in range(FOLDS):
        held_out = np.flatnonzero(fold == number)
        rows = np.flatnonzero(fold != number)
        if len(rows) > MOST_TRAINING_ROWS:
            rows = np.sort(random.choice(rows, MOST_TRAINING_ROWS, replace=False))
        if not len(held_out) or len(np.unique(labels[rows])) < 2:
            continue
        model = fit_probe(features[rows], labels[rows], PENALTY)
        probabilities[np.ix_(held_out, model.classes_)] = model.predict_proba(features[held_out])
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
