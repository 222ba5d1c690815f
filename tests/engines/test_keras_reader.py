"""The network read from Keras computes what Keras computes, with fewer operations."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

if find_spec("onnxruntime") is None:  # an import here would let it store usage data
    pytest.skip("needs onnxruntime", allow_module_level=True)

from pipeline.bases.build import feature_model
from pipeline.bases.config import BaseConfig
from pipeline.engines import relative_errors
from pipeline.engines.keras_reader import read_network
from pipeline.engines.network import (
    IMAGE,
    Affine,
    CannotConvert,
    Conv,
    Function,
    Network,
    Operation,
    Pad,
    Pool,
    simplify,
)
from pipeline.engines.onnx import OnnxEngine, convert
from pipeline.errors import UsageError
from pipeline.keras_backend import keras

SIDE = 37  # odd, not a multiple of any stride
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3)).astype(np.uint8)
# its preprocessing gives values from -1 to 1
CONFIG = BaseConfig(base="mobilenet_v2", image_size=SIDE)

layers = keras.layers


def synthetic_model(add: Callable[[Any], Any]) -> Any:
    """A convolution of seven channels, then what ``add`` makes of it; no variable is 0 or 1."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), name="input_image")
    model = keras.Model(image, add(layers.Conv2D(7, 3, name="stem")(image)))
    draw = np.random.default_rng(0)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(draw.uniform(0.2, 1.2, variable.shape) - 0.5 * (variable.ndim > 1))
    return model


def read(model: Any, *names: str) -> Network:
    return read_network(model, CONFIG, names)


def assert_agrees(
    model: Any, folder: Path, *names: str, config: BaseConfig = CONFIG
) -> dict[str, npt.NDArray[np.float32]]:
    """ONNX Runtime and Keras compute the same maps, which are returned."""
    convert(read_network(model, config, names), folder)
    features = OnnxEngine(folder, layers=names)(IMAGES)
    reference = feature_model(model, config, names)
    outputs = reference(IMAGES)
    expected = outputs if isinstance(outputs, list) else [outputs]
    for name, maps in zip(names, expected, strict=True):
        assert features[name].shape == maps.shape
        assert relative_errors(maps.numpy(), features[name]).max() < 2e-6, name
    return features


def gate(maps: Any, *, keepdims: bool) -> Any:
    """Squeeze-and-excite."""
    means = layers.GlobalAveragePooling2D(keepdims=keepdims)(maps)
    if not keepdims:
        means = layers.Reshape((1, 1, 7))(means)
    weights = layers.Conv2D(7, 1, activation="sigmoid")(means)
    return layers.Multiply(name="last")([maps, weights])


def branches(maps: Any) -> Any:
    left = layers.Conv2D(7, 3, padding="same")(maps)
    return layers.Add(name="last")([maps, layers.BatchNormalization()(left)])


