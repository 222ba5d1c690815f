"""Fine-tuning from the cache equals end-to-end training and leaves frozen weights unchanged."""

import time
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuning_tasks import synthetic_rows, synthetic_task

from pipeline.bases.boundary import Boundary, find_boundary, unfrozen, upper_model
from pipeline.bases.build import build_base, feature_model, preprocess
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import PREPROCESSING, Base, find_base
from pipeline.finetuning.config import Plan, Schedule
from pipeline.finetuning.from_cache import finetune_from_cache, head_variables
from pipeline.finetuning.method_result import notices_of
from pipeline.finetuning.rows import Rows, row_order
from pipeline.finetuning.training import RunOptions, Task, TrainableModel, TrainingResult, train
from pipeline.heads.config import DenseConfig
from pipeline.heads.dense import build_dense
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import scan_folder
from pipeline.images.source import FolderSource
from pipeline.keras_backend import keras
from pipeline.models.top_block import HEAD_WEIGHTS

NO_DROPOUT = DenseConfig(units=16, dropout=0)
SHORT = Plan(
    network=DenseConfig(units=16),
    head=Schedule(epochs=2, learning_rate=1e-3),
    joint=Schedule(epochs=2, learning_rate=1e-5),
)


@cache
def built(name: str, size: int) -> tuple[Any, Base]:
    base = find_base(name)
    model, _ = build_base(BaseConfig(base=name, image_size=size, weights="random", seed=4))
    _adapt_batchnorm(
        model, synthetic_rows(20, (size, size, 3), seed=9).inputs / np.float32(128) - 1
    )
    return model, base


def _adapt_batchnorm(model: Any, images: np.ndarray) -> None:
    """Set the averages of BatchNorm from images: with the initial ones, signals vanish."""
    layers = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
    for layer in layers:
        layer.trainable, layer.momentum = True, 0.0
    model(images, training=True)
    model.trainable = False


def extract(model: Any, base: Base, layers: list[str], images: np.ndarray) -> list[np.ndarray]:
    """The features that a cache of these layers contains."""
    config = BaseConfig(base=base.name, image_size=images.shape[1])
    features = feature_model(model, config, layers).predict(images, batch_size=20, verbose=0)
    arrays: list[np.ndarray] = keras.tree.flatten(features)
    return arrays


def on_maps(model: Any, base: Base, boundary: Boundary, rows: Rows) -> Rows:
    """Rows of the feature maps that a cache of the boundary contains."""
    (maps,) = extract(model, base, [boundary.layer], rows.inputs)
    return Rows(maps, rows.labels)


def error_of_ten_steps(
    model: Any, base: Base, first: str, rows: Rows, config: DenseConfig, rate: float
) -> float:
    """‖Δcache − Δend-to-end‖ / ‖Δend-to-end‖ over all weights; leaves the base as it was."""
    size = len(rows) // 10
    boundary = find_boundary(model, base, first)
    head = partial(build_dense, model.output_shape[1:], 2, config, 7)
    maps = on_maps(model, base, boundary, rows)

    ours = head()
    with unfrozen(model, boundary) as variables:
        variables |= head_variables(ours)
        before = {name: variable.value.numpy() for name, variable in variables.items()}
        trained = train(
            TrainableModel(ours, variables, upper_model(model, boundary)),
            Task(maps, maps, 2),
            Schedule(epochs=1, learning_rate=rate, batch_size=size),
            RunOptions(seed=3),
            stage="ten steps",
        ).weights

    # the reference: Keras trains the complete network with frozen lower layers
    images, theirs = keras.Input(rows.inputs.shape[1:], dtype="uint8"), head()
    start = model.get_weights()
    model.trainable = True
    last_frozen = model.layers.index(model.get_layer(boundary.layer))
    for index, layer in enumerate(model.layers):
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = index > last_frozen and not is_norm
    rescale = PREPROCESSING[base.preprocessing]
    network = keras.Model(images, theirs(model(preprocess(images, rescale))))
    network.compile(keras.optimizers.RMSprop(rate), "binary_crossentropy", jit_compile=False)
    order = row_order(len(rows), seed=3, epoch=0)
    for step in range(10):
        batch = order[step * size : (step + 1) * size]
        network.train_on_batch(rows.inputs[batch], rows.labels[batch].astype("f4"))
    expected = {v.path: v.value.numpy() for v in model.trainable_variables} | {
        name: variable.value.numpy() for name, variable in head_variables(theirs).items()
    }
    model.trainable = False
    model.set_weights(start)

    assert trained.keys() == expected.keys()

    def norm(arrays: list[np.ndarray]) -> float:
        return float(np.linalg.norm(np.concatenate([each.ravel() for each in arrays])))

    error = norm([trained[name] - expected[name] for name in expected])
    return error / norm([expected[name] - before[name] for name in expected])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "first"),
    [("vgg16", 48, "block5_conv1"), ("mobilenet_v2", 32, "block_16_expand")],
)
def test_ten_steps_from_the_cache_are_ten_steps_end_to_end(
    name: str, size: int, first: str
) -> None:
    model, base = built(name, size)
    rows = synthetic_rows(40, (size, size, 3), seed=1)
    error = error_of_ten_steps(model, base, first, rows, NO_DROPOUT, 1e-5)
    print(f"relative error after ten steps: {error:.1e}")
    assert error <= 1e-3


