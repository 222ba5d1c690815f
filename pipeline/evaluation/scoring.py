"""From fits to rows of the table. The only place that looks at test."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.cache.file import Columns, FeatureTable
from pipeline.evaluation.metrics import (
    Labels,
    Scores,
    accuracy_of,
    expected_calibration_error,
    log_loss_of,
    measure,
)
from pipeline.evaluation.result import Fit, HeadPredictions, Outcome, Result, params_text
from pipeline.evaluation.rows import TrialRows, ViewRows
from pipeline.evaluation.splits import Images, Trial
from pipeline.evaluation.statistics import wilson_interval
from pipeline.heads.calibration import apply_temperature
from pipeline.heads.config import Input
from pipeline.text import printable


def new_row(name: str, table: FeatureTable, layer: str, input: Input, rows: ViewRows) -> Result:
    spec = table.spec
    return Result(
        head=name,
        input=input,
        base=spec.base,
        layer=layer,
        image_size=spec.image_size,
        fingerprint=spec.fingerprint,
        cache=printable(table.path.as_posix()),
        views=rows.train_views,
        tta=rows.tta_views,
    )


def score_on_test(fit: Fit, trial: Trial, data: TrialRows) -> Fit:
    """The fit with its predictions on the test images of its trial."""
    train, test = data.unaugmented(trial.splits.train), data.evaluation_rows(trial.splits.test)
    started = time.perf_counter()
    scores = test.averaged(fit.estimator)
    seconds = time.perf_counter() - started
    accuracy = accuracy_of(train.labels, train.averaged(fit.estimator))
    return replace(fit, test_scores=scores, train_accuracy=accuracy, predict_seconds=seconds)


def summarize(
    result: Result,
    fits: Sequence[Sequence[Fit]],
    trials: Sequence[Trial],
    columns: Columns,
    *,
    folds: int,
) -> Outcome:
    """Measure the test predictions of a head's fits, of each trial one for each seed.

    Accuracies and calibration errors are over all images scored, other measures means over the
    fits. ``folds`` is how many trials test every image once; 0 of a fixed test set.
    """
    if not all(np.isfinite(_tested(fit)).all() for of_trial in fits for fit in of_trial):
        return Outcome(result=replace(result, status="diverged"))
    pairs = [[(fit, trial) for fit in each] for each, trial in zip(fits, trials, strict=True)]
    # fits that together test every image once: the folds of a repeat, or one seed
    passes = (
        [[pair for (pair,) in pairs[at : at + folds]] for at in range(0, len(pairs), folds)]
        if folds
        else [[pair] for pair in pairs[0]]
    )
    first, once = fits[0][0], passes[0]
    return Outcome(
        result=replace(result, **_figures(passes, columns.labels)),
        test=_predictions(columns, [(trial.splits.test, _tested(fit)) for fit, trial in once]),
        validation=_predictions(
            columns, [(trial.splits.validation, fit.validation_scores) for fit, trial in once]
        ),
        native_probabilities=first.native_probabilities,
        folds=folds,
        history=first.history,
        settings=first.settings,
    )


Pairs = Sequence[tuple[Fit, Trial]]


def _tested(fit: Fit) -> Scores:
    if fit.test_scores is None:
        raise ValueError("the fit has no test scores yet")
    return fit.test_scores


def _calibrated(fit: Fit) -> Scores:
    """Test probabilities with the temperature; a margin head has it in them already."""
    temperature = fit.temperature if fit.native_probabilities else 1.0
    return apply_temperature(_tested(fit), temperature, has_probabilities=True)


def _figures(passes: Sequence[Pairs], labels: Labels) -> dict[str, Any]:
    pairs = [pair for once in passes for pair in once]
    fits = [fit for fit, _ in pairs]
    tests = [trial.splits.test for _, trial in pairs]
    scored = [(labels[test], _tested(fit)) for fit, test in zip(fits, tests, strict=True)]
    measured = [measure(*each) for each in scored]
    accuracies = [accuracy_of(*each) for each in scored]
    sizes = [len(test) for test in tests]
    images = len(np.unique(np.concatenate(tests)))
    accuracy = float(np.average(accuracies, weights=sizes))
    low, high = wilson_interval(accuracy * images, images)
    validation_accuracy = np.average(
        [fit.validation_accuracy for fit in fits],
        weights=[len(trial.splits.validation) for _, trial in pairs],
    )
    figures = {name: _mean(each[name] for each in measured) for name in measured[0]}
    return figures | {
        "params": _usual([params_text(fit.params) for fit in fits]),
        "train_accuracy": _mean(fit.train_accuracy for fit in fits),
        "validation_accuracy": float(validation_accuracy),
        "validation_balanced_accuracy": _mean(fit.validation_balanced_accuracy for fit in fits),
        "test_accuracy": accuracy,
        "test_low": low,
        "test_high": high,
        "test_spread": float(np.std(accuracies, ddof=1)) if len(fits) > 1 else np.nan,
        "fit_seconds": sum(fit.fit_seconds for fit in fits),
        "predict_ms": 1000 * sum(fit.predict_seconds for fit in fits) / sum(sizes),
        "parameters": max(fit.parameters for fit in fits),
        "temperature": _mean(fit.temperature for fit in fits),
        "calibrated_log_loss": _mean(
            log_loss_of(labels[test], _calibrated(fit))
            for fit, test in zip(fits, tests, strict=True)
        ),
        "ece": _mean(_ece(once, labels, _tested) for once in passes),
        "calibrated_ece": _mean(_ece(once, labels, _calibrated) for once in passes),
        "fits": len(fits),
    }


def _ece(once: Pairs, labels: Labels, scores_of: Callable[[Fit], Scores]) -> float:
    """Over all images together: in the bins of a small fold it would measure noise."""
    tests = np.concatenate([trial.splits.test for _, trial in once])
    scores = np.concatenate([scores_of(fit) for fit, _ in once])
    return expected_calibration_error(labels[tests], scores)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _usual(texts: Sequence[str]) -> str:
    """The setting chosen most often, and how often unless always."""
    text, count = Counter(texts).most_common(1)[0]
    return text if count == len(texts) else f"{text} ({count} of {len(texts)} fits)".lstrip()


def _predictions(columns: Columns, parts: Sequence[tuple[Images, Scores]]) -> HeadPredictions:
    """Scores of several trials in the order of the images."""
    unsorted = np.concatenate([images for images, _ in parts])
    order = np.argsort(unsorted)
    images = unsorted[order]
    return HeadPredictions(
        rows=images,
        keys=columns.digests[images],
        labels=columns.labels[images],
        scores=np.concatenate([scores for _, scores in parts])[order],
    )