CASES: dict[str, Callable[[Any], Any]] = {
    "valid convolution": layers.Conv2D(5, (3, 2), strides=(2, 3), name="last"),
    "same convolution": layers.Conv2D(5, (4, 3), strides=(2, 3), padding="same", name="last"),
    "dilated convolution": layers.Conv2D(
        5, 3, dilation_rate=(2, 3), padding="same", use_bias=False, name="last"
    ),
    "grouped convolution": layers.Conv2D(14, 3, groups=7, activation="relu", name="last"),
    "depthwise convolution": layers.DepthwiseConv2D(
        5, strides=2, padding="same", depth_multiplier=2, activation="tanh", name="last"
    ),
    "separable convolution": layers.SeparableConv2D(
        5, 3, strides=2, padding="same", depth_multiplier=2, activation="relu", name="last"
    ),
    "dense layer": layers.Dense(5, activation="gelu", name="last"),
    "batch norm": layers.BatchNormalization(name="last"),
    "batch norm without scale": layers.BatchNormalization(scale=False, name="last"),
    "batch norm without offset": layers.BatchNormalization(center=False, name="last"),
    "batch norm of a ReLU": lambda maps: layers.BatchNormalization(name="last")(
        layers.ReLU()(maps)
    ),
    "layer norm": layers.LayerNormalization(epsilon=1e-3, name="last"),
    "normalisation": layers.Normalization(
        mean=np.arange(7.0), variance=np.arange(1.0, 8.0), name="last"
    ),
    "rescaling": layers.Rescaling([0.1 * c for c in range(1, 8)], offset=-2.0, name="last"),
    "average pooling": layers.AveragePooling2D(3, strides=2, padding="same", name="last"),
    "max pooling": layers.MaxPooling2D((3, 2), strides=2, padding="same", name="last"),
    "max pooling of padded negatives": lambda maps: layers.MaxPooling2D(3, 2, name="last")(
        layers.ZeroPadding2D(((1, 2), (0, 1)))(maps)
    ),
    "max pooling of a padded ReLU": lambda maps: layers.MaxPooling2D(3, 2, name="last")(
        layers.ZeroPadding2D(1)(layers.ReLU()(maps))
    ),
    "padded convolution": lambda maps: layers.Conv2D(5, 3, strides=2, name="last")(
        layers.ZeroPadding2D(((0, 1), (2, 1)))(maps)
    ),
    "zero padding": layers.ZeroPadding2D(((0, 1), (2, 3)), name="last"),
    "cropping": layers.Cropping2D(((1, 0), (0, 2)), name="last"),
    "numbers": lambda maps: layers.ReLU(6.0, name="last")(2.0 * (maps + 3.0) * (1 / 6)),
    "concatenation": lambda maps: layers.Concatenate(name="last")(
        [maps, layers.ReLU()(maps), layers.Activation("silu")(maps)]
    ),
    "squeeze and excite": lambda maps: gate(maps, keepdims=True),
    "squeeze and excite, reshaped": lambda maps: gate(maps, keepdims=False),
    "residual": branches,
    "dropout": lambda maps: layers.ReLU(name="last")(layers.Dropout(0.5)(maps)),
    "sequential": keras.Sequential(
        [layers.Conv2D(5, 3), layers.LayerNormalization(), layers.ReLU()], name="last"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_layer_computes_what_keras_computes(case: str, tmp_path: Path) -> None:
    assert_agrees(synthetic_model(CASES[case]), tmp_path, "last")


def test_each_activation_computes_what_keras_computes(tmp_path: Path) -> None:
    names = ["relu", "relu6", "sigmoid", "silu", "hard_sigmoid", "hard_silu", "tanh", "gelu"]

    def add(maps: Any) -> list[Any]:
        return [layers.Activation(name, name=name)(maps) for name in [*names, "linear"]]

    assert_agrees(synthetic_model(add), tmp_path, *names, "linear")


@pytest.mark.parametrize(
    ("base", "preprocessing"),
    [
        ("vgg16", "native"),
        ("resnet50_v2", "native"),
        ("densenet121", "native"),
        ("mobilenet_v3_small", "native"),
        ("vgg16", "rescale"),
    ],
)
def test_preprocessing_is_native_or_the_requested_one(
    base: str, preprocessing: str, tmp_path: Path
) -> None:
    model = synthetic_model(layers.ReLU(name="last"))
    config = BaseConfig(base=base, image_size=SIDE, preprocessing=preprocessing)
    assert_agrees(model, tmp_path, "last", config=config)


def test_requested_layers_keep_their_results(tmp_path: Path) -> None:
    def add(maps: Any) -> Any:
        maps = layers.Conv2D(6, 3, name="convolved")(maps)
        maps = layers.BatchNormalization(name="normed")(maps)
        maps = layers.Dropout(0.5, name="dropped")(maps)
        maps = layers.ZeroPadding2D(1, name="padded")(maps)
        return layers.Conv2D(4, 3, activation="relu", name="activated")(maps)

    names = ("input_image", "convolved", "normed", "dropped", "padded", "activated")
    features = assert_agrees(synthetic_model(add), tmp_path, *names)
    assert features["activated"].min() == 0
    assert features["normed"].min() < 0
    np.testing.assert_array_equal(features["dropped"], features["normed"])


def test_only_layers_that_the_requested_ones_depend_on_are_read() -> None:
    def add(maps: Any) -> Any:
        maps = layers.ReLU(name="early")(maps)
        return layers.UpSampling2D(name="unknown")(maps)

    model = synthetic_model(add)
    assert [operation.name for operation in read(model, "early").operations] == ["stem", "early"]
    with pytest.raises(CannotConvert, match=r"layer unknown \(UpSampling2D\) cannot"):
        read(model, "unknown")


@pytest.mark.parametrize(
    "layer",
    [
        layers.Reshape((-1, 7), name="last"),
        layers.ReLU(negative_slope=0.1, name="last"),
        layers.Conv2D(7, 1, activation="elu", name="last"),
        layers.LayerNormalization(axis=(1, 2, 3), name="last"),
        layers.Normalization(mean=0.0, variance=1.0, invert=True, name="last"),
    ],
)
def test_a_known_layer_with_an_unknown_setting_cannot_be_converted(layer: Any) -> None:
    def add(maps: Any) -> Any:
        return layers.Reshape((SIDE - 2, SIDE - 2, -1), name="maps")(layer(maps))

    with pytest.raises(CannotConvert, match=f"layer last .{type(layer).__name__}. cannot be"):
        read(synthetic_model(add), "maps")


def test_unknown_layer_and_layer_without_feature_maps_are_usage_errors() -> None:
    model = synthetic_model(layers.GlobalAveragePooling2D(name="flat"))
    with pytest.raises(UsageError, match="has no layer 'block9'"):
        read(model, "block9")
    with pytest.raises(UsageError, match="gives no feature maps"):
        read(model, "flat")


ONES = np.ones(3, np.float32)
KERNEL = np.ones((3, 3, 3, 3), np.float32)


def affine(name: str, source: str, scale: float = 2.0, offset: float = 1.0) -> Affine:
    return Affine(name=name, inputs=(source,), scale=ONES * scale, offset=ONES * offset)


def conv(name: str, source: str) -> Conv:
    return Conv(name=name, inputs=(source,), weight=KERNEL, bias=ONES)


def names(operations: tuple[Operation, ...]) -> list[str]:
    return [operation.name for operation in operations]


def test_affine_operations_are_folded_into_the_convolution_before_them() -> None:
    operations = [
        conv("convolved", IMAGE),
        affine("scaled", "convolved"),
        affine("same", "scaled", 1.0, 0.0),
        affine("last", "same", 3.0, 5.0),
    ]
    (folded,) = simplify(operations, ["last"])
    assert isinstance(folded, Conv)
    assert folded.name == "last"
    np.testing.assert_array_equal(folded.weight, KERNEL * 6)
    np.testing.assert_array_equal(folded.bias, ONES * ((1 * 2 + 1) * 3 + 5))


def test_a_convolution_that_is_an_output_or_has_another_reader_stays() -> None:
    operations = [conv("convolved", IMAGE), affine("last", "convolved")]
    assert names(simplify(operations, ["convolved", "last"])) == ["convolved", "last"]
    operations.append(Function(name="other", inputs=("convolved",), function="relu"))
    assert names(simplify(operations, ["last", "other"])) == ["convolved", "last", "other"]


@pytest.mark.parametrize(
    ("before", "function", "expected"),
    [
        ("relu", "max", ["before", "pool"]),
        ("tanh", "max", ["before", "padded", "pool"]),
        ("relu", "avg", ["before", "padded", "pool"]),
    ],
)
def test_padding_is_merged_into_a_pooling_only_where_zeros_change_nothing(
    before: str, function: str, expected: list[str]
) -> None:
    operations = [
        Function(name="before", inputs=(IMAGE,), function=before),
        Pad(name="padded", inputs=("before",), pads=(1, 1, 1, 1)),
        Pool(name="pool", inputs=("padded",), function=function, size=(3, 3), stride=(2, 2)),
    ]
    assert names(simplify(operations, ["pool"])) == expected


def test_padding_is_merged_into_each_convolution_that_reads_it() -> None:
    operations = [
        Pad(name="padded", inputs=(IMAGE,), pads=(0, 1, 2, 3)),
        conv("one", "padded"),
        conv("other", "padded"),
    ]
    merged = simplify(operations, ["one", "other"])
    assert names(merged) == ["one", "other"]
    assert [operation.pads for operation in merged if isinstance(operation, Conv)] == [
        (0, 1, 2, 3),
        (0, 1, 2, 3),
    ]
