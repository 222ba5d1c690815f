"""The dense head is the book's: Keras' network, trained as Keras trains it."""

import logging
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from feature_sets import draw_rows
from sklearn.utils.estimator_checks import check_estimator

from pipeline.errors import UsageError
from pipeline.evaluation.lazy_features import LazyFeatures
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import search
from pipeline.heads.config import DenseConfig, Optimizer
from pipeline.heads.dense import XLA_ROWS, DenseClassifier, build_dense
from pipeline.heads.registry import load_head
from pipeline.heads.scaler import root_mean_square
from pipeline.keras_backend import keras

WIDTH = 12
RATES: dict[Optimizer, float] = {"rmsprop": 1e-3, "adam": 1e-3, "sgd": 0.1}
SMALL: dict[str, Any] = {"epochs": 3, "units": 16, "learning_rate": 1e-3}


def draw(class_count: int = 2, count: int = 53) -> tuple[LabelledRows, LabelledRows]:
    """Training and validation rows near 0; 53 are batches of 20, 20 and 13."""
    rows = draw_rows(count, class_count, signal=0.5, width=WIDTH)
    train, validation = (LabelledRows((each.features - 7) / 50, each.labels) for each in rows)
    return train, validation


def fit(seed: int = 0, *, class_count: int = 2, **config: Any) -> DenseClassifier:
    train, validation = draw(class_count)
    classifier = DenseClassifier(**SMALL | config, random_state=seed)
    return classifier.fit(
        train.features,
        train.labels,
        validation_data=(validation.features, validation.labels),
    )


