"""Linear heads are scikit-learn's models, however few unknowns they are fitted with."""

import warnings

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_features
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC

from pipeline.heads.discriminant import Lda
from pipeline.heads.head import FitOptions, Head
from pipeline.heads.linear import LinearSvm, Logistic, Ridge
from pipeline.heads.training import TrainingSet

WIDE, TALL = (40, 300), (150, 20)  # D ≥ 2 N is rotated, D < 2 N is not
ESTIMATORS = {
    "logistic": lambda C: LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12),
    "linear_svm": lambda C: LinearSVC(C=C, dual=False, tol=1e-10, max_iter=100_000),
    "ridge": lambda alpha: RidgeClassifier(alpha=alpha),
    "lda": lambda shrinkage: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage),
}


def draw_train(size: tuple[int, int], class_count: int) -> TrainingSet:
    count, width = size
    labels = np.asarray(alternating_labels(count, class_count))
    features = draw_features(labels, (width,), signal=0.3) * 50 + 7
    features[:, 3] = 5.0  # a feature that never changes
    return TrainingSet(features, labels, class_count)


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("head", [Logistic(), LinearSvm(), Ridge(), Lda()], ids=list(ESTIMATORS))
def test_fit_equals_scikit_learn_on_the_scaled_features(
    head: Head, size: tuple[int, int], class_count: int
) -> None:
    train = draw_train(size, class_count)
    assert (train.basis is not None) == (size == WIDE)
    rows = train.scaler(train.features)
    fresh = draw_features(np.zeros(30, np.int64), size[1:], seed=5) * 50 + 7
    compared = 0
    for candidate in head.fit_candidates(train, train, FitOptions()):
        ((_, value),) = candidate.spec.params.items()
        estimator = ESTIMATORS[candidate.spec.name](value)
        if candidate.spec.name == "logistic" and value > 100:
            continue  # the classes are separable: the reference itself no longer converges
        estimator.fit(rows, train.labels)
        scores = candidate.classifier.scores(fresh)
        if candidate.classifier.has_probabilities:
            expected = estimator.predict_proba(train.scaler(fresh))
        else:
            expected = estimator.decision_function(train.scaler(fresh))
            scores = scores[:, 1] if class_count == 2 else scores
        np.testing.assert_allclose(scores, expected, atol=2e-3 * np.abs(expected).max())
        np.testing.assert_array_equal(candidate.classifier.scores(fresh).argmax(axis=1).shape, 30)
        compared += 1
    assert compared >= 5


def test_basis_is_orthonormal_and_loses_nothing_of_the_rows() -> None:
    train = draw_train(WIDE, 2)
    assert train.basis is not None
    np.testing.assert_allclose(train.basis.T @ train.basis, np.eye(40), atol=1e-12)
    np.testing.assert_allclose(train.coordinates @ train.basis.T, train.scaled, atol=1e-12)


def test_scaling_knows_only_the_training_rows() -> None:
    train = draw_train(TALL, 2)
    np.testing.assert_allclose(train.scaled.mean(axis=0), 0, atol=1e-12)
    assert np.mean((train.scaled**2).sum(axis=1)) == pytest.approx(1)


def test_features_that_never_change_do_no_harm() -> None:
    train = TrainingSet(np.full((10, 6), 3.0, np.float32), np.arange(10) % 2, 2)
    for candidate in Logistic().fit_candidates(train, train, FitOptions()):
        np.testing.assert_allclose(candidate.classifier.scores(train.features), 0.5)


def test_parameters_are_weights_and_intercepts() -> None:
    for class_count, expected in ((2, 21), (3, 63)):
        for head in (Logistic(), LinearSvm(), Ridge(), Lda()):
            candidate = next(
                head.fit_candidates(
                    draw_train(TALL, class_count), draw_train(TALL, 2), FitOptions()
                )
            )
            assert candidate.classifier.parameters == expected


def test_a_fit_that_did_not_converge_is_marked_and_not_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def impatient(*args: object, **settings: object) -> LogisticRegression:
        return LogisticRegression(**{**settings, "max_iter": 2})

    monkeypatch.setattr("pipeline.heads.linear.LogisticRegression", impatient)
    train = draw_train(TALL, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        marks = [each.converged for each in Logistic().fit_candidates(train, train, FitOptions())]
    assert not all(marks)
