"""Score fits on test and summarize them as rows of the table. Only this module uses test."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import Columns, FeatureTable
from pipeline.evaluation.abstention import calibrate, conformity_of
from pipeline.evaluation.fit_plan import stratified_sample
from pipeline.evaluation.fitting import DIVERGED
from pipeline.evaluation.metrics import (
    Labels,
    Scores,
    accuracy_of,
    compute_metrics,
    expected_calibration_error,
    log_loss_of,
)
from pipeline.evaluation.result import (
    Fit,
    HeadPredictions,
    Outcome,
    Result,
    most_frequent_setting,
    params_text,
)
from pipeline.evaluation.rows import TrialRows, ViewRows
from pipeline.evaluation.splits import Images, Trial
from pipeline.evaluation.statistics import wilson_interval
from pipeline.evaluation.tasks import TASKS, Task, interval, truth_of
from pipeline.heads.calibration import apply_temperature
from pipeline.heads.config import Input
from pipeline.heads.novelty import alarm_threshold
from pipeline.models.rejection import COVERAGE
from pipeline.spec import CLASSES
from pipeline.text import printable

MAX_TRAIN_SCORED = 5000  # the standard error of their accuracy is at most 0.7 points

Pairs = Sequence[tuple[Fit, Trial]]


def new_row(name: str, table: FeatureTable, layer: str, input: Input, rows: ViewRows) -> Result:
    """Return the row of a head before it is fitted."""
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
        task=table.task,
        metrics=target_columns(table.task),
    )


def score_on_test(fit: Fit, trial: Trial, data: TrialRows) -> Fit:
    """Return the fit with its predictions on the test images of its trial."""
    train, test = data.unaugmented(trial.splits.train), data.evaluation_rows(trial.splits.test)
    if len(train) > MAX_TRAIN_SCORED:
        train = train.take(stratified_sample(train, MAX_TRAIN_SCORED))
    started = time.perf_counter()
    scores = test.mean_probabilities(fit.estimator)
    seconds = time.perf_counter() - started
    value = accuracy_of if data.task == CLASSES else TASKS[data.task].value
    accuracy = value(train.labels, train.mean_probabilities(fit.estimator))
    return replace(fit, test_scores=scores, train_accuracy=accuracy, predict_seconds=seconds)


def summarize(
    result: Result,
    fits: Sequence[Sequence[Fit]],
    trials: Sequence[Trial],
    columns: Columns,
    *,
    folds: int,
    distances: Scores | None = None,
    has_normal: bool = False,
) -> Outcome:
    """Return the outcome of a head's fits: for each trial, a fit per seed.

    ``has_normal`` : the first of two classes is normal, the second is to be found.

    Accuracies and calibration errors are over all test images, other metrics are means over the
    fits. ``folds`` is the number of trials that together test every image once; 0 for one split.
    ``distances`` are those of `sample_distances`, for classes.
    """
    if not all(np.isfinite(_test_scores(fit)).all() for of_trial in fits for fit in of_trial):
        return Outcome(result=replace(result, status=DIVERGED))
    pairs = [
        [(fit, trial) for fit in of_trial] for of_trial, trial in zip(fits, trials, strict=True)
    ]
    # a pass tests every test image once: with the folds of a repeat, or with one seed
    passes = (
        [[pair for (pair,) in pairs[at : at + folds]] for at in range(0, len(pairs), folds)]
        if folds
        else [[pair] for pair in pairs[0]]
    )
    first = fits[0][0]
    labels = truth_of(columns, result.task)
    tests, validations = (
        [_predictions(columns, labels, [part_of(*pair) for pair in of_pass]) for of_pass in passes]
        for part_of in (_test_part, _validation_part)
    )
    if result.task == CLASSES:
        metrics = _metrics(passes, columns.labels)
        if has_normal:
            metrics |= _alarm_metrics(passes, columns.labels)
    else:
        metrics = _target_metrics(passes, tests, validations, TASKS[result.task])
    rejection: dict[str, Any] = {}
    if distances is not None:
        rejection = {
            "calibration": calibrate(tests[0] if folds else validations[0], distances),
            "conformity": (values := _conformity(passes[0], columns, distances)),
        }
        is_kept = values > 1 - COVERAGE
        if not np.isnan(values).all():
            metrics["coverage"] = float(np.mean(is_kept[~np.isnan(values)]))
            metrics["kept_accuracy"] = _mean(tests[0].correct[is_kept])
    return Outcome(
        result=replace(result, **metrics, note=first.note),
        **rejection,
        setting=first.params,
        test=tests[0],
        validation=validations[0],
        native_probabilities=first.native_probabilities,
        folds=folds,
        history=first.history,
        settings=first.settings,
    )


def _conformity(pairs: Pairs, columns: Columns, distances: Scores) -> Scores:
    """Return the p-values (n,) of the test images of a pass, each by validation of its trial.

    They are NaN without a distance, or if validation is too small to reject any image at 95 %.
    """
    values = np.full(len(columns), np.nan)
    for fit, trial in pairs:
        parts = [_validation_part(fit, trial)]
        known = calibrate(_predictions(columns, columns.labels, parts), distances)
        test, scores = _test_part(fit, trial)
        if len(known) + 1 >= round(1 / (1 - COVERAGE)):
            values[test] = conformity_of(known, scores, distances[test])
    images = np.sort(np.concatenate([trial.splits.test for _, trial in pairs]))
    return np.asarray(values[images])


def _test_scores(fit: Fit) -> Scores:
    if fit.test_scores is None:
        raise ValueError("the fit has no test scores; call score_on_test first")
    return fit.test_scores


def _test_part(fit: Fit, trial: Trial) -> tuple[Images, Scores]:
    return trial.splits.test, _test_scores(fit)


def _validation_part(fit: Fit, trial: Trial) -> tuple[Images, Scores]:
    return trial.splits.validation, fit.validation_scores


def _calibrated(fit: Fit) -> Scores:
    """Return test probabilities with the temperature, which scaled estimators already apply."""
    temperature = fit.temperature if fit.native_probabilities else 1.0
    return apply_temperature(_test_scores(fit), temperature, has_probabilities=True)


def _metrics(passes: Sequence[Pairs], labels: Labels) -> dict[str, Any]:
    pairs = [pair for of_pass in passes for pair in of_pass]
    fits = [fit for fit, _ in pairs]
    tests = [trial.splits.test for _, trial in pairs]
    scored = [(labels[test], _test_scores(fit)) for fit, test in zip(fits, tests, strict=True)]
    metrics = [compute_metrics(*of_fit) for of_fit in scored]
    accuracies = [accuracy_of(*of_fit) for of_fit in scored]
    sizes = [len(test) for test in tests]
    images = len(np.unique(np.concatenate(tests)))
    accuracy = float(np.average(accuracies, weights=sizes))
    low, high = wilson_interval(accuracy * images, images)
    validation_accuracy = np.average(
        [fit.validation_accuracy for fit in fits],
        weights=[len(trial.splits.validation) for _, trial in pairs],
    )
    means = {name: _mean(of_fit[name] for of_fit in metrics) for name in metrics[0]}
    return means | {
        "params": _chosen_params(fits),
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
        "ece": _mean(_ece(of_pass, labels, _test_scores) for of_pass in passes),
        "calibrated_ece": _mean(_ece(of_pass, labels, _calibrated) for of_pass in passes),
        "fits": len(fits),
    }


def _alarm_metrics(passes: Sequence[Pairs], labels: Labels) -> dict[str, float]:
    """Return the recall of class 1 where at most 5 % of class 0 are false alarms.

    The threshold of a fit is chosen on validation, for ``best_recall`` on the test images
    themselves; the images of all folds count together.
    """

    def above(pairs: Pairs, part_of: Callable[[Fit, Trial], tuple[Images, Scores]]) -> Any:
        """Return whether each test image is above the threshold of normal ones of a part."""
        parts = []
        for fit, trial in pairs:
            images, scores = part_of(fit, trial)
            threshold = alarm_threshold(scores[labels[images] == 0, 1])
            parts.append(_test_scores(fit)[:, 1] > threshold)
        return np.concatenate(parts)

    metrics = []
    for pairs in passes:
        is_normal = np.concatenate([labels[trial.splits.test] for _, trial in pairs]) == 0
        alarms = above(pairs, _validation_part)
        metrics.append(
            {
                "recall_at_5_percent_false_alarms": _mean(alarms[~is_normal]),
                "false_alarms": _mean(alarms[is_normal]),
                "best_recall_at_5_percent_false_alarms": _mean(
                    above(pairs, _test_part)[~is_normal]
                ),
            }
        )
    return {name: _mean(of_pass[name] for of_pass in metrics) for name in metrics[0]}


def target_columns(task: str) -> dict[str, float]:
    """Return the metric columns of a task without classes, all NaN; none for classes."""
    if task == CLASSES:
        return {}
    measure, *_ = metrics = TASKS[task].metrics
    names = [f"train_{measure}", f"validation_{measure}", f"test_{measure}_spread"]
    names[2:2] = [f"test_{name}{end}" for name in metrics for end in ("", "_low", "_high")]
    return dict.fromkeys(names, np.nan)


def _target_metrics(
    passes: Sequence[Pairs],
    tests: Sequence[HeadPredictions],
    validations: Sequence[HeadPredictions],
    task: Task,
) -> dict[str, Any]:
    """Return the fields of a result: metrics over all images of a pass, and their mean."""
    pairs = [pair for of_pass in passes for pair in of_pass]
    fits, measure = [fit for fit, _ in pairs], task.measure
    values = [
        task.value(tests[0].labels[np.isin(tests[0].rows, trial.splits.test)], _test_scores(fit))
        for fit, trial in pairs
    ]
    metrics = target_columns(task.name) | {
        f"train_{measure}": _mean(fit.train_accuracy for fit in fits),
        f"validation_{measure}": _mean(
            task.value(each.labels, each.scores) for each in validations
        ),
        f"test_{measure}_spread": float(np.std(values, ddof=1)) if len(fits) > 1 else np.nan,
    }
    for name in task.metrics:
        of_passes = [task.value(each.labels, each.scores, name) for each in tests]
        samples = task.resampled(tests[0].labels, [each.scores for each in tests], name)
        low, high = interval(samples, value := _mean(of_passes))
        metrics |= {f"test_{name}": value, f"test_{name}_low": low, f"test_{name}_high": high}
    return {
        "params": _chosen_params(fits),
        "metrics": metrics,
        "fit_seconds": sum(fit.fit_seconds for fit in fits),
        "predict_ms": 1000 * sum(fit.predict_seconds for fit in fits) / sum(map(len, tests)),
        "parameters": max(fit.parameters for fit in fits),
        "fits": len(fits),
    }


def _ece(pairs: Pairs, labels: Labels, scores_of: Callable[[Fit], Scores]) -> float:
    """Return the error over all images of a pass: the bins of a small fold would measure noise."""
    tests = np.concatenate([trial.splits.test for _, trial in pairs])
    scores = np.concatenate([scores_of(fit) for fit, _ in pairs])
    return expected_calibration_error(labels[tests], scores)


def _mean(values: Iterable[float]) -> float:
    """Return the mean of values that are not NaN, such as an AUC without images of a class."""
    numbers = np.array([value for value in values if not np.isnan(value)])
    return float(numbers.mean()) if len(numbers) else np.nan


def _chosen_params(fits: Sequence[Fit]) -> str:
    """Return the most frequent setting, ``C=1 (3 of 5 fits)``."""
    chosen = most_frequent_setting(fits)
    text = params_text(chosen[0].params)
    share = f" ({len(chosen)} of {len(fits)} fits)" if len(chosen) < len(fits) else ""
    return f"{text}{share}".lstrip()


def _predictions(
    columns: Columns, labels: npt.NDArray[Any], parts: Sequence[tuple[Images, Scores]]
) -> HeadPredictions:
    """Return the predictions of several trials in the order of the images."""
    unsorted = np.concatenate([images for images, _ in parts])
    order = np.argsort(unsorted)
    images = unsorted[order]
    return HeadPredictions(
        rows=images,
        keys=columns.digests[images],
        paths=columns.paths[images],
        labels=labels[images],
        scores=np.concatenate([scores for _, scores in parts])[order],
    )
