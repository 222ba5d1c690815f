"""Metrics agree with scikit-learn and SciPy."""

import math
import time
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binned_statistic
from sklearn import metrics as reference

from pipeline.evaluation.metrics import (
    CALIBRATION_BINS,
    accuracy_of,
    expected_calibration_error,
    measure,
    reliability_bins,
    roc_auc_of,
)

CLASS_COUNTS = [2, 3, 7]
SEEDS = range(5)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of a division by 0
        yield


def draw_scores(
    class_count: int, *, seed: int = 0, count: int = 90, decimals: int = 15
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all classes, the first ones more often, and probabilities; ties by rounding."""
    random = np.random.default_rng(seed)
    labels = random.integers(class_count, size=(2, count)).min(axis=0)
    labels[:class_count] = np.arange(class_count)
    scores = random.normal(size=(count, class_count))
    scores[np.arange(count), labels] += 1
    scores = softmax(scores, axis=1).round(decimals)
    return labels, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("decimals", [15, 1])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("class_count", CLASS_COUNTS)
def test_probabilities_are_measured_as_scikit_learn_does(
    class_count: int, seed: int, decimals: int
) -> None:
    labels, scores = draw_scores(class_count, seed=seed, decimals=decimals)
    found = measure(labels, scores)
    predicted = scores.argmax(axis=1)
    every = np.arange(class_count)
    auc = (
        reference.roc_auc_score(labels, scores[:, 1])
        if class_count == 2
        else reference.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    )
    assert accuracy_of(labels, scores) == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(labels, predicted)
    )
    assert found["macro_f1"] == pytest.approx(
        reference.f1_score(labels, predicted, average="macro")
    )
    assert found["roc_auc"] == pytest.approx(auc)
    assert found["log_loss"] == pytest.approx(reference.log_loss(labels, scores, labels=every))
    assert found["brier"] == pytest.approx(
        reference.brier_score_loss(labels, scores, labels=every, scale_by_half=True)
    )


@pytest.mark.parametrize("decimals", [15, 1])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("class_count", CLASS_COUNTS)
def test_calibration_error_is_that_of_scipys_bins(
    class_count: int, seed: int, decimals: int
) -> None:
    labels, scores = draw_scores(class_count, seed=seed, decimals=decimals)
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    bins = {"bins": CALIBRATION_BINS, "range": (0, 1)}
    gaps = binned_statistic(confidence, confidence - right, "sum", **bins).statistic
    expected = np.abs(gaps).sum() / len(labels)
    assert expected_calibration_error(labels, scores) == pytest.approx(expected)
    found = reliability_bins(labels, scores)
    means = binned_statistic(confidence, [confidence, right], "mean", **bins).statistic
    np.testing.assert_allclose(found.confidence, means[0])
    np.testing.assert_allclose(found.accuracy, means[1])
    assert found.rows.sum() == len(labels)


def test_the_true_class_counts_as_found_among_the_five_highest() -> None:
    labels, scores = draw_scores(7)
    found = measure(labels, scores)["top5_accuracy"]
    assert found == pytest.approx(reference.top_k_accuracy_score(labels, scores, k=5))
    assert 0.5 < found < 1
    tied = np.full((7, 7), 1 / 7)
    assert measure(np.arange(7), tied)["top5_accuracy"] == 5 / 7
    assert math.isnan(measure(*draw_scores(3))["top5_accuracy"])


def test_a_class_that_a_small_fold_lacks_is_left_out_of_the_means() -> None:
    labels, scores = draw_scores(4)
    labels, scores = labels[labels != 2], scores[labels != 2]
    found = measure(labels, scores)
    present = [0, 1, 3]
    predicted = scores.argmax(axis=1)
    recalls = reference.recall_score(labels, predicted, labels=present, average=None)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert accuracy_of(labels, scores, balanced=True) == found["balanced_accuracy"]
    assert found["macro_f1"] == pytest.approx(
        reference.f1_score(labels, predicted, average="macro")
    )
    areas = [reference.roc_auc_score(labels == label, scores[:, label]) for label in present]
    assert found["roc_auc"] == pytest.approx(np.mean(areas))
    for class_count in (2, 3):
        assert math.isnan(roc_auc_of(np.zeros(5, np.int64), draw_scores(class_count, count=5)[1]))


def test_certain_and_right_is_no_loss_certain_and_wrong_is_finite() -> None:
    labels = np.array([0, 1, 1])
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    found = measure(labels, right)
    assert (found["log_loss"], found["brier"], found["roc_auc"]) == (0, 0, 1)
    assert expected_calibration_error(labels, right) == 0
    found = measure(labels, wrong)
    assert (found["brier"], found["roc_auc"]) == (1, 0)
    assert expected_calibration_error(labels, wrong) == 1
    assert found["log_loss"] == pytest.approx(reference.log_loss(labels, wrong))


def test_measuring_500_rows_takes_milliseconds() -> None:
    labels, scores = draw_scores(2, count=500)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        measure(labels, scores)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.01
