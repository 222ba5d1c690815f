"""The training loop equals Keras', resumes after an interruption, and stops early."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finetuning_tasks import synthetic_maps, train_head

from pipeline.errors import BadDataError, UsageError
from pipeline.finetuning.config import FINE_TUNING, Schedule
from pipeline.finetuning.from_cache import head_variables
from pipeline.finetuning.rows import row_order
from pipeline.finetuning.training import RunOptions, TrainableModel, TrainingResult, train
from pipeline.heads.config import DenseConfig
from pipeline.heads.dense import build_dense
from pipeline.keras_backend import keras

SCHEDULE = Schedule(epochs=4, learning_rate=1e-3, patience=9)


def assert_same(ours: TrainingResult, theirs: TrainingResult) -> None:
    assert ours.history == theirs.history
    assert ours.best_epoch == theirs.best_epoch
    assert ours.weights.keys() == theirs.weights.keys()
    for name, array in ours.weights.items():
        np.testing.assert_array_equal(array, theirs.weights[name])
    np.testing.assert_array_equal(ours.validation_probabilities, theirs.validation_probabilities)


@pytest.mark.parametrize("classes", [2, 3])
def test_an_epoch_equals_one_of_keras(classes: int) -> None:
    task = synthetic_maps(count=50, classes=classes)
    schedule = replace(SCHEDULE, epochs=1)
    ours = train_head(task, RunOptions(seed=2), schedule, dropout=0)
    model = build_dense((4, 4, 8), classes, DenseConfig(units=16, dropout=0), 2)
    before = model.get_weights()
    model.compile(
        keras.optimizers.RMSprop(schedule.learning_rate),
        "binary_crossentropy" if classes == 2 else "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    order = row_order(50, seed=2, epoch=0)
    theirs = model.fit(
        task.train.inputs[order],
        task.train.labels[order],
        validation_data=(task.validation.inputs, task.validation.labels),
        batch_size=20,
        shuffle=False,
        verbose=0,
    ).history
    for name, values in ours.history.items():
        np.testing.assert_allclose(values, theirs[name], rtol=1e-4)
    change = np.concatenate(
        [(now - then).ravel() for now, then in zip(model.get_weights(), before, strict=True)]
    )
    our_change = np.concatenate(
        [(now - then).ravel() for now, then in zip(ours.weights.values(), before, strict=True)]
    )
    assert np.linalg.norm(our_change - change) < 1e-3 * np.linalg.norm(change)
    probabilities = model.predict(task.validation.inputs, verbose=0)
    if classes == 2:
        probabilities = np.hstack([1 - probabilities, probabilities])
    np.testing.assert_allclose(ours.validation_probabilities, probabilities, atol=1e-5)


def test_dropout_and_batchnorm_of_the_base_are_off_in_training() -> None:
    body = keras.Sequential(
        [keras.Input((4, 4, 8)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.9)]
    )
    before = body.get_weights()
    task = synthetic_maps()
    head = build_dense((4, 4, 8), 2, DenseConfig(units=16), 0)
    network = TrainableModel(head, head_variables(head), keras.Sequential([body]))
    ours = train(network, task, SCHEDULE, RunOptions(), stage="head")
    plain = train_head(task, RunOptions(), SCHEDULE)
    np.testing.assert_allclose(ours.history["loss"], plain.history["loss"], rtol=0.02)
    for now, then in zip(body.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_an_interrupted_run_resumes_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    """`test_finetune.py` kills a process; here the third epoch is interrupted."""

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 100:
            raise KeyboardInterrupt

    options = RunOptions(seed=5, checkpoints=tmp_path / "kept", progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_head(synthetic_maps(), options, SCHEDULE)
    seen: list[int] = []
    options = replace(options, progress=lambda _, done, total: seen.append(done))
    resumed = train_head(synthetic_maps(), options, SCHEDULE)
    assert seen == [100, 120, 140, 160]  # two epochs of 40 rows were kept
    uninterrupted = train_head(synthetic_maps(), RunOptions(seed=5), SCHEDULE)
    assert_same(resumed, uninterrupted)
    seen.clear()
    assert_same(train_head(synthetic_maps(), options, SCHEDULE), uninterrupted)
    assert seen == []  # every epoch was in the checkpoint


def test_a_checkpoint_of_another_run_is_ignored(tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, epochs=1)
    train_head(synthetic_maps(), RunOptions(seed=5, checkpoints=tmp_path), schedule)
    for other in (RunOptions(seed=6), RunOptions(seed=5, identity={"features": "others"})):
        result = train_head(synthetic_maps(), replace(other, checkpoints=tmp_path), schedule)
        assert_same(result, train_head(synthetic_maps(), other, schedule))


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    options = RunOptions(checkpoints=tmp_path)
    schedule = replace(SCHEDULE, epochs=1)
    train_head(synthetic_maps(), options, schedule)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BadDataError, match=r"head.safetensors is damaged: delete"):
        train_head(synthetic_maps(), options, schedule)


def test_training_stops_early_and_keeps_the_best_epoch() -> None:
    task = synthetic_maps()
    swapped = task.validation.labels != 1  # the better the training, the worse the validation
    task = task._replace(validation=replace(task.validation, labels=swapped.astype(np.int64)))
    schedule = replace(SCHEDULE, epochs=30, patience=3, learning_rate=3e-4)
    trained = train_head(task, RunOptions(), schedule, dropout=0)
    losses = trained.history["val_loss"]
    assert len(losses) == len(trained.seconds) == trained.best_epoch + 3 < 30
    assert trained.best_epoch == 1 + int(np.argmin(losses))
    right = trained.validation_probabilities.argmax(axis=1) == task.validation.labels
    assert trained.validation_accuracy == right.mean()


def test_training_that_diverges_says_what_to_do() -> None:
    task = synthetic_maps()
    huge = replace(task.train, inputs=task.train.inputs * np.float32(1e38))
    with pytest.raises(UsageError, match=r"diverged in epoch 1, .* choose a lower learning rate"):
        train_head(task._replace(train=huge), RunOptions(), SCHEDULE)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs: expected a whole number from 1; received 0"),
        ({"patience": 0}, "patience: expected a whole number from 1"),
        ({"learning_rate": 1.0}, "learning_rate: expected above 0 and below 1"),
    ],
)
def test_impossible_schedules_are_errors(setting: Mapping[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(FINE_TUNING, **setting)  # type: ignore[arg-type]