def assert_close(found: list[npt.NDArray[Any]], expected: list[npt.NDArray[Any]]) -> None:
    """A relative error of 1e-5 of each array, in the L2 norm."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)


def test_two_classes_give_the_model_of_the_book() -> None:
    model = build_dense((4, 4, 512), 2, DenseConfig(), 0)
    assert model.count_params() == 2_097_665
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["Flatten", "Dense", "Dropout", "Dense"]
    hidden, dropout, output = model.layers[1:]
    assert (hidden.units, hidden.activation) == (256, keras.activations.relu)
    assert dropout.rate == 0.5
    assert (output.units, output.activation) == (1, keras.activations.sigmoid)
    assert isinstance(model.optimizer, keras.optimizers.RMSprop)
    assert float(model.optimizer.learning_rate) == pytest.approx(2e-5)
    assert (DenseConfig().epochs, DenseConfig().batch_size) == (30, 20)


def test_config_and_class_count_determine_the_model() -> None:
    config = DenseConfig(units=7, dropout=0.1, learning_rate=0.5, optimizer="sgd")
    model = build_dense((8,), 5, config, 0)
    assert model.layers[1].units == 7
    assert model.layers[2].rate == pytest.approx(0.1)
    assert (model.layers[3].units, model.layers[3].activation) == (5, keras.activations.softmax)
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.5)
    expected = {"units": 7, "dropout": 0.1, "learning_rate": 0.5, "optimizer": "sgd"}
    assert config.changed() == expected
    assert DenseConfig().changed() == {}


@pytest.mark.parametrize(
    ("optimizer", "class_count", "xla"),
    [
        ("rmsprop", 2, False),
        pytest.param("rmsprop", 2, True, marks=pytest.mark.slow),
        ("adam", 3, False),
        pytest.param("sgd", 2, False, marks=pytest.mark.slow),
        pytest.param("sgd", 3, True, marks=pytest.mark.slow),
        pytest.param("adam", 2, True, marks=pytest.mark.slow),
    ],
)
def test_training_equals_that_of_keras_fit(
    optimizer: Optimizer, class_count: int, xla: bool
) -> None:
    count, batch_size = (XLA_ROWS // 3 + 10, 400) if xla else (53, 20)  # the last batch is smaller
    train, validation = draw(class_count, count)
    weights = 1 + (np.arange(len(train)) % 3).astype(np.float32)
    watched = validation.features, validation.labels
    scale = np.float32(1 / root_mean_square(train.features))
    config: dict[str, Any] = {
        **SMALL,
        "batch_size": batch_size,
        "dropout": 0.0,
        "optimizer": optimizer,
        "learning_rate": RATES[optimizer],
    }
    found = DenseClassifier(**config, random_state=4)
    found.fit(train.features, train.labels, weights, validation_data=watched)
    model = build_dense((WIDTH,), class_count, DenseConfig(**config), 4)
    model.run_eagerly = True  # of so few steps, tracing would take most of the time
    generator, history = np.random.default_rng(4), []
    for _ in range(3):
        order = generator.permutation(len(train))
        fitted = model.fit(
            train.features[order] * scale,
            train.labels[order],
            sample_weight=weights[order],
            batch_size=batch_size,
            validation_data=(validation.features * scale, validation.labels),
            shuffle=False,
            verbose=0,
        )
        history.append({name: value for name, (value,) in fitted.history.items()})
    kernel, *others = model.get_weights()
    assert_close(found.weights_, [kernel * scale, *others])
    assert set(found.history_) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for name, values in found.history_.items():
        np.testing.assert_allclose(values, [epoch[name] for epoch in history], rtol=1e-5)
    shares = model.predict(validation.features * scale, verbose=0)
    expected = np.hstack([1 - shares, shares]) if class_count == 2 else shares
    scores = found.predict_proba(validation.features)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    accuracy = np.mean(scores.argmax(axis=1) == validation.labels)
    assert found.history_["val_accuracy"][-1] == pytest.approx(accuracy)


def test_a_seed_repeats_the_weights_and_logs_the_curves_of_each_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="pipeline"):
        first = fit(3, tensorboard=str(tmp_path))
    again, other = fit(3), fit(4, tensorboard=str(tmp_path))
    for one, same, another in zip(first.weights_, again.weights_, other.weights_, strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, another)
    rows = draw()[1].features
    pickled = pickle.loads(pickle.dumps(first))  # noqa: S301 - ours
    np.testing.assert_array_equal(pickled.predict_proba(rows), first.predict_proba(rows))

    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for name, values in first.history_.items():
        assert f"{name} {values[2]:.4f}" in lines[2]
    folders = sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir())
    assert folders == ["dense-seed3", "dense-seed4"]
    parts = {path.parent.name for path in tmp_path.glob("dense-seed3-*/*/events.out.tfevents.*")}
    assert parts == {"train", "validation"}


def test_patience_stops_early_and_keeps_the_best_weights() -> None:
    options: dict[str, Any] = {"learning_rate": 1.0, "optimizer": "sgd", "dropout": 0.0}
    stopped = fit(epochs=40, patience=2, **options)
    losses = stopped.history_["val_loss"]
    assert len(losses) < 40
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 2
    assert_close(stopped.weights_, fit(epochs=best, **options).weights_)


def test_a_training_that_diverges_is_never_chosen() -> None:
    head = load_head("dense", (DenseConfig(**SMALL | {"learning_rate": 1e38, "epochs": 2}),))
    assert search(head, *draw(), class_count=2, seed=0) is None


EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "repeated rows are in other batches",
    "check_classifiers_regression_target": "labels are not checked",
    "check_do_not_raise_errors_in_init_or_set_params": "a config is checked when it is made",
    "check_classifiers_one_label": "one class is no question",
}


@pytest.mark.slow
def test_it_is_a_scikit_learn_classifier() -> None:
    classifier = DenseClassifier(epochs=10, units=8, learning_rate=1e-2, optimizer="adam")
    check_estimator(classifier, expected_failed_checks=EXPECTED_FAILURES, on_skip=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("units", 0),
        ("patience", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("optimizer", "lion"),
    ],
)
def test_impossible_values_are_errors(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name}: expected .*; received {value!r}"):
        DenseConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_rows_that_are_read_in_chunks_have_the_scale_of_all_of_them(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = draw_rows(90)
    features = train.features * np.float32(scale)
    features[80:] = 0  # the last chunk
    scales: list[float] = []
    monkeypatch.setattr("pipeline.heads.dense.CHUNK_ROWS", 40)
    monkeypatch.setattr("pipeline.heads.dense.SHUFFLED_CHUNKS", 1)
    monkeypatch.setattr(
        DenseClassifier, "_train", lambda _, model, scale, *rows: scales.append(scale)
    )
    model = SimpleNamespace(get_weights=lambda: [np.ones(1)], set_weights=list)
    DenseClassifier()._fit(model, (LazyFeatures.of(features),), ())
    assert scales == [pytest.approx(1 / root_mean_square(features))]
