"""Choose a head's setting. The test rows are not among the arguments: none can select on them."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.metrics import accuracy_of, log_loss_of
from pipeline.evaluation.result import Setting
from pipeline.heads.calibration import Calibrated, fit_temperature
from pipeline.heads.head import Candidate, Classifier, FitOptions, Head
from pipeline.heads.training import LabelledRows, TrainingSet


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The setting that did best on validation.

    Attributes
    ----------
    candidate : as it was chosen.
    classifier : what predicts: the candidate's, or a refit; with probabilities in any case.
    seed : that it was fitted with.
    validation_scores : (V, K) of the candidate, as probabilities.
    validation_accuracy, validation_balanced_accuracy : of these.
    temperature : fitted on validation.
    settings : everything tried.
    fit_seconds : for all settings and the refit, shared out over the seeds.
    """

    candidate: Candidate
    classifier: Classifier
    seed: int
    validation_scores: npt.NDArray[np.float64]
    validation_accuracy: float
    validation_balanced_accuracy: float
    temperature: float
    settings: tuple[Setting, ...]
    fit_seconds: float


@dataclass(frozen=True)
class _Tried:
    candidate: Candidate
    scores: npt.NDArray[np.float64]
    accuracy: float
    log_loss: float  # NaN where the scores are no probabilities


def choose(
    head: Head,
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
    *,
    refit: LabelledRows | None = None,
) -> list[Choice]:
    """Fit all candidates and keep, for each seed, the one of the highest validation accuracy.

    Of equally accurate ones the lowest log loss decides, where there are probabilities: on an easy
    set many settings are right everywhere, and the most regularised of them are needlessly unsure.
    Of what is still equal the most regularised is kept. Where classes count equally
    (``train.balanced``), it is the balanced accuracy that decides.

    A classifier without probabilities gets a temperature fitted on validation and so has them.

    Settings are chosen on the images as they are. Where validation has views to average, what is
    chosen is measured by the mean of its probabilities over them.

    Parameters
    ----------
    refit : fit the chosen setting again, on train and these rows, which are those of validation.

    Returns one choice for each seed; none of a seed with which no candidate's scores are finite:
    the training diverged.
    """
    tried: list[_Tried] = []
    best: dict[int, _Tried] = {}
    seconds = 0.0
    for candidate, took in _timed(head.fit_candidates(train, validation, options)):
        seconds += took
        scores = candidate.classifier.scores(validation.features)
        if not np.isfinite(scores).all():
            tried.append(_Tried(candidate, scores, math.nan, math.nan))
            continue
        loss = math.nan
        if candidate.classifier.has_probabilities:
            loss = log_loss_of(validation.labels, scores)
        accuracy = accuracy_of(validation.labels, scores, balanced=train.balanced)
        this = _Tried(candidate, scores, accuracy, loss)
        tried.append(this)
        rival = best.get(candidate.seed)
        if rival is None or _merit(this) > _merit(rival):
            best[candidate.seed] = this
    return [
        _choice(
            head,
            chosen,
            [each for each in tried if each.candidate.seed == seed],
            train,
            validation,
            options,
            fit_seconds=seconds / len(best),
            refit=refit,
        )
        for seed, chosen in best.items()
    ]


def choice_of(candidate: Candidate, validation: LabelledRows, fit_seconds: float) -> Choice:
    """The choice where one setting was trained, for so many seconds; it has probabilities."""
    scores = validation.averaged(candidate.classifier.scores)
    return Choice(
        candidate=candidate,
        classifier=candidate.classifier,
        seed=candidate.seed,
        validation_scores=scores,
        validation_accuracy=accuracy_of(validation.labels, scores),
        validation_balanced_accuracy=accuracy_of(validation.labels, scores, balanced=True),
        temperature=fit_temperature(validation.labels, scores, has_probabilities=True),
        settings=(),
        fit_seconds=fit_seconds,
    )


def _timed(candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, float]]:
    """Each candidate with the seconds it took to come."""
    started = time.perf_counter()
    for candidate in candidates:
        yield candidate, time.perf_counter() - started
        started = time.perf_counter()


def _merit(tried: _Tried) -> tuple[float, float]:
    return tried.accuracy, 0.0 if math.isnan(tried.log_loss) else -tried.log_loss


def _choice(
    head: Head,
    chosen: _Tried,
    tried: list[_Tried],
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
    *,
    fit_seconds: float,
    refit: LabelledRows | None,
) -> Choice:
    candidate, labels = chosen.candidate, validation.labels
    classifier = measured = candidate.classifier
    if refit is not None:
        once = replace(options, wanted=candidate.spec.params, seeds=(candidate.seed,))
        (again, took), *_ = _timed(head.fit_candidates(train.joined(refit), validation, once))
        classifier = again.classifier
        fit_seconds += took
    if candidate.classifier.has_probabilities:
        scores = validation.averaged(measured.scores)
        temperature = fit_temperature(labels, scores, has_probabilities=True)
    else:  # views are averaged as probabilities, so these come first
        temperature = fit_temperature(labels, chosen.scores, has_probabilities=False)
        classifier = Calibrated(classifier, temperature)
        scores = validation.averaged(Calibrated(measured, temperature).scores)
    return Choice(
        candidate=candidate,
        classifier=classifier,
        seed=candidate.seed,
        validation_scores=scores,
        validation_accuracy=accuracy_of(labels, scores),
        validation_balanced_accuracy=accuracy_of(labels, scores, balanced=True),
        temperature=temperature,
        settings=tuple(
            Setting(
                params=each.candidate.spec.params_text,
                validation_accuracy=each.accuracy,
                validation_log_loss=each.log_loss,
                converged=each.candidate.converged,
                chosen=each is chosen,
            )
            for each in tried
        ),
        fit_seconds=fit_seconds,
    )
