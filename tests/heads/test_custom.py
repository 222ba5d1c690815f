"""Custom heads are loaded, fitted and scored; errors are one line."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import draw_rows
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import BadDataError, PipelineError, UsageError
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import can_balance, fit_grid, parameter_count, search
from pipeline.heads.config import DenseConfig
from pipeline.heads.custom import HeadFailedError, failures_of
from pipeline.heads.registry import load_head

MODULE = """
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

SHARED = LogisticRegression()

def logistic():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1))

def forest():
    return RandomForestClassifier(20)

def seeded_forest():
    return RandomForestClassifier(20, random_state=7)

def ridge():
    return RidgeClassifier()

def votes():
    return VotingClassifier([("tree", DecisionTreeClassifier()), ("ridge", RidgeClassifier())])

def bayes():
    return make_pipeline(StandardScaler(), GaussianNB())

def neighbors():
    return KNeighborsClassifier(3)

def shared():
    return SHARED

def sized(feature_count, class_count):
    assert (feature_count, class_count) == (10, 2)
    return KNeighborsClassifier(feature_count // 2)

def unpicklable():
    return make_pipeline(FunctionTransformer(lambda rows: rows), LogisticRegression())

def regression():
    return LinearRegression()

def nothing():
    return None

def failing():
    raise RuntimeError("out of\\nideas")

def odd(feature_count):
    return None

class Unsorted(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.model_ = LogisticRegression(max_iter=1000).fit(X, -y)
        self.classes_ = -self.model_.classes_
        return self
    def predict_proba(self, X):
        return self.model_.predict_proba(X)

class Margins(Unsorted):
    predict_proba = property()
    def decision_function(self, X):
        return self.model_.decision_function(X)

class SomeNaN(Unsorted):
    def predict_proba(self, X):
        scores = super().predict_proba(X)
        scores[0] = float("nan")
        return scores

class Unfit(LogisticRegression):
    def fit(self, X, y):
        raise ValueError("invalid \\x1b[31m rows")
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path) -> None:
    """``mine.py`` in the current folder, which is not in the search path."""
    sys.path[:] = [folder for folder in sys.path if folder not in ("", str(tmp_path))]
    (tmp_path / "mine.py").write_text(MODULE)


def fit(
    name: str,
    train: LabelledRows,
    *,
    class_count: int = 2,
    seed: int = 0,
    epochs: int = 1,
    balanced: bool = False,
) -> Any:
    """Return the fitted estimator of a custom head."""
    head = load_head(name, (DenseConfig(epochs=epochs),))
    with failures_of(head):
        ((_, estimator),) = fit_grid(
            head, train, train, class_count=class_count, seed=seed, balanced=balanced
        )
    return estimator


def test_a_pipeline_is_fitted_without_changes() -> None:
    train, _ = draw_rows(90, 3)
    found = fit("mine:logistic", train, class_count=3)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    reference.fit(train.features, train.labels)
    np.testing.assert_array_equal(
        found.predict_proba(train.features), reference.predict_proba(train.features)
    )
    assert load_head("mine:logistic").is_custom


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize("factory", ["ridge", "votes"])
def test_without_probabilities_decision_values_or_predictions_get_a_temperature(
    factory: str, class_count: int
) -> None:
    train, validation = draw_rows(90, class_count)
    found = search(load_head(f"mine:{factory}"), train, validation, class_count=class_count, seed=0)
    assert found is not None
    assert not found.native_probabilities
    scores = found.validation_scores
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    expected = found.estimator.estimator.predict(validation.features)
    np.testing.assert_array_equal(scores.argmax(axis=1), expected)


def test_classes_of_installed_modules_and_factories_with_arguments_are_accepted() -> None:
    train, _ = draw_rows(90, width=10)
    for name in ("sklearn.linear_model:LogisticRegression", "mine:sized", "mine:unpicklable"):
        assert fit(name, train).predict_proba(train.features).shape == (90, 2)


def test_unset_random_states_get_the_seed() -> None:
    train, _ = draw_rows(90, signal=0.3)
    for fixed, factory in ((None, "forest"), (7, "seeded_forest")):
        for seed in (3, 4):
            reference = RandomForestClassifier(20, random_state=fixed or seed)
            reference.fit(train.features, train.labels)
            np.testing.assert_array_equal(
                fit(f"mine:{factory}", train, seed=seed).predict_proba(train.features),
                reference.predict_proba(train.features),
            )


def test_two_fits_do_not_share_an_object() -> None:
    first, second = draw_rows(90, signal=0.3)
    one = fit("mine:shared", first)
    before = one.predict_proba(first.features)
    fit("mine:shared", second)
    np.testing.assert_array_equal(one.predict_proba(first.features), before)


def test_balancing_uses_class_weights_or_sample_weights_or_is_impossible() -> None:
    train, _ = draw_rows(90, rare=5)
    reference = RidgeClassifier(class_weight="balanced").fit(train.features, train.labels)
    np.testing.assert_allclose(
        fit("mine:ridge", train, balanced=True).decision_function(train.features),
        reference.decision_function(train.features),
    )
    priors = fit("mine:bayes", train, balanced=True)[-1].class_prior_
    np.testing.assert_allclose(priors, 0.5)
    assert [
        can_balance(load_head(f"mine:{name}").build(10, 2))
        for name in ("ridge", "bayes", "neighbors")
    ] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:make", "--head nowhere:make: cannot import nowhere: ModuleNotFoundError: No "),
        ("broken:make", "cannot import broken: SyntaxError"),
        ("mine:missing", "--head mine:missing: module mine has no missing"),
        ("mine:SHARED", "expected a function or class; received sklearn"),
        (
            "mine:odd",
            r"without arguments or with \(feature_count, class_count\); received one with 1",
        ),
    ],
)
def test_missing_modules_and_wrong_factories_are_errors(name: str, message: str) -> None:
    Path("broken.py").write_text("def make(:\n")
    with pytest.raises(UsageError, match=message) as raised:
        load_head(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("factory", ["regression", "nothing"])
def test_a_factory_of_something_else_than_a_classifier_is_an_error(factory: str) -> None:
    with pytest.raises(UsageError, match="expected a scikit-learn classifier or Keras model"):
        fit(f"mine:{factory}", draw_rows(20)[0])


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("failing", "failed: RuntimeError: out of ideas"),
        ("Unfit", r"failed: ValueError: invalid \x1b[31m rows"),
    ],
)
def test_an_exception_of_a_custom_head_becomes_one_line(factory: str, message: str) -> None:
    with pytest.raises(HeadFailedError) as raised:
        fit(f"mine:{factory}", draw_rows(20)[0])
    assert str(raised.value) == message


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize("factory", ["Unsorted", "Margins"])
def test_columns_are_attributed_by_the_classes_of_a_custom_head(
    factory: str, class_count: int
) -> None:
    train, validation = draw_rows(150, class_count, signal=0.8)
    found = search(load_head(f"mine:{factory}"), train, validation, class_count=class_count, seed=0)
    assert found is not None
    reference = LogisticRegression(max_iter=1000).fit(train.features, train.labels)
    expected = reference.predict(validation.features)
    assert np.mean(expected == validation.labels) > 0.6
    assert np.mean(found.validation_scores.argmax(axis=1) == expected) > 0.95


