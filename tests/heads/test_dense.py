"""The dense head is the book's."""

import logging

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_features

from pipeline.heads.dense import Dense, build_dense
from pipeline.heads.head import FitOptions
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.keras_backend import keras


def test_two_classes_make_the_books_model() -> None:
    model = build_dense(4 * 4 * 512, class_count=2)
    assert model.count_params() == 2_097_665
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["Flatten", "Dense", "Dropout", "Dense"]
    hidden, dropout, output = model.layers[1:]
    assert (hidden.units, hidden.activation) == (256, keras.activations.relu)
    assert dropout.rate == 0.5
    assert (output.units, output.activation) == (1, keras.activations.sigmoid)
    assert isinstance(model.optimizer, keras.optimizers.RMSprop)
    assert float(model.optimizer.learning_rate) == pytest.approx(2e-5)
    assert DenseSettings().epochs == 30
    assert DenseSettings().batch_size == 20


def test_more_classes_make_a_softmax() -> None:
    output = build_dense(8, class_count=5).layers[-1]
    assert (output.units, output.activation) == (5, keras.activations.softmax)


def test_settings_reach_the_model() -> None:
    settings = DenseSettings(units=7, dropout=0.1, learning_rate=0.5, optimizer="sgd")
    model = build_dense(8, class_count=2, settings=settings)
    assert model.layers[1].units == 7
    assert model.layers[2].rate == pytest.approx(0.1)
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.5)
    assert settings.changed() == {
        "units": 7,
        "dropout": 0.1,
        "learning_rate": 0.5,
        "optimizer": "sgd",
    }
    assert DenseSettings().changed() == {}


@pytest.mark.parametrize("class_count", [2, 3])
def test_epochs_are_recorded_logged_and_scored_as_keras_does(
    class_count: int, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.asarray(alternating_labels(50, class_count))
    features = draw_features(labels, (6,), signal=2)
    validation = LabelledRows(features[:20], labels[:20])
    options = FitOptions(dense=DenseSettings(epochs=3, units=4, learning_rate=0.01))
    with caplog.at_level(logging.DEBUG, logger="pipeline"):
        (candidate,) = Dense().fit_candidates(
            TrainingSet(features, labels, class_count), validation, options
        )
    assert candidate.history is not None
    assert {name: len(values) for name, values in candidate.history.items()} == {
        "loss": 3,
        "accuracy": 3,
        "val_loss": 3,
        "val_accuracy": 3,
    }
    epochs = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert [line.partition(":")[0] for line in epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    scores = candidate.classifier.scores(features[:20])
    expected = candidate.classifier.model.predict(features[:20], verbose=0)  # type: ignore[attr-defined]
    if class_count == 2:
        expected = np.hstack([1 - expected, expected])
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    accuracy = np.mean(scores.argmax(axis=1) == labels[:20])
    assert candidate.history["val_accuracy"][-1] == pytest.approx(accuracy)
