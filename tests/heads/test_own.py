"""A head of the user's own: found, fitted, scored; and told in one line where that fails."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from head_sets import draw_train
from pipeline.heads.head import Candidate, FitOptions
from pipeline.heads.own import HeadFailedError
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import TrainingSet
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import UsageError
from pipeline.heads.registry import load_head

MODULE = """
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

class Unfit(LogisticRegression):
    def fit(self, X, y):
        raise ValueError("these rows \\x1b[31m are not for me")
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mine.py`` in the current folder, which the search path does not name."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    (tmp_path / "mine.py").write_text(MODULE)


def fit(name: str, train: TrainingSet, *seeds: int, epochs: int = 1) -> list[Candidate]:
    options = FitOptions(seeds=seeds or (0,), dense=(DenseSettings(epochs=epochs),))
    return list(load_head(name).fit_candidates(train, train, options))


def test_a_pipeline_with_probabilities_is_fitted_as_it_is() -> None:
    train = draw_train((90, 10), 3)
    (candidate,) = fit("mine:logistic", train)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    reference.fit(train.features, train.labels)
    assert candidate.classifier.has_probabilities
    assert candidate.spec.name == "mine:logistic"
    np.testing.assert_array_equal(
        candidate.classifier.scores(train.features), reference.predict_proba(train.features)
    )
    assert candidate.classifier.parameters > 33


@pytest.mark.parametrize("class_count", [2, 3])
def test_without_probabilities_decision_values_or_predictions_are_scores(class_count: int) -> None:
    train = draw_train((90, 10), class_count)
    for factory in ("ridge", "votes"):
        (candidate,) = fit(f"mine:{factory}", train)
        scores = candidate.classifier.scores(train.features)
        assert scores.shape == (90, class_count)
        assert not candidate.classifier.has_probabilities
        expected = candidate.classifier.estimator.predict(train.features)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(scores.argmax(axis=1), expected)


def test_a_class_of_any_installed_module_and_a_factory_with_sizes_will_do() -> None:
    train = draw_train((90, 10))
    for name in ("sklearn.linear_model:LogisticRegression", "mine:sized", "mine:unpicklable"):
        (candidate,) = fit(name, train)
        assert candidate.classifier.scores(train.features).shape == (90, 2)


def test_open_random_states_are_set_to_each_seed() -> None:
    train = draw_train((90, 10))
    for seeds, factory in (((3, 4), "forest"), ((7, 7), "seeded_forest")):
        for seed, candidate in zip(seeds, fit(f"mine:{factory}", train, 3, 4), strict=True):
            reference = RandomForestClassifier(20, random_state=seed)
            reference.fit(train.features, train.labels)
            np.testing.assert_array_equal(
                candidate.classifier.scores(train.features), reference.predict_proba(train.features)
            )


def test_two_fits_do_not_share_an_object() -> None:
    first, second = draw_train((90, 10)), draw_train((90, 10), seed=1)
    (one,) = fit("mine:shared", first)
    before = one.classifier.scores(first.features)
    fit("mine:shared", second)
    np.testing.assert_array_equal(one.classifier.scores(first.features), before)


def test_balanced_goes_by_class_weights_or_row_weights_or_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = draw_train((90, 10), rare=5, balanced=True)
    (candidate,) = fit("mine:ridge", train)
    reference = RidgeClassifier(class_weight="balanced").fit(train.features, train.labels)
    np.testing.assert_allclose(
        candidate.classifier.scores(train.features)[:, 1],
        reference.decision_function(train.features),
    )
    (candidate,) = fit("mine:bayes", train)
    priors = candidate.classifier.estimator[-1].class_prior_  # type: ignore[attr-defined]
    np.testing.assert_allclose(priors, 0.5)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        fit("mine:neighbors", train)
    assert "mine:neighbors knows no class weights" in caplog.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere:make", "--head nowhere:make: cannot import nowhere: ModuleNotFoundError: No "),
        ("broken:make", "cannot import broken: SyntaxError"),
        ("mine:missing", "--head mine:missing: mine has no missing"),
        ("mine:SHARED", "expected a function or class; received sklearn"),
        (
            "mine:odd",
            r"without arguments or with \(feature_count, class_count\); received one with 1",
        ),
    ],
)
def test_what_cannot_be_found_or_called_is_told_before_any_fit(name: str, told: str) -> None:
    Path("broken.py").write_text("def make(:\n")
    with pytest.raises(UsageError, match=told) as raised:
        load_head(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("factory", ["regression", "nothing"])
def test_what_is_no_classifier_is_refused(factory: str) -> None:
    with pytest.raises(UsageError, match="expected a scikit-learn classifier or a Keras model"):
        fit(f"mine:{factory}", draw_train((20, 4)))


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("failing", "failed: RuntimeError: out of ideas"),
        ("Unfit", r"failed: ValueError: these rows \x1b[31m are not for me"),
    ],
)
def test_what_it_raises_is_one_line_that_others_can_go_on_from(factory: str, told: str) -> None:
    with pytest.raises(HeadFailedError) as raised:
        fit(f"mine:{factory}", draw_train((20, 4)))
    assert str(raised.value) == told


def test_a_failure_to_predict_is_told_too() -> None:
    (candidate,) = fit("mine:ridge", draw_train((20, 4)))
    with pytest.raises(HeadFailedError, match="failed: ValueError"):
        candidate.classifier.scores(np.zeros((2, 3), np.float32))


KERAS_MODULE = """
from pipeline.keras_backend import keras

def layers(feature_count, *last):
    small = keras.layers.Rescaling(1 / 50)
    return keras.Sequential([keras.Input((feature_count,)), small, *last])

def softmax(feature_count, class_count):
    return layers(feature_count, keras.layers.Dense(class_count, activation="softmax"))

def sigmoid(feature_count, class_count):
    model = layers(feature_count, keras.layers.Dense(1, activation="sigmoid"))
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="binary_crossentropy")
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


def test_keras_models_are_trained_seeded_and_checked(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(KERAS_MODULE)
    train = draw_train((120, 10), signal=1.0)
    first, other = fit("mine:softmax", train, 1, 2, epochs=5)
    (again,) = fit("mine:softmax", train, 1, epochs=5)
    scores = first.classifier.scores(train.features)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    np.testing.assert_array_equal(again.classifier.scores(train.features), scores)
    assert np.abs(other.classifier.scores(train.features) - scores).max() > 1e-4
    assert (first.seed, other.seed) == (1, 2)
    assert first.classifier.parameters == first.classifier.model.count_params()  # type: ignore[attr-defined]
    assert first.history is not None
    assert [len(first.history[curve]) for curve in ("loss", "val_accuracy")] == [5, 5]

    (compiled,) = fit("mine:sigmoid", train, epochs=20)
    assert compiled.history is None  # without an accuracy there are no curves
    assert np.mean(compiled.classifier.scores(train.features).argmax(axis=1) == train.labels) > 0.8
    rare = []
    for balanced in (False, True):
        uneven = draw_train((120, 10), rare=10, balanced=balanced)
        (candidate,) = fit("mine:sigmoid", uneven, epochs=5)
        rare.append(candidate.classifier.scores(uneven.features)[:, 1].mean())
    assert rare[1] > rare[0] + 0.1

    for factory, told in (
        ("logits", "expected probabilities"),
        ("wide", r"made a model of \(3,\) outputs; expected \(2,\)"),
        ("same", "expected a new one from each call"),
    ):
        with pytest.raises(UsageError, match=told):
            fit(f"mine:{factory}", train)
