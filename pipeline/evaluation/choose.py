"""Choose a head's setting. The test rows are not among the arguments: none can select on them."""

import time
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics import accuracy_of, log_loss_of
from pipeline.heads.head import Candidate, FitOptions, Head
from pipeline.heads.training import LabelledRows, TrainingSet


@dataclass(frozen=True)
class Choice:
    """The candidate that did best on validation, and the seconds it took to fit them all."""

    candidate: Candidate
    validation_accuracy: float
    fit_seconds: float


def choose(
    head: Head, train: TrainingSet, validation: LabelledRows, options: FitOptions
) -> Choice | None:
    """Fit all candidates and keep the one of the highest validation accuracy.

    Of equally accurate ones the lowest log loss decides, where there are probabilities: on an easy
    set many settings are right everywhere, and the most regularised of them are needlessly unsure.
    Of what is still equal the most regularised is kept.

    None if no candidate's scores are finite: the training diverged.
    """
    best: tuple[Candidate, tuple[float, float]] | None = None
    seconds = 0.0
    started = time.perf_counter()
    for candidate in head.fit_candidates(train, validation, options):
        seconds += time.perf_counter() - started
        scores = candidate.classifier.scores(validation.features)
        if np.isfinite(scores).all():
            loss = 0.0
            if candidate.classifier.has_probabilities:
                loss = log_loss_of(validation.labels, scores)
            merit = accuracy_of(validation.labels, scores), -loss
            if best is None or merit > best[1]:
                best = candidate, merit
        started = time.perf_counter()
    if best is None:
        return None
    candidate, (accuracy, _) = best
    return Choice(candidate, accuracy, fit_seconds=seconds)
