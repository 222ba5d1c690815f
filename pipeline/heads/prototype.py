"""Nearest class mean."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec
from pipeline.heads.linear import LinearClassifier
from pipeline.heads.neighbors import directions_of
from pipeline.heads.training import LabelledRows, TrainingSet


class Prototype(Head):
    """The class whose mean training row, its prototype, is nearest.

    ``metric=cosine`` goes by the angle to the mean direction, ``metric=euclidean`` by distance.
    Which is better depends on the base: of 500 cats and dogs each, angles get 95.0 % of validation
    and 95.6 % of test right with VGG16 (distances 93.4 and 93.4), but 95.4 and 97.6 % with
    MobileNetV2 (distances 96.2 and 97.8); so validation chooses.

    A class has one prototype however many its rows: it is balanced without weights.
    """

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        for metric, fit in (("cosine", _by_angle), ("euclidean", _by_distance)):
            if options.wants({"metric": metric}):
                yield Candidate(
                    spec=HeadSpec("prototype", {"metric": metric}),
                    classifier=fit(train),
                    seed=options.seeds[0],
                )


def _by_angle(train: TrainingSet) -> LinearClassifier:
    # the length of the row that is classified is the same for all classes, so it can stay
    prototypes = directions_of(_means(directions_of(train.features), train))
    return _linear(np.asarray(prototypes, np.float64), np.zeros(train.class_count))


def _by_distance(train: TrainingSet) -> LinearClassifier:
    # ‖x - p‖² / 2 without ‖x‖² / 2, which is the same for all classes
    prototypes = _means(train.features, train)
    return _linear(prototypes, -(prototypes**2).sum(axis=1) / 2)


def _means(rows: Floats, train: TrainingSet) -> npt.NDArray[np.float64]:
    """The mean row of each class, (K, D)."""
    groups = (rows[train.labels == label] for label in range(train.class_count))
    return np.stack([group.mean(axis=0, dtype=np.float64) for group in groups])


def _linear(
    weights: npt.NDArray[np.float64], intercepts: npt.NDArray[np.float64]
) -> LinearClassifier:
    if len(weights) == 2:
        weights, intercepts = weights[1:] - weights[:1], intercepts[1:] - intercepts[:1]
    return LinearClassifier(weights, intercepts, has_probabilities=False)
