"""The conversion of every convolutional base computes what Keras computes."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from pipeline.bases.build import build_base, feature_model, preprocess
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import BASES, PIXELS, Base
from pipeline.engines import relative_errors
from pipeline.engines.keras_reader import read_network
from pipeline.engines.network import Network
from pipeline.engines.onnx import MODEL_FILE
from pipeline.engines.worker import RUNTIME_CLASSES, load_runtime
from pipeline.keras_backend import keras

pytestmark = pytest.mark.slow

LIKE_CONVNEXT_BASE = {"convnext_large", "convnext_xlarge"}  # wider, with the same layers
TESTED = [name for name in BASES if name not in {PIXELS, *LIKE_CONVNEXT_BASE}]
TOLERANCE = 1e-4


class Read(NamedTuple):
    base: Base
    network: Network
    images: npt.NDArray[np.uint8]
    expected: dict[str, npt.NDArray[np.float32]]


def draw_variables(model: Any, images: npt.NDArray[np.float32]) -> None:
    """Draw statistics, scales and offsets: with the initial 0 and 1 no wrong fold would show.

    Statistics follow the images and scales are below 1, as in a trained base; otherwise the maps of
    a deep base lose the image, or rounding one pixel changes them by more than the tolerance.
    """
    draw = np.random.default_rng(0)
    for variable in model.variables:
        kind = variable.path.rpartition("/")[2]
        if kind in ("gamma", "variance"):
            variable.assign(draw.uniform(0.2, 0.6, variable.shape))
        elif kind in ("beta", "bias", "mean"):
            variable.assign(draw.normal(0, 0.3, variable.shape))
    norms = [part for part in model.layers if isinstance(part, keras.layers.BatchNormalization)]
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    for layer in norms:
        layer.momentum, layer.trainable = 0.0, True
    model(images, training=True)
    for layer in norms:
        variance = np.asarray(layer.moving_variance)
        # a variance near 0 would amplify rounding
        layer.moving_variance.assign(variance + variance.mean() / 10)
        layer.trainable = False


def draw_images(number: int, size: int) -> npt.NDArray[np.uint8]:
    """Draw coloured patches with noise.

    Images of noise alone give similar maps: normalisation would subtract their common part and
    amplify the rounding of the rest.
    """
    draw = np.random.default_rng(0)
    patches = (
        draw.uniform(0, 256, (number, 5, 5, 3)).repeat(-(-size // 5), 1).repeat(-(-size // 5), 2)
    )
    noise = draw.normal(0, 30, (number, size, size, 3))
    return (patches[:, :size, :size] + noise).clip(0, 255).astype(np.uint8)


def middle_layer(model: Any) -> str:
    """Return the middle one of the layers with feature maps."""
    names: list[str] = [
        layer.name
        for layer in model.layers
        if len(layer.output.shape) == 4 and layer.output.shape[1] > 1
    ]
    return names[len(names) // 2]


@pytest.fixture(scope="module", params=TESTED)
def read(request: pytest.FixtureRequest) -> Iterator[Read]:
    base = BASES[request.param]
    size = max(base.min_size, 75)
    keras.utils.set_random_seed(0)
    config = BaseConfig(base=base.name, image_size=size, weights="random")
    model, _ = build_base(config)
    images = draw_images(4, size)
    draw_variables(model, np.asarray(preprocess(images, config.rescale)))
    layers = [middle_layer(model), base.last_layer]
    reference = feature_model(model, config, layers)
    expected = dict(zip(layers, [maps.numpy() for maps in reference(images)], strict=True))
    network = read_network(model, config, layers)
    yield Read(base, network, images, expected)
    keras.backend.clear_session()


@pytest.mark.parametrize("engine", RUNTIME_CLASSES)
def test_a_conversion_computes_what_keras_computes(engine: str, read: Read, tmp_path: Path) -> None:
    importlib.import_module(f"pipeline.engines.{engine}").convert(read.network, tmp_path)
    if engine == "onnx":
        onnx.checker.check_model(tmp_path / MODEL_FILE, full_check=True)
    runtime = load_runtime(engine)(tmp_path, layers=list(read.expected))
    features = runtime(read.images)
    errors = {
        layer: relative_errors(maps, features[layer]).max() for layer, maps in read.expected.items()
    }
    assert max(errors.values()) < TOLERANCE, errors
    for maps in read.expected.values():
        assert relative_errors(maps[:-1], maps[1:]).min() > 0.001  # maps depend on the image


def test_every_base_is_tested() -> None:
    assert {name for name in BASES if name != PIXELS} == {*TESTED, *LIKE_CONVNEXT_BASE}