def test_scores_that_are_not_finite_for_some_images_are_an_error() -> None:
    head, (train, validation) = load_head("mine:SomeNaN"), draw_rows(90)
    with pytest.raises(BadDataError, match="gave scores that are not finite for 1 of 90 images"):
        search(head, train, validation, class_count=2, seed=0)


@pytest.mark.parametrize("factory", ["forest", "logistic", "neighbors", "bayes"])
def test_features_of_unusual_size_are_divided_for_custom_heads(factory: str) -> None:
    rows = draw_rows(90, 3, signal=0.8)

    def found(scale: float) -> Any:
        train, validation = (
            LabelledRows(each.features * np.float32(scale), each.labels) for each in rows
        )
        fit = search(load_head(f"mine:{factory}"), train, validation, class_count=3, seed=0)
        assert fit is not None
        return fit.validation_scores

    expected = found(1.0)
    assert np.mean(expected.argmax(axis=1) == rows[1].labels) > 0.5
    for scale in (2.0**-100, 1e-30, 1e-12, 1e12, 1e30):
        np.testing.assert_allclose(found(scale), expected, atol=1e-5)


KERAS_MODULE = """
from pipeline.keras_backend import keras

def layers(feature_count, *last):
    small = keras.layers.Rescaling(1 / 50)
    return keras.Sequential([keras.Input((feature_count,)), small, *last])

def softmax(feature_count, class_count):
    return layers(feature_count, keras.layers.Dense(class_count, activation="softmax"))

def sigmoid(feature_count, class_count):
    model = layers(feature_count, keras.layers.Dense(1, activation="sigmoid"))
    sgd = keras.optimizers.SGD(0.1)
    model.compile(sgd, loss="binary_crossentropy", run_eagerly=True)  # tracing takes longer
    return model

def logits(feature_count, class_count):
    return layers(feature_count, keras.layers.Dense(class_count))

def wide(feature_count, class_count):
    return layers(feature_count, keras.layers.Dense(class_count + 1, activation="softmax"))

ONE = []
def same(feature_count, class_count):
    ONE.append(softmax(feature_count, class_count))
    return ONE[0]
"""


@pytest.mark.slow
def test_keras_models_are_trained_seeded_and_checked(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(KERAS_MODULE)
    train, _ = draw_rows(120, width=10, signal=1.0)
    first, again, other = (fit("mine:softmax", train, seed=seed, epochs=2) for seed in (1, 1, 2))
    scores = first.predict_proba(train.features)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    np.testing.assert_array_equal(again.predict_proba(train.features), scores)
    assert np.abs(other.predict_proba(train.features) - scores).max() > 1e-4
    assert parameter_count(first) == first.model_.count_params()
    assert [len(first.history_[curve]) for curve in ("loss", "val_accuracy")] == [2, 2]

    for factory, message in (
        ("logits", "expected probabilities, as of softmax"),
        ("wide", r"expected \(2,\) outputs; received \(3,\)"),
        ("same", "expected a new model from each call"),
    ):
        with pytest.raises(PipelineError, match=message):
            fit(f"mine:{factory}", train)


@pytest.mark.slow
def test_keras_models_are_balanced_and_learn_from_tiny_features(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(KERAS_MODULE)
    uneven, _ = draw_rows(120, width=10, rare=10, signal=0.3)
    fits = [fit("mine:sigmoid", uneven, epochs=5, balanced=each) for each in (False, True)]
    assert set(fits[0].history_) == {"loss", "val_loss"}  # as the factory compiles it
    plain, balanced = (each.predict_proba(uneven.features) for each in fits)
    assert balanced[:, 1].mean() > plain[:, 1].mean() + 0.1

    train, _ = draw_rows(120, width=10, signal=1.0)
    tiny = LabelledRows(train.features * np.float32(1e-30), train.labels)
    ((_, estimator),) = fit_grid(
        load_head("mine:softmax", (DenseConfig(epochs=30),)), tiny, tiny, class_count=2, seed=0
    )
    assert np.mean(estimator.predict_proba(tiny.features).argmax(axis=1) == tiny.labels) > 0.6
