"""Validation chooses the setting; the first of equal ones wins."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier

from pipeline.evaluation.result import Fit
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import has_converged, parameter_count, search
from pipeline.heads.calibration import TemperatureScaling
from pipeline.heads.registry import Head

LABELS = np.arange(10) % 2
ROWS = LabelledRows(LABELS[:, None].astype(np.float32), LABELS)
NAN = float("nan")


class Scripted(ClassifierMixin, BaseEstimator):
    """Predicts the feature with probability ``p``, and wrongly for the first ``wrong`` rows."""

    def __init__(self, wrong: int = 0, p: float = 0.9, random_state: int | None = None) -> None:
        self.wrong = wrong
        self.p = p
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Scripted":
        self.classes_, self.count_ = np.unique(y), len(X)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        right = np.eye(2)[X[:, 0].astype(int)]
        right[: self.wrong] = right[: self.wrong, ::-1]
        return right * self.p + (1 - right) * (1 - self.p)


class Margin(Scripted):
    """The same with decision values only."""

    predict_proba = property()  # type: ignore[assignment]

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return Scripted.predict_proba(self, X)[:, 1] - 0.5


def run_search(grid: dict[str, Any], rows: LabelledRows = ROWS, **options: Any) -> Fit:
    head = Head(options.pop("make", Scripted), grid)
    fit = search(head, rows, rows, class_count=2, seed=0, **options)
    assert fit is not None
    return fit


@pytest.mark.parametrize(
    ("wrong", "chosen"), [((1, 0, 1), 1), ((0, 0, 0), 0), ((1, 0, 2), 1), ((3, 2, 2), 1)]
)
@pytest.mark.parametrize("make", [Scripted, Margin])
def test_the_highest_accuracy_wins_and_of_equals_the_first(
    wrong: tuple[int, ...], chosen: int, make: type
) -> None:
    fit = run_search({"wrong": wrong}, make=make)
    assert [each.chosen for each in fit.settings] == [index == chosen for index in range(3)]
    assert fit.params == {"wrong": wrong[chosen]}
    assert fit.validation_accuracy == 1 - wrong[chosen] / 10


def test_of_equally_accurate_settings_the_lowest_log_loss_wins() -> None:
    fit = run_search({"p": (0.6, 0.9, 0.8)})
    assert fit.params == {"p": 0.9}
    assert fit.settings[1].validation_log_loss == pytest.approx(-math.log(0.9))


def test_a_diverged_setting_is_not_chosen_and_a_diverged_head_has_no_fit() -> None:
    fit = run_search({"p": (NAN, 0.6)})
    assert fit.params == {"p": 0.6}
    assert math.isnan(fit.settings[0].validation_accuracy)
    assert search(Head(Scripted, {"p": [NAN]}), ROWS, ROWS, class_count=2, seed=0) is None


@pytest.mark.parametrize("make", [Scripted, Margin])
def test_a_refit_trains_on_train_and_validation_with_the_chosen_setting(make: type) -> None:
    plain, again = (run_search({"wrong": (1, 0)}, make=make, refit=more) for more in (None, ROWS))
    assert plain.temperature == again.temperature
    assert plain.settings == again.settings
    np.testing.assert_array_equal(plain.validation_scores, again.validation_scores)
    counts = []
    for fit in (plain, again):
        inner = fit.estimator
        if make is Margin:
            assert isinstance(inner, TemperatureScaling)
            assert inner.temperature == plain.temperature
            inner = inner.estimator
        assert inner.random_state == 0
        counts.append(inner.count_)
    assert counts == [10, 20]


def test_decision_values_become_probabilities_with_the_same_decisions() -> None:
    fit = run_search({"wrong": [1]}, make=Margin)
    assert not fit.native_probabilities
    np.testing.assert_allclose(fit.validation_scores.sum(axis=1), 1)
    expected = fit.estimator.estimator.decision_function(ROWS.features) > 0
    np.testing.assert_array_equal(fit.validation_scores.argmax(axis=1), expected)


def test_balanced_accuracy_chooses_settings_of_balanced_heads() -> None:
    labels = np.array([1] * 2 + [0] * 8)

    class Threshold(Margin):
        def decision_function(self, X: np.ndarray) -> np.ndarray:
            return self.wrong - np.arange(len(X)) - 0.5

    rows = LabelledRows(np.zeros((10, 1), np.float32), labels)
    # 0: no row of the rare class is right, 80 % (balanced 50 %); 6: all are, 60 % (75 %)
    for balanced, expected in ((False, 0), (True, 6)):
        fit = run_search({"wrong": [0, 6]}, rows, make=Threshold, balanced=balanced)
        assert fit.params == {"wrong": expected}


def test_boosting_counts_its_trees_and_their_number_is_not_a_lack_of_convergence() -> None:
    features = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    boosting = HistGradientBoostingClassifier(max_iter=7).fit(features, features[:, 0] > 0)
    nodes = sum(len(tree.nodes) for (tree,) in boosting._predictors)
    assert parameter_count(boosting) >= nodes > 20
    assert has_converged(boosting)
