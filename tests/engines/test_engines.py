"""Engines keep the protocol: uint8 images in, float32 rows per layer out."""

import numpy as np
import pytest

from pipeline.bases.config import BaseConfig
from pipeline.engines import Engine, open_engine
from pipeline.errors import UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)


def engine(base: str, layers: list[str], batch_size: int = 5) -> Engine:
    config = BaseConfig(
        base=base, image_size=32, weights="random", batch_size=batch_size, engine="tensorflow"
    )
    return open_engine(config, layers)


@pytest.mark.parametrize(
    ("base", "layers"),
    [
        ("pixels", ["pixels", "pixels:avg", "pixels:max"]),
        ("mobilenet_v3_small", ["activation_17", "expanded_conv_2_add:avg"]),
    ],
)
def test_outputs_have_the_shapes_that_the_engine_says(base: str, layers: list[str]) -> None:
    made = engine(base, layers)
    features = made(IMAGES)
    assert set(features) == set(layers) == set(made.row_shapes)
    for key, rows in features.items():
        assert rows.shape == (5, *made.row_shapes[key])
        assert rows.dtype == np.float32


def test_pixels_are_the_image_between_0_and_1() -> None:
    features = engine("pixels", ["pixels", "pixels:avg", "pixels:max"])(IMAGES)
    np.testing.assert_allclose(features["pixels"], IMAGES / 255, rtol=1e-6)
    np.testing.assert_allclose(features["pixels:avg"], IMAGES.mean((1, 2)) / 255, rtol=1e-5)
    np.testing.assert_allclose(features["pixels:max"], IMAGES.max((1, 2)) / 255, rtol=1e-6)


def test_pixels_have_no_other_layer() -> None:
    with pytest.raises(UsageError, match="one layer"):
        engine("pixels", ["block5_pool"])


def test_features_do_not_depend_on_the_rest_of_the_batch() -> None:
    made = engine("mobilenet_v3_small", ["activation_17"], batch_size=8)
    together = made(IMAGES)["activation_17"]
    np.testing.assert_array_equal(made(IMAGES[::-1])["activation_17"][::-1], together)
    np.testing.assert_array_equal(made(IMAGES[2:3])["activation_17"], together[2:3])
