"""Engines keep the protocol: uint8 images in, float32 rows per layer out."""

from typing import Any

import numpy as np
import pytest

from pipeline.bases.config import BaseConfig
from pipeline.engines import Engine, open_engine, relative_errors
from pipeline.errors import UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)


PIXELS_LAYERS = ["pixels", "pixels:avg", "pixels:max"]
NETWORK_LAYERS = ["activation_17", "expanded_conv_2_add", "expanded_conv_2_add:avg"]


def opened(base: str, layers: list[str]) -> Engine:
    config = BaseConfig(
        base=base, image_size=32, weights="random", batch_size=8, engine="tensorflow"
    )
    return open_engine(config, layers)


def assert_rows_have_the_announced_shapes(engine: Engine, layers: list[str]) -> None:
    features = engine(IMAGES)
    assert set(features) == set(layers) == set(engine.row_shapes)
    for key, rows in features.items():
        assert rows.shape == (5, *engine.row_shapes[key])
        assert rows.dtype == np.float32


def test_pixels_are_the_image_between_0_and_1() -> None:
    engine = opened("pixels", PIXELS_LAYERS)
    assert_rows_have_the_announced_shapes(engine, PIXELS_LAYERS)
    features = engine(IMAGES)
    np.testing.assert_allclose(features["pixels"], IMAGES / 255, rtol=1e-6)
    np.testing.assert_allclose(features["pixels:avg"], IMAGES.mean((1, 2)) / 255, rtol=1e-5)
    np.testing.assert_allclose(features["pixels:max"], IMAGES.max((1, 2)) / 255, rtol=1e-6)


def test_pixels_have_no_other_layer() -> None:
    with pytest.raises(UsageError, match="one layer"):
        opened("pixels", ["block5_pool"])


def test_features_do_not_depend_on_the_rest_of_the_batch() -> None:
    engine = opened("mobilenet_v3_small", NETWORK_LAYERS)
    assert_rows_have_the_announced_shapes(engine, NETWORK_LAYERS)
    together = engine(IMAGES)["activation_17"]
    np.testing.assert_array_equal(engine(IMAGES[::-1])["activation_17"][::-1], together)
    np.testing.assert_array_equal(engine(IMAGES[2:3])["activation_17"], together[2:3])


@pytest.mark.parametrize(
    ("expected", "found", "errors"),
    [
        ([[3.0, 4.0], [0.0, 5.0]], [[3.0, 4.0], [0.0, 5.5]], [0.0, 0.1]),
        ([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1e-9]], [0.0, np.inf]),
        ([[3.0, 4.0]], [[np.nan, 4.0]], [np.inf]),
        ([[3.0, 4.0]], [[3.0, 4.0, 0.0]], [np.inf]),
        ([[[3.0], [4.0]]], [[[3.0], [9.0]]], [1.0]),
    ],
)
def test_relative_error_is_of_a_row_in_the_l2_norm(
    expected: list[Any], found: list[Any], errors: list[float]
) -> None:
    measured = relative_errors(np.array(expected, "f4"), np.array(found, "f4"))
    np.testing.assert_allclose(measured, errors, rtol=1e-6)
