"""Logistic regression reaches its optimum, from warm starts and for weak penalties too."""

from collections.abc import Iterator

import numpy as np
import pytest
from head_sets import draw_train
from pipeline.heads.head import Candidate, FitOptions
from pipeline.heads.linear import LinearClassifier
from pipeline.heads.logistic import Kornblith, Logistic
from pipeline.heads.training import TrainingSet
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from pipeline.heads import logistic

SIZE = (300, 12)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As `compare_heads` has it: the threads of NumPy's and SciPy's BLAS wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


def fit_kornblith(train: TrainingSet) -> list[Candidate]:
    return list(Kornblith().fit_candidates(train, train, FitOptions()))


def test_kornblith_grid_is_45_penalties_evenly_spaced_the_strongest_first() -> None:
    np.testing.assert_allclose(Kornblith.grid, np.logspace(-6, 5, 45)[::-1])


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize("signal", [0.1, 3.0], ids=["overlapping", "separable"])
def test_points_of_the_path_equal_a_cold_start_of_scikit_learn_on_raw_features(
    signal: float, class_count: int
) -> None:
    train = draw_train(SIZE, class_count, signal=signal)
    candidates = fit_kornblith(train)
    assert all(candidate.converged for candidate in candidates)
    raw = train.features.astype(np.float64)
    for candidate in candidates[::8]:
        penalty = candidate.spec.params["lambda"]
        reference = LogisticRegression(
            C=1 / (len(train) * penalty), solver="newton-cholesky", tol=1e-10, max_iter=1000
        ).fit(raw, train.labels)
        classifier = candidate.classifier
        assert isinstance(classifier, LinearClassifier)
        found = classifier.scores(train.features)
        np.testing.assert_allclose(found, reference.predict_proba(raw), atol=1e-4)
        error = np.linalg.norm(classifier.weights - reference.coef_)
        assert error < 1e-3 * np.linalg.norm(reference.coef_)


def test_no_point_of_the_path_stays_where_the_one_before_ended() -> None:
    # the classes are separable: gradients of weak penalties are below 1e-8 from the start
    candidates = fit_kornblith(draw_train(SIZE, signal=3.0))
    lengths = [np.linalg.norm(each.classifier.weights) for each in candidates]  # type: ignore[attr-defined]
    assert np.all(np.diff(lengths) > 0.01 * np.array(lengths[:-1]))


@pytest.mark.parametrize("head", [Logistic(), Kornblith()], ids=["logistic", "kornblith"])
def test_a_setting_by_itself_is_fitted_as_along_the_path(head: Logistic | Kornblith) -> None:
    train = draw_train(SIZE, 3)
    for along in list(head.fit_candidates(train, train, FitOptions()))[::5]:
        (alone,) = head.fit_candidates(train, train, FitOptions(wanted=along.spec.params))
        np.testing.assert_allclose(
            alone.classifier.scores(train.features),
            along.classifier.scores(train.features),
            atol=1e-5,
        )


def test_a_point_stopped_early_is_not_called_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "MOST_ITERATIONS", 2)
    train = draw_train(SIZE, signal=3.0)
    for head in (Logistic(), Kornblith()):
        marks = [each.converged for each in head.fit_candidates(train, train, FitOptions())]
        assert not all(marks)


@pytest.mark.parametrize("outputs", [1, 3])
def test_gradient_is_that_of_the_objective(outputs: int) -> None:
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(20, 4)), random.integers(0, max(outputs, 2), 20)
    truth = (labels[:, None] == np.arange(max(outputs, 2))).astype(np.float64)[:, -outputs:]
    weights = random.uniform(size=(20, 1))
    at = random.normal(size=outputs * 5)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        return logistic._objective(flat, rows, truth, weights, 0.3)

    error = check_grad(lambda flat: objective(flat)[0], lambda flat: objective(flat)[1], at)
    assert error < 1e-5


def test_features_that_never_change_do_no_harm() -> None:
    train = TrainingSet(np.full((10, 6), 3.0, np.float32), np.arange(10) % 2, 2)
    for head in (Logistic(), Kornblith()):
        for candidate in head.fit_candidates(train, train, FitOptions()):
            assert candidate.converged
            np.testing.assert_allclose(candidate.classifier.scores(train.features), 0.5)