def assert_frozen(model: Any, before: list[np.ndarray]) -> None:
    assert model.trainable_variables == []
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_fine_tuning_leaves_the_base_frozen_and_returns_the_weights_that_it_evaluated() -> None:
    model, base = built("mobilenet_v2", 32)
    before = model.get_weights()
    boundary = find_boundary(model, base, "block_16_expand")
    images = synthetic_task((32, 32, 3))
    train, validation = images.train, images.validation
    pixels = np.concatenate([train.inputs, validation.inputs])
    task, features = (
        Task(Rows(rows[:40], train.labels), Rows(rows[40:], validation.labels), 2)
        for rows in extract(model, base, [boundary.layer, base.last_layer], pixels)
    )
    frozen_head, trained = finetune_from_cache(
        model, boundary, task, RunOptions(seed=1), plan=SHORT, features=features
    )
    assert_frozen(model, before)
    assert trained.frozen_head is frozen_head
    assert len(frozen_head.weights) == 4
    assert len(trained.weights) == 8
    assert all(name.split("/")[0] in {*boundary.unfrozen, "head"} for name in trained.weights)
    # the trained weights, assigned to a new head and the base, give the same probabilities
    head = build_dense(model.output_shape[1:], 2, SHORT.network, 0)
    head.set_weights([trained.weights[f"head/{name}"] for name in HEAD_WEIGHTS])
    with unfrozen(model, boundary) as variables:
        for name, variable in variables.items():
            assert not np.array_equal(variable.value.numpy(), trained.weights[name])
            variable.assign(trained.weights[name])
        (outputs,) = extract(model, base, [base.last_layer], validation.inputs)
    np.testing.assert_allclose(
        trained.validation_probabilities[:, 1:], head.predict(outputs, verbose=0), atol=1e-5
    )


def test_the_head_on_vgg16_has_the_parameters_of_the_book() -> None:
    head = build_dense((4, 4, 512), 2, DenseConfig(), 0)
    assert sum(
        variable.value.shape.num_elements() for variable in head_variables(head).values()
    ) == (2_097_665)


def test_ending_below_the_frozen_head_gives_a_notice() -> None:
    def trained(accuracy: float, frozen: TrainingResult | None = None) -> TrainingResult:
        return TrainingResult(
            weights={},
            history={"val_accuracy": [0.5, accuracy]},
            seconds=[1.0, 1.0],
            best_epoch=2,
            validation_probabilities=np.ones((1, 2)),
            frozen_head=frozen,
        )

    results = [trained(0.9), trained(0.9, trained(0.9)), trained(0.9, trained(0.95))]
    assert notices_of([], results, [3, 4, 5]) == [
        "seed 5: fine-tuning ends below the frozen head: "
        "90.0 % validation accuracy instead of 95.0 %"
    ]


@pytest.mark.slow
@pytest.mark.real_data
def test_ten_steps_on_photographs_at_the_books_size(assets: Path) -> None:
    root = assets / "data" / "cats_and_dogs"
    images = scan_folder(root).limited(50)
    labels = {file.path: file.label for file in images.files if file.split == 1}
    digests, _ = hash_files(FolderSource(root), labels)
    model, base = built("vgg16", 150)
    decoded = dict(read_images(FolderSource(root), digests, image_size=150, resize="squash"))
    rows = Rows(np.stack(list(decoded.values())), np.array([labels[path] for path in decoded]))
    config = DenseConfig(dropout=0)
    error = error_of_ten_steps(model, base, "block5_conv1", rows, config, 1e-5)
    print(f"relative error after ten steps: {error:.1e}")
    assert error <= 1e-3


@pytest.mark.slow
def test_an_epoch_from_the_cache_costs_at_most_a_third() -> None:
    """Of the network's own time: images and maps are in memory, nothing is decoded."""
    model, base = built("vgg16", 150)
    boundary = find_boundary(model, base, "block5_conv1")
    rows = synthetic_rows(40, (150, 150, 3), seed=1)
    maps = on_maps(model, base, boundary, rows)
    schedule = Schedule(epochs=1, learning_rate=1e-5)
    images = keras.Input((150, 150, 3), dtype="uint8")
    head = build_dense((4, 4, 512), 2, DenseConfig(), 0)
    seconds: dict[str, list[float]] = {"cache": [], "end to end": []}
    with ExitStack() as stack:
        variables = stack.enter_context(unfrozen(model, boundary)) | head_variables(head)
        ours = TrainableModel(head, variables, upper_model(model, boundary))
        network = keras.Model(images, head(model(preprocess(images, PREPROCESSING["caffe"]))))
        network.compile(keras.optimizers.RMSprop(1e-5), "binary_crossentropy", jit_compile=False)
        network.fit(rows.inputs, rows.labels, batch_size=20, epochs=1, verbose=0)  # compiles
        for _ in range(5):
            schedule = Schedule(epochs=2, learning_rate=1e-5, patience=9)
            task = Task(maps, maps, 2)
            trained = train(ours, task, schedule, RunOptions(), stage="cache")
            seconds["cache"].append(trained.seconds[1])  # the first compiles
            began = time.monotonic()
            network.fit(rows.inputs, rows.labels, batch_size=20, epochs=1, verbose=0)
            seconds["end to end"].append(time.monotonic() - began)
    ratio = np.median(seconds["cache"]) / np.median(seconds["end to end"])
    print(f"an epoch from the cache costs {ratio:.2f} of one end to end: {seconds}")
    assert ratio <= 1 / 3
