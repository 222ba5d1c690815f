"""From fitted heads to rows of the table. The only place that looks at test."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.cache.file import FeatureTable
from pipeline.errors import PipelineError
from pipeline.evaluation.choose import Choice
from pipeline.evaluation.fitting import DIVERGED, Fitted, TrialRows
from pipeline.evaluation.metrics import (
    Labels,
    Metrics,
    Scores,
    accuracy_of,
    expected_calibration_error,
    log_loss_of,
    measure,
)
from pipeline.evaluation.result import Outcome, Predictions, Result
from pipeline.evaluation.splits import Rows, Splits
from pipeline.evaluation.statistics import wilson_interval
from pipeline.heads.calibration import apply_temperature
from pipeline.heads.head import Input
from pipeline.text import printable

MEASURES = (
    "macro_f1",
    "roc_auc",
    "log_loss",
    "top5_accuracy",
    "balanced_accuracy",
    "brier",
)


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """One choice, measured on the test rows of its trial."""

    choice: Choice
    splits: Splits
    labels: Labels
    scores: Scores
    calibrated: Scores
    measured: Metrics
    train_accuracy: float
    seconds: float


def score(
    name: str,
    fitted: Sequence[Fitted],
    data: TrialRows,
    *,
    table: FeatureTable,
    layer: str,
    kind: Input,
    folds: int,
) -> Outcome:
    """Measure a head on the test rows of each of its trials.

    Accuracies and calibration errors are over all images scored, other measures means over the
    fits. A head that has no choice on some trial gets a row that says why.

    Parameters
    ----------
    fitted : one for each of ``data.trials``.
    folds : how many trials test every image once; 0 where all have the same test rows.
    """
    result = Result(
        head=name,
        input=kind,
        base=table.spec.base,
        layer=layer,
        image_size=table.spec.image_size,
        fingerprint=table.spec.fingerprint,
        cache=printable(table.path.as_posix()),
        views=data.rows.learned,
        tta=data.rows.averaged,
    )
    failed = next((each.status for each in fitted if not each.choices), None)
    if failed is not None:
        return Outcome(result=replace(result, status=failed))
    try:
        scored = [
            [_score(choice, trial.splits, data) for choice in each.choices]
            for trial, each in zip(data.trials, fitted, strict=True)
        ]
    except PipelineError as error:  # a head of the user's own that fails on other rows
        return Outcome(result=replace(result, status=str(error)))
    if not all(np.isfinite(each.scores).all() for trial in scored for each in trial):
        return Outcome(result=replace(result, status=DIVERGED))
    # fits that together test every image once: the folds of a repeat, or one seed
    passes = (
        [[each for (each,) in scored[at : at + folds]] for at in range(0, len(scored), folds)]
        if folds
        else [[each] for each in scored[0]]
    )
    once = passes[0]
    first = once[0].choice
    return Outcome(
        result=replace(result, **_figures(passes)),
        test=_predictions(table, [(each.splits.test, each.scores) for each in once]),
        validation=_predictions(
            table, [(each.splits.validation, each.choice.validation_scores) for each in once]
        ),
        has_probabilities=True,
        own_probabilities=first.candidate.classifier.has_probabilities,
        folds=folds,
        history=first.candidate.history,
        settings=first.settings,
    )


def _score(choice: Choice, splits: Splits, data: TrialRows) -> _Scored:
    train, test = data.as_they_are(splits.train), data.to_judge(splits.test)
    started = time.perf_counter()
    scores = test.averaged(choice.classifier.scores)
    seconds = time.perf_counter() - started
    # a classifier without probabilities of its own has its temperature in them already
    own = choice.candidate.classifier.has_probabilities
    calibrated = apply_temperature(
        scores, choice.temperature if own else 1.0, has_probabilities=True
    )
    return _Scored(
        choice=choice,
        splits=splits,
        labels=test.labels,
        scores=scores,
        calibrated=calibrated,
        measured=measure(test.labels, scores, has_probabilities=True),
        train_accuracy=accuracy_of(train.labels, choice.classifier.scores(train.features)),
        seconds=seconds,
    )


def _figures(passes: Sequence[Sequence[_Scored]]) -> dict[str, Any]:
    """What a row of the table says of its fits; of each pass, they test every image once."""
    scored = [each for once in passes for each in once]
    accuracies = [each.measured.accuracy for each in scored]
    tests = [len(each.splits.test) for each in scored]
    images = len(np.unique(np.concatenate([each.splits.test for each in scored])))
    accuracy = float(np.average(accuracies, weights=tests))
    low, high = wilson_interval(accuracy * images, images)
    validation_accuracy = np.average(
        [each.choice.validation_accuracy for each in scored],
        weights=[len(each.splits.validation) for each in scored],
    )
    balanced = _mean(each.choice.validation_balanced_accuracy for each in scored)
    figures = {name: _mean(getattr(each.measured, name) for each in scored) for name in MEASURES}
    return figures | {
        "params": _usual([each.choice.candidate.spec.params_text for each in scored]),
        "train_accuracy": _mean(each.train_accuracy for each in scored),
        "validation_accuracy": float(validation_accuracy),
        "validation_balanced_accuracy": balanced,
        "test_accuracy": accuracy,
        "test_low": low,
        "test_high": high,
        "test_spread": float(np.std(accuracies, ddof=1)) if len(scored) > 1 else np.nan,
        "fit_seconds": sum(each.choice.fit_seconds for each in scored),
        "predict_ms": 1000 * sum(each.seconds for each in scored) / sum(tests),
        "parameters": max(each.choice.classifier.parameters for each in scored),
        "temperature": _mean(each.choice.temperature for each in scored),
        "calibrated_log_loss": _mean(log_loss_of(each.labels, each.calibrated) for each in scored),
        "ece": _mean(_ece(once, [each.scores for each in once]) for once in passes),
        "calibrated_ece": _mean(_ece(once, [each.calibrated for each in once]) for once in passes),
        "fits": len(scored),
    }


def _ece(once: Sequence[_Scored], scores: Sequence[Scores]) -> float:
    """Over all images together: in the bins of a small fold it would measure noise."""
    labels = np.concatenate([each.labels for each in once])
    return expected_calibration_error(labels, np.concatenate(scores))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _usual(texts: Sequence[str]) -> str:
    """The setting chosen most often, and how often unless always."""
    text, count = Counter(texts).most_common(1)[0]
    return text if count == len(texts) else f"{text} ({count} of {len(texts)} fits)".lstrip()


def _predictions(table: FeatureTable, parts: Sequence[tuple[Rows, Scores]]) -> Predictions:
    """Scores of several trials in the order of the rows."""
    rows = np.concatenate([rows for rows, _ in parts])
    order = np.argsort(rows)
    rows = rows[order]
    return Predictions(
        rows=rows,
        keys=table.columns.digests[rows],
        labels=table.columns.labels[rows],
        scores=np.concatenate([scores for _, scores in parts])[order],
    )
