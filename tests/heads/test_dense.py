"""The dense head is the book's: Keras' network, trained as Keras trains it."""

import logging
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from feature_sets import alternating_labels, draw_features
from pipeline.heads.dense_model import build_dense
from pipeline.heads.head import Candidate, FitOptions
from pipeline.heads.minibatch import Member, Trained, initial_weights, row_order, train_networks
from pipeline.heads.settings import OPTIMIZERS, DenseSettings, Optimizer
from pipeline.heads.training import LabelledRows, TrainingSet

from pipeline.errors import UsageError
from pipeline.heads import minibatch
from pipeline.heads.dense import Dense, DenseClassifier
from pipeline.keras_backend import keras

WIDTH = 30
RATES: dict[Optimizer, float] = {"rmsprop": 1e-3, "adam": 1e-3, "sgd": 0.1}
SMALL = DenseSettings(epochs=3, units=16, learning_rate=1e-3)


def draw_sets(
    class_count: int = 2, *, count: int = 53, width: int = WIDTH, balanced: bool = False
) -> tuple[TrainingSet, LabelledRows]:
    """Training rows, the first class twice as frequent as each other, and validation rows."""
    labels = np.maximum(np.asarray(alternating_labels(count + 25, class_count + 1)) - 1, 0)
    features = draw_features(labels, (width,), signal=0.5)
    return (
        TrainingSet(features[:count], labels[:count], class_count, balanced),
        LabelledRows(features[count:], labels[count:]),
    )


def train_one(
    settings: DenseSettings, train: TrainingSet, validation: LabelledRows, *, seed: int = 0
) -> Trained:
    (trained,) = train_networks(train, validation, [Member(settings, seed)])
    return trained


