"""The search for a setting: on validation, of equals the first."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from pipeline.evaluation.result import Fit
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import search
from pipeline.heads.calibration import TemperatureScaling
from pipeline.heads.registry import Head

LABELS = np.arange(10) % 2
ROWS = LabelledRows(LABELS[:, None].astype(np.float32), LABELS)
NAN = float("nan")


class Scripted(ClassifierMixin, BaseEstimator):
    """Reads labels from the feature and is wrong of the first so many; ``p`` is its probability."""

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
    """The same with decision values alone."""

    predict_proba = property()  # type: ignore[assignment]

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return Scripted.predict_proba(self, X)[:, 1] - 0.5


def searched(grid: dict[str, Any], rows: LabelledRows = ROWS, **options: Any) -> Fit:
    head = Head(options.pop("make", Scripted), grid)
    found = search(head, rows, rows, class_count=2, seed=0, **options)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("wrong", "chosen"), [((1, 0, 1), 1), ((0, 0, 0), 0), ((1, 0, 2), 1), ((3, 2, 2), 1)]
)
@pytest.mark.parametrize("make", [Scripted, Margin])
def test_the_highest_accuracy_wins_and_of_equals_the_first(
    wrong: tuple[int, ...], chosen: int, make: type
) -> None:
    found = searched({"wrong": wrong}, make=make)
    assert [each.chosen for each in found.settings] == [place == chosen for place in range(3)]
    assert found.params == {"wrong": wrong[chosen]}
    assert found.validation_accuracy == 1 - wrong[chosen] / 10


def test_of_equally_accurate_ones_the_surer_wins() -> None:
    found = searched({"p": (0.6, 0.9, 0.8)})
    assert found.params == {"p": 0.9}
    assert found.settings[1].validation_log_loss == pytest.approx(-math.log(0.9))


def test_a_setting_that_diverged_is_not_chosen_and_a_head_that_did_has_no_fit() -> None:
    found = searched({"p": (NAN, 0.6)})
    assert found.params == {"p": 0.6}
    assert math.isnan(found.settings[0].validation_accuracy)
    assert search(Head(Scripted, {"p": [NAN]}), ROWS, ROWS, class_count=2, seed=0) is None


@pytest.mark.parametrize("make", [Scripted, Margin])
def test_a_refit_learns_from_both_parts_and_keeps_what_validation_chose(make: type) -> None:
    plain, again = (searched({"wrong": (1, 0)}, make=make, refit=more) for more in (None, ROWS))
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


def test_scores_become_probabilities_that_decide_the_same() -> None:
    found = searched({"wrong": [1]}, make=Margin)
    assert not found.native_probabilities
    np.testing.assert_allclose(found.validation_scores.sum(axis=1), 1)
    expected = found.estimator.estimator.decision_function(ROWS.features) > 0
    np.testing.assert_array_equal(found.validation_scores.argmax(axis=1), expected)


def test_balanced_heads_are_chosen_by_balanced_accuracy() -> None:
    labels = np.array([1] * 2 + [0] * 8)

    class Threshold(Margin):
        def decision_function(self, X: np.ndarray) -> np.ndarray:
            return self.wrong - np.arange(len(X)) - 0.5

    rows = LabelledRows(np.zeros((10, 1), np.float32), labels)
    # none of the rare class: 80 % right, 50 % balanced; all of it and four others: 60 and 75 %
    for balanced, expected in ((False, 0), (True, 6)):
        found = searched({"wrong": [0, 6]}, rows, make=Threshold, balanced=balanced)
        assert found.params == {"wrong": expected}
