"""Choose a head's setting. The test rows are not among the arguments: none can select on them."""

import time
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics import accuracy_of
from pipeline.heads.head import Candidate, FitOptions, Head
from pipeline.heads.training import LabelledRows, TrainingSet


@dataclass(frozen=True)
class Choice:
    """The candidate of the highest validation accuracy, and the seconds it took to fit them all."""

    candidate: Candidate
    validation_accuracy: float
    fit_seconds: float


def choose(
    head: Head, train: TrainingSet, validation: LabelledRows, options: FitOptions
) -> Choice | None:
    """Fit all candidates and keep the best on validation; of equals the most regularised.

    None if no candidate's scores are finite: the training diverged.
    """
    best: tuple[Candidate, float] | None = None
    seconds = 0.0
    started = time.perf_counter()
    for candidate in head.fit_candidates(train, validation, options):
        seconds += time.perf_counter() - started
        scores = candidate.classifier.scores(validation.features)
        if np.isfinite(scores).all():
            accuracy = accuracy_of(validation.labels, scores)
            if best is None or accuracy > best[1]:
                best = candidate, accuracy
        started = time.perf_counter()
    return best and Choice(*best, fit_seconds=seconds)
