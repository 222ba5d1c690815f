"""Linear heads are scikit-learn's models, however few unknowns they are fitted with."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from feature_sets import draw_features
from head_sets import draw_train
from pipeline.heads.discriminant import Lda
from pipeline.heads.head import FitOptions, Head
from pipeline.heads.linear_svm import LinearSvm
from pipeline.heads.logistic import Logistic
from pipeline.heads.ridge import Ridge
from pipeline.heads.training import TrainingSet
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

WIDE, TALL = (40, 300), (150, 20)  # D ≥ 2 N is rotated, D < 2 N is not
HEADS = {"logistic": Logistic(), "linear_svm": LinearSvm(), "ridge": Ridge(), "lda": Lda()}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As `compare_heads` has it: the threads of NumPy's and SciPy's BLAS wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


ESTIMATORS = {
    "logistic": lambda C: LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12),
    "linear_svm": lambda C: LinearSVC(C=C, dual=False, tol=1e-10, max_iter=100_000),
    "ridge": lambda alpha: RidgeClassifier(alpha=alpha),
    "lda": lambda shrinkage: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage),
}


def assert_equals_scikit_learn(name: str, train: TrainingSet) -> None:
    fresh = draw_features(np.zeros(30, np.int64), train.features.shape[1:], seed=5) * 50 + 7
    compared = 0
    for candidate in HEADS[name].fit_candidates(train, train, FitOptions()):
        assert candidate.spec.name == name
        ((_, value),) = candidate.spec.params.items()
        if name == "logistic" and value > 100:
            continue  # the classes are separable: the reference itself no longer converges
        estimator = ESTIMATORS[name](value)
        if name == "lda":
            estimator.set_params(priors=train.shares).fit(train.scaled, train.labels)
        else:
            estimator.fit(train.scaled, train.labels, sample_weight=train.row_weights)
        scores = candidate.classifier.scores(fresh)
        if candidate.classifier.has_probabilities:
            expected = estimator.predict_proba(train.scaler(fresh))
        else:
            expected = estimator.decision_function(train.scaler(fresh))
            scores = scores[:, 1] if train.class_count == 2 else scores
        np.testing.assert_allclose(scores, expected, atol=2e-3 * np.abs(expected).max())
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("name", HEADS)
def test_fit_equals_scikit_learn_on_the_scaled_features(
    name: str, size: tuple[int, int], class_count: int
) -> None:
    train = draw_train(size, class_count)
    assert (train.basis is not None) == (size == WIDE)
    assert_equals_scikit_learn(name, train)


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_balanced_fit_equals_scikit_learn_with_row_weights_or_priors(
    name: str, class_count: int
) -> None:
    train = draw_train(TALL, class_count, rare=5, balanced=True)
    assert np.ptp(train.row_weights) > 1
    assert_equals_scikit_learn(name, train)


@pytest.mark.parametrize(
    ("head", "reference"),
    [
        (Logistic(), LogisticRegression(C=1.0, tol=1e-10, class_weight="balanced")),
        (LinearSvm(), LinearSVC(C=1.0, dual=False, tol=1e-10, class_weight="balanced")),
        (Ridge(), RidgeClassifier(alpha=1.0, class_weight="balanced")),
    ],
    ids=["logistic", "linear_svm", "ridge"],
)
def test_balanced_means_what_scikit_learn_means_by_it(head: Head, reference: object) -> None:
    train = draw_train(TALL, rare=5, balanced=True)
    options = FitOptions(wanted={"alpha" if isinstance(head, Ridge) else "C": 1.0})
    (candidate,) = head.fit_candidates(train, train, options)
    reference.fit(train.scaled, train.labels)  # type: ignore[attr-defined]
    expected = reference.decision_function(train.scaled)  # type: ignore[attr-defined]
    scores = candidate.classifier.scores(train.features)
    decisions = np.log(scores[:, 1] / scores[:, 0]) if isinstance(head, Logistic) else scores[:, 1]
    np.testing.assert_allclose(decisions, expected, atol=1e-3)


def test_basis_is_orthonormal_and_loses_nothing_of_the_rows() -> None:
    train = draw_train(WIDE, 2)
    assert train.basis is not None
    np.testing.assert_allclose(train.basis.T @ train.basis, np.eye(40), atol=1e-12)
    np.testing.assert_allclose(train.coordinates @ train.basis.T, train.scaled, atol=1e-12)


def test_scaling_knows_only_the_training_rows() -> None:
    train = draw_train(TALL, 2)
    np.testing.assert_allclose(train.scaled.mean(axis=0), 0, atol=1e-12)
    assert np.mean((train.scaled**2).sum(axis=1)) == pytest.approx(1)


def test_parameters_are_weights_and_intercepts() -> None:
    for class_count, expected in ((2, 21), (3, 63)):
        for head in HEADS.values():
            train = draw_train(TALL, class_count)
            candidate = next(head.fit_candidates(train, train, FitOptions()))
            assert candidate.classifier.parameters == expected


def test_a_fit_that_did_not_converge_is_marked_and_not_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.heads.linear_svm.MOST_ITERATIONS", 1)
    train = draw_train(TALL, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        marks = [each.converged for each in LinearSvm().fit_candidates(train, train, FitOptions())]
    assert not all(marks)
