"""Metrics agree with scikit-learn and SciPy."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as reference

from pipeline.evaluation.metrics import confusion_matrix, measure, wilson_interval


def drawn_scores(class_count: int, *, probabilities: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(class_count)
    labels = random.permutation(np.arange(90) % class_count)
    scores = random.normal(size=(90, class_count))
    scores[np.arange(90), labels] += 1
    if probabilities:
        scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return labels, scores


@pytest.mark.parametrize("class_count", [2, 3, 7])
def test_probabilities_are_measured_as_scikit_learn_does(class_count: int) -> None:
    labels, scores = drawn_scores(class_count, probabilities=True)
    found = measure(labels, scores, has_probabilities=True)
    predicted = scores.argmax(axis=1)
    assert found.accuracy == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    auc = (
        reference.roc_auc_score(labels, scores[:, 1])
        if class_count == 2
        else reference.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    )
    assert found.roc_auc == pytest.approx(auc)
    assert found.log_loss == pytest.approx(-np.log(scores[np.arange(90), labels]).mean())
    if class_count > 5:
        in_top = [label in np.argsort(row)[-5:] for label, row in zip(labels, scores, strict=True)]
        assert found.top5_accuracy == pytest.approx(np.mean(in_top))
        assert 0 < found.top5_accuracy < 1
    else:
        assert math.isnan(found.top5_accuracy)


def test_decision_values_have_no_log_loss_but_an_auc() -> None:
    labels, scores = drawn_scores(3, probabilities=False)
    found = measure(labels, scores, has_probabilities=False)
    assert math.isnan(found.log_loss)
    assert 0.5 < found.roc_auc < 1


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (97, 100), (480, 500), (1, 2)])
def test_wilson_interval_equals_scipys(correct: int, count: int) -> None:
    expected = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high))


def test_confusion_has_true_classes_as_rows() -> None:
    labels, scores = drawn_scores(3, probabilities=True)
    expected = reference.confusion_matrix(labels, scores.argmax(axis=1))
    np.testing.assert_array_equal(confusion_matrix(labels, scores), expected)
    assert not np.array_equal(expected, expected.T)
