"""The freeze boundary: where a base can be cut; both halves compute what the base computes."""

from functools import cache

import numpy as np
import pytest

from pipeline.bases.boundary import find_boundary, unfrozen, upper_model
from pipeline.bases.build import build_base
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import find_base
from pipeline.errors import UsageError
from pipeline.keras_backend import keras


@cache
def build(name: str, size: int):  # type: ignore[no-untyped-def]
    base = find_base(name)
    model, _ = build_base(BaseConfig(base=name, image_size=size, weights="random"))
    return model, base


def test_block_that_the_book_unfreezes_reads_block4_pool() -> None:
    boundary = find_boundary(*build("vgg16", 150), "block5_conv1")
    assert boundary.layer == "block4_pool"
    assert boundary.shape == (9, 9, 512)
    assert boundary.unfrozen == ("block5_conv1", "block5_conv2", "block5_conv3", "block5_pool")


@pytest.mark.parametrize(
    ("name", "size", "first", "below"),
    [
        ("mobilenet_v2", 32, "block_16_expand", "block_15_add"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("resnet50", 32, "conv5_block1_0_conv", "conv4_block6_out"),
                ("efficientnet_b0", 32, "block7a_expand_conv", "block6d_add"),
                ("inception_v3", 75, "conv2d_85", "mixed9"),
                ("densenet121", 32, "conv5_block1_0_bn", "pool4_pool"),
                (
                    "convnext_tiny",  # its sums are not layers
                    32,
                    "convnext_tiny_stage_3_block_0_depthwise_conv",
                    "convnext_tiny_downsampling_block_2",
                ),
            )
        ),
    ],
)
def test_both_halves_of_a_base_compute_what_the_base_computes(
    name: str, size: int, first: str, below: str
) -> None:
    model, base = build(name, size)
    boundary = find_boundary(model, base, first)
    lower = keras.Model(model.input, model.get_layer(boundary.layer).output)
    images = np.random.default_rng(1).uniform(0, 255, (2, size, size, 3)).astype("f4")
    maps = lower(images, training=False)
    assert boundary.layer == below
    assert maps.shape[1:] == boundary.shape
    np.testing.assert_array_equal(
        upper_model(model, boundary)(maps, training=False), model(images, training=False)
    )


def test_within_a_residual_block_the_nearest_layers_are_named() -> None:
    model, base = build("mobilenet_v2", 32)
    with pytest.raises(UsageError, match=r"nearest: block_15_expand and block_16_expand$"):
        find_boundary(model, base, "block_15_depthwise")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("block1_conv1", r"frozen layers below .* nearest: block1_conv2$"),
        ("block5_pool", r"nearest: block5_conv3$"),  # has no weights to train
        ("block6_conv1", "--list-layers vgg16"),
    ],
)
def test_layer_that_leaves_nothing_to_freeze_or_to_train_is_refused(
    layer: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        find_boundary(*build("vgg16", 150), layer)


def test_unfrozen_layers_are_frozen_again_with_the_weights_they_had() -> None:
    model, base = build("mobilenet_v2", 32)
    boundary = find_boundary(model, base, "block_16_project")
    before = model.get_weights()
    with unfrozen(model, boundary) as variables:
        names = list(variables)
        for variable in variables.values():
            variable.assign(variable + 1)
    assert names == ["block_16_project/kernel", "Conv_1/kernel"]  # BatchNorm stays frozen
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert model.trainable_variables == []
