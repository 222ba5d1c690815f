"""Metrics agree with scikit-learn and SciPy."""

import math
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
    compute_metrics,
    expected_calibration_error,
    reliability_bins,
    roc_auc_of,
)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of a division by 0
        yield


def draw_scores(
    class_count: int, *, count: int = 90, decimals: int = 15
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all classes, the first ones more often, and probabilities; rounding makes ties."""
    random = np.random.default_rng(0)
    labels = random.integers(class_count, size=(2, count)).min(axis=0)
    labels[:class_count] = np.arange(class_count)
    scores = random.normal(size=(count, class_count))
    scores[np.arange(count), labels] += 1
    scores = softmax(scores, axis=1).round(decimals)
    return labels, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("decimals", [15, 1])
@pytest.mark.parametrize("class_count", [2, 3, 7])
def test_measures_equal_those_of_scikit_learn(class_count: int, decimals: int) -> None:
    labels, scores = draw_scores(class_count, decimals=decimals)
    measures = compute_metrics(labels, scores)
    predicted = scores.argmax(axis=1)
    every = np.arange(class_count)
    auc = (
        reference.roc_auc_score(labels, scores[:, 1])
        if class_count == 2
        else reference.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    )
    assert accuracy_of(labels, scores) == pytest.approx(reference.accuracy_score(labels, predicted))
    assert measures["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(labels, predicted)
    )
    assert measures["macro_f1"] == pytest.approx(
        reference.f1_score(labels, predicted, average="macro")
    )
    assert measures["roc_auc"] == pytest.approx(auc)
    assert measures["log_loss"] == pytest.approx(reference.log_loss(labels, scores, labels=every))
    assert measures["brier"] == pytest.approx(
        reference.brier_score_loss(labels, scores, labels=every, scale_by_half=True)
    )


@pytest.mark.parametrize("decimals", [15, 1])
@pytest.mark.parametrize("class_count", [2, 3, 7])
def test_calibration_error_equals_that_of_scipys_bins(class_count: int, decimals: int) -> None:
    labels, scores = draw_scores(class_count, decimals=decimals)
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    bins = {"bins": CALIBRATION_BINS, "range": (0, 1)}
    gaps = binned_statistic(confidence, confidence - right, "sum", **bins).statistic
    expected = np.abs(gaps).sum() / len(labels)
    assert expected_calibration_error(labels, scores) == pytest.approx(expected)
    measures = reliability_bins(labels, scores)
    means = binned_statistic(confidence, [confidence, right], "mean", **bins).statistic
    np.testing.assert_allclose(measures.confidence, means[0])
    np.testing.assert_allclose(measures.accuracy, means[1])
    assert measures.rows.sum() == len(labels)


def test_top_5_counts_the_true_class_among_the_five_highest_scores() -> None:
    labels, scores = draw_scores(7)
    measures = compute_metrics(labels, scores)["top5_accuracy"]
    assert measures == pytest.approx(reference.top_k_accuracy_score(labels, scores, k=5))
    assert 0.5 < measures < 1
    tied = np.full((7, 7), 1 / 7)
    assert compute_metrics(np.arange(7), tied)["top5_accuracy"] == 5 / 7
    assert math.isnan(compute_metrics(*draw_scores(3))["top5_accuracy"])


def test_means_leave_out_a_class_that_a_small_fold_lacks() -> None:
    labels, scores = draw_scores(4)
    labels, scores = labels[labels != 2], scores[labels != 2]
    measures = compute_metrics(labels, scores)
    present = [0, 1, 3]
    predicted = scores.argmax(axis=1)
    recalls = reference.recall_score(labels, predicted, labels=present, average=None)
    assert measures["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert accuracy_of(labels, scores, balanced=True) == measures["balanced_accuracy"]
    assert measures["macro_f1"] == pytest.approx(
        reference.f1_score(labels, predicted, average="macro")
    )
    areas = [reference.roc_auc_score(labels == label, scores[:, label]) for label in present]
    assert measures["roc_auc"] == pytest.approx(np.mean(areas))
    for class_count in (2, 3):
        assert math.isnan(roc_auc_of(np.zeros(5, np.int64), draw_scores(class_count, count=5)[1]))


def test_certain_scores_have_no_loss_if_right_and_a_finite_loss_if_wrong() -> None:
    labels = np.array([0, 1, 1])
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    measures = compute_metrics(labels, right)
    assert (measures["log_loss"], measures["brier"], measures["roc_auc"]) == (0, 0, 1)
    assert expected_calibration_error(labels, right) == 0
    measures = compute_metrics(labels, wrong)
    assert (measures["brier"], measures["roc_auc"]) == (1, 0)
    assert expected_calibration_error(labels, wrong) == 1
    assert measures["log_loss"] == pytest.approx(reference.log_loss(labels, wrong))