def assert_weights_close(
    found: minibatch.Weights, expected: list[npt.NDArray[np.float32]], tolerance: float
) -> None:
    """The relative error of each array, in the L2 norm."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


def test_two_classes_make_the_books_model() -> None:
    model = build_dense((4, 4, 512), class_count=2)
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
    output = build_dense((8,), class_count=5).layers[-1]
    assert (output.units, output.activation) == (5, keras.activations.softmax)


def test_settings_reach_the_model() -> None:
    settings = DenseSettings(units=7, dropout=0.1, learning_rate=0.5, optimizer="sgd")
    model = build_dense((8,), class_count=2, settings=settings)
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
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_equals_keras_step_for_step(optimizer: Optimizer, class_count: int) -> None:
    train, validation = draw_sets(class_count, balanced=True)  # 53 rows: 20, 20 and 13
    settings = DenseSettings(
        epochs=5, units=16, dropout=0, learning_rate=RATES[optimizer], optimizer=optimizer
    )
    trained = train_one(settings, train, validation)
    initial = initial_weights(WIDTH, Member(settings, 0), class_count=class_count)
    model = build_dense((WIDTH,), class_count=class_count, settings=settings, weights=initial)
    model.run_eagerly = True  # of so few steps, tracing would take most of the time
    history: dict[str, list[float]] = {}
    for epoch in range(settings.epochs):
        order = row_order(len(train), epoch)
        fitted = model.fit(
            train.features[order],
            train.labels[order],
            batch_size=settings.batch_size,
            class_weight=dict(enumerate(map(float, train.class_weights))),
            validation_data=(validation.features, validation.labels),
            shuffle=False,
            verbose=0,
        )
        for name, (value,) in fitted.history.items():
            history.setdefault(name, []).append(value)
    assert_weights_close(trained.weights, model.get_weights(), 1e-5)
    assert set(trained.history) == set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for name, values in history.items():
        np.testing.assert_allclose(trained.history[name], values, rtol=1e-5)
    assert trained.history["loss"][-1] < 0.9 * trained.history["loss"][0]


@pytest.mark.parametrize("class_count", [2, 3])
def test_keras_predicts_the_same_with_our_weights(class_count: int) -> None:
    train, validation = draw_sets(class_count)
    trained = train_one(SMALL, train, validation)
    scores = DenseClassifier(*trained.weights).scores(validation.features)
    model = build_dense((5, 2, 3), class_count=class_count, settings=SMALL, weights=trained.weights)
    shares = model.predict(validation.features.reshape(-1, 5, 2, 3), verbose=0)
    expected = np.hstack([1 - shares, shares]) if class_count == 2 else shares
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    accuracy = np.mean(scores.argmax(axis=1) == validation.labels)
    assert trained.history["val_accuracy"][-1] == pytest.approx(accuracy)


@pytest.mark.parametrize("class_count", [2, 3])
def test_dropout_is_keras_inverted_dropout(class_count: int) -> None:
    """Against Keras' layers, told which hidden units to drop; 0.7 of them are kept."""
    train, validation = draw_sets(class_count, count=40)
    settings = replace(SMALL, dropout=0.3)
    trained = train_one(settings, train, validation, seed=5)
    features, kept = keras.Input((WIDTH,)), keras.Input((settings.units,))
    hidden = keras.layers.Dense(settings.units, activation="relu")(features)
    outputs, activation = (1, "sigmoid") if class_count == 2 else (class_count, "softmax")
    model = keras.Model(
        [features, kept],
        keras.layers.Dense(outputs, activation=activation)(
            keras.layers.Multiply()([hidden, keras.layers.Rescaling(1 / 0.7)(kept)])
        ),
    )
    model.set_weights(initial_weights(WIDTH, Member(settings, 5), class_count=class_count))
    model.compile(
        optimizer=keras.optimizers.RMSprop(settings.learning_rate),
        loss="binary_crossentropy" if class_count == 2 else "sparse_categorical_crossentropy",
        run_eagerly=True,
    )
    random = np.random.default_rng((minibatch.DROPOUT, 5))
    for epoch in range(settings.epochs):
        order = row_order(len(train), epoch)
        kept_units = random.random((len(train), settings.units), np.float32) < np.float32(0.7)
        for start in range(0, len(train), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            now = kept_units[start : start + settings.batch_size].astype(np.float32)
            model.train_on_batch([train.features[rows], now], train.labels[rows])
    assert_weights_close(trained.weights, model.get_weights(), 1e-5)


def test_initial_weights_are_glorot_uniform_as_keras_has_them() -> None:
    settings = DenseSettings(units=256)
    ours = initial_weights(500, Member(settings, 1), class_count=100)
    theirs = build_dense((500,), class_count=100, settings=settings).get_weights()
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == np.float32
        for measure in (np.min, np.max, np.std):
            assert measure(one) == pytest.approx(measure(other), rel=0.02)
        assert abs(one.mean()) <= 0.02 * np.max(one)


def test_row_order_is_a_permutation_and_new_each_epoch() -> None:
    orders = [row_order(50, epoch) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({tuple(order) for order in orders}) == 3


def grid() -> list[Member]:
    """Networks that differ in all a grid may differ in; those of 16 units share a stack."""
    book = replace(SMALL, dropout=0.5)
    settings = [
        book,
        replace(book, units=9),
        replace(book, dropout=0.0),
        replace(book, learning_rate=1e-2),
    ]
    return [Member(each, seed) for each in settings for seed in (0, 7)]


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_network_is_the_same_in_a_grid_and_alone(optimizer: Optimizer, class_count: int) -> None:
    train, validation = draw_sets(class_count)
    members = [Member(replace(each, optimizer=optimizer), seed) for each, seed in grid()]
    together = train_networks(train, validation, members)
    for member, trained in zip(members, together, strict=True):
        alone = train_one(member.settings, train, validation, seed=member.seed)
        assert_weights_close(trained.weights, list(alone.weights), 1e-4)
        np.testing.assert_allclose(trained.history["loss"], alone.history["loss"], rtol=1e-4)
    kernels = [trained.weights.output_kernel for trained in together]
    assert len({kernel.tobytes() for kernel in kernels}) == len(members)


def test_neither_threads_nor_time_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatch, "WEIGHTS_PER_TILE", 16 * 4)  # tiles of 4 rows, the last of 2
    monkeypatch.setattr(minibatch, "WEIGHTS_WORTH_THREADS", 0)
    train, validation = draw_sets()
    first, *others = (
        train_networks(train, validation, grid(), threads=threads) for threads in (1, 1, 2, 3)
    )
    for other in others:
        for one, another in zip(first, other, strict=True):
            assert one.history == another.history
            for array, same in zip(one.weights, another.weights, strict=True):
                np.testing.assert_array_equal(array, same)


def test_threads_at_work_at_once_do_not_meet() -> None:
    """Large enough for NumPy to let another thread run."""
    train, validation = draw_sets(width=4096)
    members = [Member(DenseSettings(epochs=2), 0)]
    assert 2 * max(minibatch.WEIGHTS_WORTH_THREADS, minibatch.WEIGHTS_PER_TILE) <= 4096 * 256
    (one,), (several,) = (
        train_networks(train, validation, members, threads=threads) for threads in (1, 4)
    )
    np.testing.assert_array_equal(one.weights.hidden_kernel, several.weights.hidden_kernel)


def test_threads_too_are_silent_where_training_diverges() -> None:
    train, validation = draw_sets(width=4096)
    # one step an epoch: then it is validation, in a thread, that overflows first
    members = [Member(DenseSettings(epochs=2, batch_size=60, learning_rate=1e38), 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (trained,) = train_networks(train, validation, members, threads=4)
    assert not np.isfinite(trained.weights.hidden_kernel).all()


def test_tiles_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = draw_sets()
    whole = train_networks(train, validation, grid())  # all heads of 16 units in one tile
    for weights_per_tile in (1, 7 * 16, 2 * 16 * WIDTH, 3 * 16 * WIDTH):
        monkeypatch.setattr(minibatch, "WEIGHTS_PER_TILE", weights_per_tile)
        for one, other in zip(whole, train_networks(train, validation, grid()), strict=True):
            assert_weights_close(one.weights, list(other.weights), 1e-5)


def test_the_head_needs_no_keras() -> None:
    program = (
        "import sys, pipeline.heads.dense; sys.exit(len({'keras', 'tensorflow'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    train, validation = draw_sets(count=12)
    trained = train_one(SMALL, train, validation)
    expected = train_one(replace(SMALL, batch_size=12), train, validation)
    np.testing.assert_array_equal(trained.weights.hidden_kernel, expected.weights.hidden_kernel)


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_diverging_training_ends_in_scores_that_are_not_finite(
    optimizer: Optimizer, class_count: int
) -> None:
    train, validation = draw_sets(class_count)
    settings = replace(SMALL, learning_rate=1e38, optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (candidate,) = fit(settings, train=train, validation=validation)
        assert not np.isfinite(candidate.classifier.scores(validation.features)).all()


def fit(
    *settings: DenseSettings,
    seeds: tuple[int, ...] = (0,),
    train: TrainingSet | None = None,
    validation: LabelledRows | None = None,
    wanted: DenseSettings | None = None,
) -> list[Candidate]:
    drawn = draw_sets()
    options = FitOptions(
        dense=settings, seeds=seeds, wanted=None if wanted is None else wanted.changed()
    )
    return list(Dense().fit_candidates(train or drawn[0], validation or drawn[1], options))


def test_candidates_come_most_regularised_first_with_every_seed() -> None:
    free, strict = replace(SMALL, dropout=0.1), replace(SMALL, dropout=0.6)
    narrow, slow = replace(free, units=4), replace(free, learning_rate=1e-4)
    candidates = fit(free, strict, narrow, slow, free, seeds=(3, 1))
    assert [(dict(each.spec.params), each.seed) for each in candidates] == [
        (settings.changed(), seed) for settings in (strict, narrow, slow, free) for seed in (3, 1)
    ]
    assert {each.spec.name for each in candidates} == {"dense"}
    assert [each.classifier.parameters for each in candidates[1:3]] == [31 * 16 + 17, 31 * 4 + 5]


def test_only_the_wanted_setting_is_fitted() -> None:
    free, strict = replace(SMALL, dropout=0.1), replace(SMALL, dropout=0.6)
    assert [each.spec.params for each in fit(free, strict, wanted=free)] == [free.changed()]
    assert fit(free, strict, wanted=SMALL) == []


def test_a_grid_cannot_mix_what_all_share() -> None:
    with pytest.raises(UsageError, match="shares epochs, batch_size and optimizer; received 2 20"):
        fit(SMALL, replace(SMALL, epochs=2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("units", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("optimizer", "lion"),
    ],
)
def test_settings_that_no_training_can_have_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} is .*; received {value!r}"):
        DenseSettings(**{name: value})  # type: ignore[arg-type]


def test_epochs_are_logged_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="pipeline"):
        (candidate,) = fit(SMALL)
        fit(SMALL, seeds=(0, 1))
    told, *epochs = [record.getMessage() for record in caplog.records]
    assert told == "dense: training for 3 epochs"
    assert epochs[3] == "dense: training 2 networks for 3 epochs"
    assert [line.partition(":")[0] for line in epochs[:3]] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]
    assert candidate.history is not None
    assert f"loss {candidate.history['loss'][2]:.4f}, accuracy" in epochs[2]
    assert f"validation loss {candidate.history['val_loss'][2]:.4f}, accuracy" in epochs[2]
    assert "–" not in epochs[2]
    assert f"{candidate.history['loss'][2]:.4f}" in epochs[6]
    assert "–" in epochs[6]
