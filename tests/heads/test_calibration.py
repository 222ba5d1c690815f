"""Temperature scaling: the optimum, its limits, and unchanged predictions."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import log_loss

from pipeline.errors import BadDataError
from pipeline.evaluation.search import parameter_count
from pipeline.heads.calibration import (
    ROWS_PER_BLOCK,
    TemperatureScaling,
    apply_temperature,
    class_scores,
    fit_temperature,
)

SEEDS = range(0, 8, 2)


def draw_logits(
    class_count: int, *, seed: int, temperature: float = 1.0, count: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels from the softmax of random logits, and the logits times the temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, class_count)) * 2
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    labels = (random.random((count, 1)) > cumulative).sum(axis=1).clip(max=class_count - 1)
    return labels, logits * temperature


@pytest.mark.parametrize("has_probabilities", [True, False])
@pytest.mark.parametrize("class_count", [2, 5])
@pytest.mark.parametrize("seed", SEEDS)
def test_temperature_is_where_an_independent_search_finds_the_lowest_log_loss(
    seed: int, class_count: int, has_probabilities: bool
) -> None:
    labels, logits = draw_logits(class_count, seed=seed, temperature=0.2 * 2**seed)
    scores = softmax(logits, axis=1) if has_probabilities else logits
    if has_probabilities:
        logits = np.log(np.maximum(scores, np.finfo(float).eps))

    def loss(log_temperature: float) -> float:
        return float(log_loss(labels, softmax(logits / math.exp(log_temperature), axis=1)))

    temperature = fit_temperature(labels, scores, has_probabilities=has_probabilities)
    searched = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    assert math.log(temperature) == pytest.approx(searched.x, abs=1e-5)
    assert loss(math.log(temperature)) <= searched.fun + 1e-12
    calibrated = apply_temperature(scores, temperature, has_probabilities=has_probabilities)
    assert log_loss(labels, calibrated) == pytest.approx(searched.fun)
    # the gradient vanishes: expected and observed logits agree
    observed = logits[np.arange(len(labels)), labels].mean()
    assert (calibrated * logits).sum(axis=1).mean() == pytest.approx(observed, abs=1e-8)


def test_the_true_temperature_is_recovered() -> None:
    for true in (0.3, 1.0, 4.0):
        labels, logits = draw_logits(3, seed=1, temperature=true, count=20_000)
        temperature = fit_temperature(labels, logits, has_probabilities=False)
        assert temperature == pytest.approx(true, rel=0.03)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_temperature_scales_with_the_unit_of_decision_values(unit: float) -> None:
    labels, logits = draw_logits(2, seed=3)
    expected = fit_temperature(labels, logits, has_probabilities=False)
    temperature = fit_temperature(labels, logits * unit, has_probabilities=False)
    assert temperature == pytest.approx(expected * unit)


@pytest.mark.parametrize("count", [4, 50, 1000])
def test_confidence_without_errors_is_limited_by_the_number_of_images(count: int) -> None:
    random = np.random.default_rng(count)
    labels = np.arange(count) % 2
    decisions = np.where(labels == 1, 1, -1) * random.uniform(0.5, 2, count)
    scores = np.stack([-decisions, decisions], axis=1)
    temperature = fit_temperature(labels, scores, has_probabilities=False)
    probabilities = apply_temperature(scores, temperature, has_probabilities=False)
    assert probabilities.max(axis=1).mean() == pytest.approx((count + 1) / (count + 2))
    # with one more image, barely wrong, the loss has a minimum, but a far too confident one
    labels, scores = np.append(labels, 0), np.vstack([scores, [-1e-9, 1e-9]])
    temperature = fit_temperature(labels, scores, has_probabilities=False)
    probabilities = apply_temperature(scores, temperature, has_probabilities=False)
    assert probabilities.max(axis=1).mean() <= (count + 2) / (count + 3) + 1e-12


def test_scores_of_0_and_1_get_finite_logits() -> None:
    labels = np.arange(20) % 2
    temperature = fit_temperature(labels, np.eye(2)[labels], has_probabilities=True)
    probabilities = apply_temperature(np.eye(2)[labels], temperature, has_probabilities=True)
    assert probabilities.max() == pytest.approx(21 / 22)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_equal_scores_have_a_temperature_of_one(share: float) -> None:
    labels = np.arange(10) % 2
    scores = np.tile([share, 1 - share], (10, 1))
    assert fit_temperature(labels, scores, has_probabilities=True) == 1.0
    undecided = np.repeat(np.arange(10.0), 2).reshape(10, 2)  # rows differ, classes do not
    assert fit_temperature(labels, undecided, has_probabilities=False) == 1.0


def test_a_head_worse_than_chance_gets_equal_probabilities() -> None:
    labels, logits = draw_logits(3, seed=0)
    temperature = fit_temperature(labels, -logits, has_probabilities=False)
    probabilities = apply_temperature(-logits, temperature, has_probabilities=False)
    assert math.isfinite(temperature)
    assert log_loss(labels, probabilities) == pytest.approx(math.log(3), abs=0.01)


class Features(ClassifierMixin, BaseEstimator):
    """A classifier whose decision values are its features."""

    def __init__(self, class_count: int) -> None:
        self.classes_ = np.arange(class_count)
        self.n_features_in_ = class_count

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return X[:, 1] if X.shape[1] == 2 else X


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("class_count", [2, 6])
def test_a_temperature_does_not_change_predictions(class_count: int, temperature: float) -> None:
    _, logits = draw_logits(class_count, seed=5)
    logits[:40] = logits[:40].round()  # ties, too
    if class_count == 2:  # scikit-learn returns one column for two classes
        logits[:, 0] = -logits[:, 1]
    scaling = TemperatureScaling(Features(class_count), temperature=temperature)
    probabilities = scaling.predict_proba(logits)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_array_equal(scaling.predict(logits), logits.argmax(axis=1))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(log_softmax(logits / temperature, axis=1)), probabilities)
    assert parameter_count(scaling) == parameter_count(scaling.estimator)


def test_fit_sets_only_the_temperature() -> None:
    labels, logits = draw_logits(3, seed=2)
    scaling = TemperatureScaling(Features(3)).fit(logits, labels)
    assert scaling.temperature == fit_temperature(labels, logits, has_probabilities=False)
    np.testing.assert_array_equal(scaling.classes_, [0, 1, 2])


def test_scores_of_every_block_are_in_the_order_of_the_classes() -> None:
    count = 2 * ROWS_PER_BLOCK + 5
    _, logits = draw_logits(3, seed=2, count=count)
    classifier = Features(3)
    classifier.classes_ = np.array([2, 0, 1])
    scores = class_scores(classifier, logits, 3, method="decision_function")
    np.testing.assert_array_equal(scores, logits[:, [1, 2, 0]])
    assert class_scores(classifier, logits[:0], 3, method="decision_function").shape == (0, 3)


class Fixed(ClassifierMixin, BaseEstimator):
    """A classifier with these ``classes_``, whose method returns the same output for any rows."""

    def __init__(self, classes: Any, method: str, output: Any) -> None:
        self.classes_ = classes
        setattr(self, method, lambda rows: np.asarray(output)[: len(rows)])


ROWS = np.zeros((3, 2), np.float32)
OBJECTS = np.array([2.0, np.bool_(False), np.int8(1)], object)


@pytest.mark.parametrize("classes", [[0, 1, 2], [2, 0, 1], np.array([1.0, 2.0, 0.0]), OBJECTS])
@pytest.mark.parametrize("method", ["predict_proba", "decision_function", "predict"])
def test_scores_are_those_of_the_labels_in_any_order_of_classes(classes: Any, method: str) -> None:
    labels = [0, 1, 2]
    output = labels if method == "predict" else np.eye(3)[labels][:, np.asarray(classes, int)]
    fixed = Fixed(classes, method, output)
    np.testing.assert_array_equal(class_scores(fixed, ROWS, 3, method=method), np.eye(3))
    if method != "predict_proba":
        scaling = TemperatureScaling(fixed, method=method)
        np.testing.assert_array_equal(scaling.predict(ROWS), labels)
        np.testing.assert_array_equal(class_scores(scaling, ROWS, 3).argmax(axis=1), labels)


def test_the_sign_of_a_decision_value_is_that_of_the_second_class() -> None:
    for classes, expected in (([0, 1], [1, 0, 1]), ([1, 0], [0, 1, 0])):
        fixed = Fixed(classes, "decision_function", [2.0, -1.0, 0.5])
        scores = class_scores(fixed, ROWS, 2, method="decision_function")
        np.testing.assert_array_equal(scores.argmax(axis=1), expected)
        np.testing.assert_array_equal(TemperatureScaling(fixed).predict(ROWS), expected)


@pytest.mark.parametrize("dtype", [bool, float, object])
def test_predicted_labels_of_any_type_of_number_are_accepted(dtype: type) -> None:
    labels = np.array([1, 0, 1])
    for classes in ([False, True], np.array([1, 0], dtype)):
        fixed = Fixed(classes, "predict", labels.astype(dtype))
        scores = class_scores(fixed, ROWS, 2, method="predict")
        np.testing.assert_array_equal(scores.argmax(axis=1), labels)


@pytest.mark.parametrize(
    "classes",
    [None, [0, 1], [0, 1, 2, 3], [0, 1, 1], [1, 2, 3], [0, -1, -2], [0.4, 1.4, 2.4], list("012")],
)
def test_classes_that_are_not_the_labels_are_refused(classes: Any) -> None:
    fixed = Fixed(classes, "predict_proba", np.eye(3))
    with pytest.raises(
        BadDataError, match=r"has classes_ .*; expected the labels 0 to 2, each once"
    ):
        class_scores(fixed, ROWS, 3)
    del fixed.classes_
    with pytest.raises(BadDataError, match="has classes_ None; expected"):
        class_scores(fixed, ROWS, 3)


@pytest.mark.parametrize(
    ("method", "output", "message"),
    [
        ("predict_proba", np.eye(4), r"gave predict_proba of shape \(3, 4\); expected \(3, 3\)"),
        ("predict_proba", [0.2, 0.3, 0.4], r"shape \(3,\); expected \(3, 3\)"),
        ("predict_proba", np.eye(3)[:2], r"shape \(2, 3\); expected \(3, 3\)"),
        ("decision_function", [0.2, 0.3, 0.4], r"shape \(3,\); expected \(3, 3\)"),
        ("predict_proba", 2 * np.eye(3), "from 0 to 2 with sums from 2 to 2; expected"),
        ("predict_proba", 0 * np.eye(3), "from 0 to 0 with sums from 0 to 0"),
        ("predict_proba", 1.5 * np.eye(3) - 0.25, "from -0.25 to 1.25"),
        (
            "predict_proba",
            [[np.nan] * 3, [2, 0, 0], [1, 0, 0]],
            "from 0 to 2 with sums from 1 to 2",
        ),
        ("predict", [0, 1, 3], "predicted 3; expected labels 0 to 2"),
        ("predict", list("012"), "predicted '0'; expected labels 0 to 2"),
        ("predict", np.array(["a", 1, 2], object), "predicted .a.; expected labels 0 to 2"),
        ("predict", [[0], [1], [2]], r"gave predict of shape \(3, 1\); expected \(3,\)"),
    ],
)
def test_scores_that_are_not_one_per_class_are_refused(
    method: str, output: Any, message: str
) -> None:
    with pytest.raises(BadDataError, match=message):
        class_scores(Fixed([0, 1, 2], method, output), ROWS, 3, method=method)


def test_probabilities_that_sum_to_one_but_for_rounding_are_corrected() -> None:
    output = np.eye(3) * (1 + 1e-5) - 1e-9
    scores = class_scores(Fixed([0, 1, 2], "predict_proba", output), ROWS, 3)
    np.testing.assert_array_equal(scores, np.eye(3))
