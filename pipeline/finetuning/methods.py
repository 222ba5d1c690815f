"""The roads to a classifier that train more than a head, or a head on more than cached features.

*Deep Learning with Python*, 5.2 and 5.3: fine-tuning, here from the cache of the freeze boundary;
a frozen base end to end with augmentation; end-to-end fine-tuning; a small convnet from scratch.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.bases.boundary import Boundary, unfrozen, upper_model
from pipeline.bases.build import preprocess
from pipeline.bases.registry import Rescale
from pipeline.finetuning.result import Trained
from pipeline.finetuning.settings import BOOK, SCRATCH, Plan, Schedule
from pipeline.finetuning.training import Network, RunOptions, Task, train
from pipeline.heads.dense import build_dense
from pipeline.keras_backend import keras
from pipeline.models.top_block import HEAD_WEIGHTS

HEAD_STAGE, JOINT_STAGE, SCRATCH_STAGE = "head", "fine-tuning", "scratch"


def finetune_from_cache(
    base_model: Any,
    boundary: Boundary,
    task: Task,
    options: RunOptions,
    *,
    features: Task,
    plan: Plan = BOOK,
) -> Trained:
    """Train the head, then the layers above the boundary with it, reading only cached maps.

    Parameters
    ----------
    base_model : frozen, as `build_base` makes it; it is left as it was.
    task : rows of the boundary's maps (N, H, W, C); views of an image are rows of their own.
    features : the same rows of the base's last layer, on which the head is trained first.

    The result's ``frozen_head`` is the head after the first stage.
    """
    upper = upper_model(base_model, boundary)
    head = build_dense(upper.output_shape[1:], task.class_count, plan.network, options.seed)
    network = Network(head, head_variables(head))
    frozen = train(network, features, plan.head, options, stage=HEAD_STAGE)
    with unfrozen(base_model, boundary) as learns:
        network = Network(head, learns | head_variables(head), body=upper)
        tuned = train(network, task, plan.joint, options, stage=JOINT_STAGE)
    return replace(tuned, frozen_head=frozen)


def train_end_to_end(
    base_model: Any,
    task: Task,
    options: RunOptions,
    *,
    rescale: Rescale,
    boundary: Boundary | None = None,
    plan: Plan = BOOK,
) -> Trained:
    """Train a head on the whole base, then, with a boundary, the layers above it, too.

    Parameters
    ----------
    base_model : frozen, as `build_base` makes it; it is left as it was.
    task : rows of images (N, S, S, 3) uint8; the training rows may draw views of them.
    rescale : the preprocessing.
    """
    shape = task.train.inputs.shape[1:]
    images = keras.Input(shape, dtype="uint8")
    body = keras.Model(images, base_model(preprocess(images, rescale)))
    head = build_dense(body.output_shape[1:], task.class_count, plan.network, options.seed)
    network = Network(head, head_variables(head), body)
    frozen = train(network, task, plan.head, options, stage=HEAD_STAGE)
    if boundary is None:
        return frozen
    with unfrozen(base_model, boundary) as learns:
        network = Network(head, learns | head_variables(head), body)
        tuned = train(network, task, plan.joint, options, stage=JOINT_STAGE)
    return replace(tuned, frozen_head=frozen)


def train_from_scratch(
    task: Task, options: RunOptions, *, schedule: Schedule = SCRATCH, dropout: float = 0.5
) -> Trained:
    """Train the book's small convnet, without any pretrained base.

    Parameters
    ----------
    task : rows of images (N, S, S, 3) uint8; the training rows may draw views of them.
    dropout : before the first dense layer; 0 as in listing 5.5, 0.5 as in 5.13.
    """
    shape = task.train.inputs.shape[1:]
    model = build_small_convnet(shape, task.class_count, dropout=dropout, seed=options.seed)
    learns = {
        f"{layer.name}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.trainable_variables
    }
    return train(Network(model, learns), task, schedule, options, stage=SCRATCH_STAGE)


def head_variables(head: Any) -> dict[str, Any]:
    """A dense head's variables by name, ``head/hidden_kernel`` and so on."""
    names = (f"head/{name}" for name in HEAD_WEIGHTS)
    return dict(zip(names, head.trainable_variables, strict=True))


def build_small_convnet(
    shape: tuple[int, ...], class_count: int, *, dropout: float, seed: int
) -> Any:
    """Four convolutions with max-pooling, then dense layers (DLwP 5.2, listings 5.5 and 5.13).

    uint8 images (B, S, S, 3) -> (B, 1) or (B, K); 3,453,121 parameters at 150 pixels.
    """
    seeds = iter(np.random.default_rng(seed).integers(2**31, size=6).tolist())

    def drawn() -> dict[str, Any]:
        return {"kernel_initializer": keras.initializers.GlorotUniform(next(seeds))}

    layers = [keras.Input(shape, dtype="uint8"), keras.layers.Rescaling(1 / 255)]
    for number, filters in enumerate((32, 64, 128, 128), 1):
        name = f"conv{number}"
        layers.append(keras.layers.Conv2D(filters, 3, activation="relu", name=name, **drawn()))
        layers.append(keras.layers.MaxPooling2D())
    outputs, activation = (1, "sigmoid") if class_count == 2 else (class_count, "softmax")
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dropout(dropout),
        keras.layers.Dense(512, activation="relu", name="hidden", **drawn()),
        keras.layers.Dense(outputs, activation=activation, name="output", **drawn()),
    ]
    return keras.Sequential(layers)
