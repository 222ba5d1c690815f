"""ncnn computes each operation as plain NumPy in double precision does."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("ncnn")

from pipeline.bases.registry import PREPROCESSING, Rescale
from pipeline.engines.ncnn import NcnnEngine, convert
from pipeline.engines.network import (
    IMAGE,
    Affine,
    CannotConvert,
    Conv,
    Crop,
    Function,
    LayerNorm,
    Network,
    Operation,
    Pad,
    Pool,
)
from pipeline.errors import BadDataError

SIDE = 19  # odd, not a multiple of any stride
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3)).astype(np.uint8)
TOLERANCE = 1e-5  # relative, L2 norm of a row

Maps = npt.NDArray[np.float64]  # (B, C, H, W)


def random_array(*shape: int, seed: int = 1) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = np.random.default_rng(seed).normal(size=shape)
    return values.astype(np.float32)


def conv(name: str, source: str, channels: int, count: int, size: int = 1, **options: Any) -> Conv:
    """A convolution with synthetic weights that keeps values near 1."""
    groups = options.get("groups", 1)
    weight = random_array(count, channels // groups, size, size, seed=len(name)) / size
    weight /= np.sqrt(channels // groups)
    return Conv(name=name, inputs=(source,), weight=weight, bias=random_array(count), **options)


# The reference: one short function per operation.


def padded(maps: Maps, pads: tuple[int, int, int, int], value: float = 0.0) -> Maps:
    top, left, bottom, right = pads
    sides = ((0, 0), (0, 0), (top, bottom), (left, right))
    return np.pad(maps, sides, constant_values=value)


def windows(
    maps: Maps, size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> Maps:
    """(B, C, H, W) -> (B, C, rows, columns, height, width)."""
    span = tuple((s - 1) * d + 1 for s, d in zip(size, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(maps, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def convolved(maps: Maps, conv: Conv) -> Maps:
    count = len(conv.weight) // conv.groups
    patches = windows(padded(maps, conv.pads), conv.weight.shape[2:], conv.stride, conv.dilation)
    groups = np.split(patches, conv.groups, axis=1)
    weights = [conv.weight[i * count : (i + 1) * count] for i in range(conv.groups)]
    result = [
        np.einsum("bchwyx,ocyx->bohw", group, weight.astype(float))
        for group, weight in zip(groups, weights, strict=True)
    ]
    return np.concatenate(result, axis=1) + conv.bias[:, None, None]


def pooled(maps: Maps, pool: Pool) -> Maps:
    padding = -np.inf if pool.function == "max" else np.nan
    patches = windows(padded(maps, pool.pads, padding), pool.size, pool.stride)
    return (np.max if pool.function == "max" else np.nanmean)(patches, axis=(-2, -1))


def normalised(maps: Maps, norm: LayerNorm) -> Maps:
    mean, variance = maps.mean(1, keepdims=True), maps.var(1, keepdims=True)
    normal = (maps - mean) / np.sqrt(variance + norm.epsilon)
    return normal * norm.scale[:, None, None] + norm.offset[:, None, None]


def activated(maps: Maps, function: str) -> Maps:
    from scipy.special import erf

    hard = np.clip(maps / 6 + 0.5, 0, 1)
    values: Mapping[str, Maps] = {
        "relu": np.maximum(maps, 0),
        "relu6": np.clip(maps, 0, 6),
        "sigmoid": 1 / (1 + np.exp(-maps)),
        "swish": maps / (1 + np.exp(-maps)),
        "hard_sigmoid": hard,
        "hard_swish": maps * hard,
        "tanh": np.tanh(maps),
        "gelu": maps * (1 + erf(maps / np.sqrt(2))) / 2,
    }
    return values[function]


def reference(network: Network, images: npt.NDArray[np.uint8]) -> dict[str, Maps]:
    """Layer -> (B, H, W, C)."""
    rescale = network.preprocessing
    pixels = images[..., ::-1] if rescale.bgr else images
    values: dict[str, Maps] = {
        IMAGE: np.moveaxis(pixels * np.array(rescale.scale) + rescale.offset, -1, 1)
    }
    for operation in network.operations:
        maps = [values[name] for name in operation.inputs]
        match operation:
            case Conv():
                result = convolved(maps[0], operation)
            case Affine(scale=scale, offset=offset):
                result = maps[0] * scale[:, None, None] + offset[:, None, None]
            case LayerNorm():
                result = normalised(maps[0], operation)
            case Pool():
                result = pooled(maps[0], operation)
            case Function(function="global_average"):
                result = maps[0].mean((2, 3), keepdims=True)
            case Pad(pads=pads):
                result = padded(maps[0], pads)
            case Crop(sides=(top, left, bottom, right)):
                _, _, height, width = maps[0].shape
                result = maps[0][:, :, top : height - bottom, left : width - right]
            case Function(function="add"):
                result = maps[0] + maps[1]
            case Function(function="multiply"):
                result = maps[0] * maps[1]
            case Function(function="concat"):
                result = np.concatenate(maps, axis=1)
            case Function(function=function):
                result = activated(maps[0], function)
        values[operation.name] = result
    return {layer: np.moveaxis(values[layer], 1, -1) for layer in network.outputs}


def network_of(
    operations: Sequence[Operation],
    outputs: Sequence[str] = (),
    *,
    side: int = SIDE,
    preprocessing: Rescale = PREPROCESSING["tf"],
) -> Network:
    """A network of operations whose output shapes are those of the reference."""
    names = [operation.name for operation in operations]
    network = Network(
        image_size=side,
        preprocessing=preprocessing,
        operations=tuple(operations),
        outputs=dict.fromkeys(names, (0, 0, 0)),
    )
    maps = reference(network, np.zeros((1, side, side, 3), np.uint8))
    return replace(
        network,
        operations=tuple(
            replace(operation, shape=np.moveaxis(maps[operation.name], -1, 1).shape[1:])
            for operation in operations
        ),
        outputs={layer: maps[layer].shape[1:] for layer in outputs or names[-1:]},
    )


def opened(network: Network, layers: Sequence[str] = ()) -> NcnnEngine:
    convert(network, Path())
    return NcnnEngine(Path(), layers=layers or list(network.outputs))


def assert_agrees(network: Network, images: npt.NDArray[np.uint8] = IMAGES) -> None:
    features, expected = opened(network)(images), reference(network, images)
    assert features.keys() == expected.keys()
    assert_shapes_are_written(Path())
    for layer, maps in features.items():
        assert maps.dtype == np.float32
        assert maps.shape == expected[layer].shape
        axes = (1, 2, 3)
        distance = np.sqrt(((maps - expected[layer]) ** 2).sum(axes))
        assert (distance <= TOLERANCE * np.sqrt((expected[layer] ** 2).sum(axes))).all(), layer


def assert_shapes_are_written(folder: Path) -> None:
    """Without them ncnn uses slower algorithms."""
    layers = (folder / "model.param").read_text().splitlines()[2:]
    for output in json.loads((folder / "network.json").read_text())["outputs"].values():
        height, width, channels = output["shape"]
        (made_by,) = (layer for layer in layers if output["blob"] in layer.split()[4:])
        assert made_by.endswith(f",3,{width},{height},{channels}")


# ncnn has special code for channels in multiples of 4, 8 and 16.
CHANNELS = (1, 5, 12, 24, 32)


def test_preprocessing() -> None:
    operation = conv("conv", IMAGE, 3, 4)
    for preprocessing in PREPROCESSING.values():
        assert_agrees(network_of([operation], preprocessing=preprocessing))


@pytest.mark.parametrize(
    "options",
    [
        {"size": 1, "stride": (2, 2)},
        {"size": 3, "pads": (1, 1, 1, 1)},
        {"size": 3, "pads": (0, 0, 1, 1), "stride": (2, 2)},
        {"size": 3, "pads": (2, 0, 1, 3), "dilation": (2, 2)},
        {"size": 5, "pads": (2, 1, 0, 3), "stride": (1, 2)},
        {"size": 7, "pads": (3, 3, 3, 3), "stride": (2, 2)},
    ],
)
def test_convolutions(options: dict[str, Any]) -> None:
    for channels in CHANNELS:
        before = conv("before", IMAGE, 3, channels)
        after = conv("after", "before", channels, channels + 3, **options)
        assert_agrees(network_of([before, after]))


def test_kernels_that_are_not_square() -> None:
    tall = Conv(
        name="tall",
        inputs=(IMAGE,),
        weight=random_array(8, 3, 7, 1),
        bias=random_array(8),
        pads=(3, 0, 3, 0),
    )
    wide = Conv(
        name="wide",
        inputs=("tall",),
        weight=random_array(9, 8, 2, 5),
        bias=random_array(9),
        dilation=(3, 1),
    )
    assert_agrees(network_of([tall, wide]))


@pytest.mark.parametrize(
    "options",
    [
        {"size": 3, "pads": (1, 1, 1, 1)},
        {"size": 3, "pads": (0, 0, 1, 1), "stride": (2, 2)},
        {"size": 5, "pads": (1, 1, 2, 2), "stride": (2, 2)},
        {"size": 7, "pads": (3, 3, 3, 3)},
        {"size": 3, "pads": (2, 2, 2, 2), "dilation": (2, 2)},
    ],
)
def test_depthwise_convolutions(options: dict[str, Any]) -> None:
    for channels in CHANNELS:
        before = conv("before", IMAGE, 3, channels)
        depthwise = conv("depthwise", "before", channels, channels, groups=channels, **options)
        assert_agrees(network_of([before, depthwise]))


def test_convolutions_in_groups() -> None:
    for groups, count in [(4, 24), (12, 24), (2, 6)]:
        before = conv("before", IMAGE, 3, 12)
        grouped = conv("grouped", "before", 12, count, 3, groups=groups, pads=(1, 1, 1, 1))
        assert_agrees(network_of([before, grouped]))


@pytest.mark.parametrize("function", ["max", "avg"])
@pytest.mark.parametrize(
    ("size", "stride", "pads"),
    [
        ((2, 2), (2, 2), (0, 0, 0, 0)),
        ((3, 3), (2, 2), (0, 0, 1, 1)),
        ((3, 3), (1, 1), (1, 1, 1, 1)),
        ((3, 3), (2, 2), (0, 0, 0, 0)),
        ((4, 2), (3, 1), (1, 0, 2, 1)),
    ],
)
def test_pooling_ignores_padding(
    function: str,
    size: tuple[int, int],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> None:
    for channels in CHANNELS:
        negative = Affine(
            name="negative",
            inputs=("before",),
            scale=np.ones(channels, np.float32),
            offset=np.full(channels, -9, np.float32),
        )
        pool = Pool(
            name="pool",
            inputs=("negative",),
            function=function,
            size=size,
            stride=stride,
            pads=pads,
        )
        assert_agrees(network_of([conv("before", IMAGE, 3, channels), negative, pool]))


def test_single_operations() -> None:
    for channels in CHANNELS:
        scale, offset = random_array(channels, seed=2), random_array(channels, seed=3)
        named: dict[str, Any] = {"name": "last", "inputs": ("before",)}
        factors = {"scale": scale, "offset": offset}
        operations: list[Operation] = [
            Affine(**named, **factors),
            LayerNorm(**named, **factors, epsilon=1e-6),
            Function(**named, function="global_average"),
            Pad(**named, pads=(1, 2, 3, 4)),
            Crop(**named, sides=(1, 2, 3, 4)),
            Crop(**named, sides=(1, 1, 0, 0)),
            Function(name="last", inputs=("before", "before"), function="add"),
            Function(name="last", inputs=("before", "before"), function="multiply"),
            Function(name="last", inputs=("before", "before", "before"), function="concat"),
        ]
        for operation in operations:
            assert_agrees(network_of([conv("before", IMAGE, 3, channels, 3), operation]))


@pytest.mark.parametrize(("fused", "channels"), [(True, 5), (True, 24), (False, 5), (False, 24)])
@pytest.mark.parametrize(
    "function",
    ["relu", "relu6", "sigmoid", "swish", "hard_sigmoid", "hard_swish", "tanh", "gelu"],
)
def test_activations(function: str, fused: bool, channels: int) -> None:
    wide = Affine(  # about -8 to 8: every piece of each function is computed
        name="wide",
        inputs=("before",),
        scale=np.full(channels, 4, np.float32),
        offset=np.zeros(channels, np.float32),
    )
    operations = [
        conv("before", IMAGE, 3, channels),
        wide,
        conv("conv", "wide", channels, channels),
        Function(name="act", inputs=("conv" if fused else "wide",), function=function),
        conv("after", "act", channels, channels),
    ]
    assert_agrees(network_of(operations, ["act", "after"]))


@pytest.mark.parametrize("channels", [5, 24])
@pytest.mark.parametrize(
    ("weights_first", "side"), [(True, SIDE), (False, SIDE), (True, 5), (False, 1)]
)
def test_squeeze_and_excite(channels: int, weights_first: bool, side: int) -> None:
    """Maps of 5 channels and width 5 are included: ncnn must not confuse the axes."""
    size = SIDE - side + 1
    operations = [
        Conv(
            name="before",
            inputs=(IMAGE,),
            weight=random_array(channels, 3, size, size) / size,
            bias=random_array(channels),
        ),
        Function(function="global_average", name="squeeze", inputs=("before",)),
        conv("reduce", "squeeze", channels, 3),
        Function(name="reduce_act", inputs=("reduce",), function="swish"),
        conv("expand", "reduce_act", 3, channels),
        Function(name="gate", inputs=("expand",), function="sigmoid"),
        Function(
            function="multiply",
            name="it",
            inputs=("gate", "before") if weights_first else ("before", "gate"),
        ),
    ]
    assert_agrees(network_of(operations, ["squeeze", "gate", "it"]))


def residual_network() -> Network:
    """A padded stem, a bottleneck whose sum several operations read, and branches."""
    operations = [
        Pad(name="stem_pad", inputs=(IMAGE,), pads=(3, 3, 3, 3)),
        conv("stem", "stem_pad", 3, 16, 7, stride=(2, 2)),
        Function(name="stem_relu", inputs=("stem",), function="relu"),
        Pad(name="pool_pad", inputs=("stem_relu",), pads=(1, 1, 1, 1)),
        Pool(name="pool", inputs=("pool_pad",), function="max", size=(3, 3), stride=(2, 2)),
        conv("reduce", "pool", 16, 8),
        Function(name="reduce_relu6", inputs=("reduce",), function="relu6"),
        conv("depthwise", "reduce_relu6", 8, 8, 3, groups=8, pads=(1, 1, 1, 1)),
        conv("expand", "depthwise", 8, 16),
        Function(function="add", name="sum", inputs=("expand", "pool")),
        Function(name="relu", inputs=("sum",), function="relu"),
        conv("left", "relu", 16, 5),
        Pool(
            name="right", inputs=("relu",), function="avg", size=(3, 3), stride=(1, 1),
            pads=(1, 1, 1, 1),
        ),
        Function(function="concat", name="branches", inputs=("left", "right", "sum")),
    ]  # fmt: skip
    return network_of(
        operations, ["branches", "depthwise", "sum", "stem"], preprocessing=PREPROCESSING["caffe"]
    )


def test_outputs_in_the_middle_of_the_graph_and_in_any_order() -> None:
    assert_agrees(residual_network())


def test_pooled_layers() -> None:
    keys = ["sum", "sum:avg", "sum:max", "branches:avg"]
    network = residual_network()
    engine = opened(network, keys)
    features, expected = engine(IMAGES), reference(network, IMAGES)
    assert {key: rows.shape[1:] for key, rows in features.items()} == dict(engine.row_shapes)
    assert list(features) == keys
    np.testing.assert_allclose(features["sum"], expected["sum"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(features["sum:avg"], features["sum"].mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(features["sum:max"], features["sum"].max((1, 2)))
    np.testing.assert_allclose(
        features["branches:avg"], expected["branches"].mean((1, 2)), rtol=1e-3, atol=1e-3
    )


def test_features_do_not_depend_on_the_batch_the_thread_or_the_run() -> None:
    engine = opened(residual_network())
    images = np.random.default_rng(2).integers(0, 256, (24, SIDE, SIDE, 3)).astype(np.uint8)
    alone = [engine(image[np.newaxis]) for image in images]  # results of earlier calls are kept
    for order in (slice(None), slice(None, None, -1)):
        together = engine(images[order])
        for layer, rows in together.items():
            expected = np.concatenate([each[layer] for each in alone])[order]
            np.testing.assert_array_equal(rows, expected)


def test_no_images_give_no_rows() -> None:
    engine = opened(residual_network())
    features = engine(IMAGES[:0])
    assert {key: rows.shape for key, rows in features.items()} == {
        key: (0, *shape) for key, shape in engine.row_shapes.items()
    }


def test_neither_tensorflow_nor_network_clients_are_imported() -> None:
    convert(residual_network(), Path())
    code = (
        "import sys, numpy, pathlib\n"
        "from pipeline.engines.ncnn import NcnnEngine\n"
        "assert 'ncnn' not in sys.modules\n"
        "engine = NcnnEngine(pathlib.Path(), layers=['sum'])\n"
        f"engine(numpy.zeros((1, {SIDE}, {SIDE}, 3), numpy.uint8))\n"
        "print([name for name in ('tensorflow', 'requests', 'ncnn.model_zoo')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_unknown_operations_are_not_converted() -> None:
    unknown = Function(name="selu", inputs=(IMAGE,), function="selu")
    network = Network(
        image_size=SIDE,
        preprocessing=PREPROCESSING["tf"],
        operations=(unknown,),
        outputs={"selu": (SIDE, SIDE, 3)},
    )
    with pytest.raises(CannotConvert, match="selu"):
        convert(network, Path())


def damage(folder: Path, what: str) -> None:
    text, weights = folder / "model.param", folder / "model.bin"
    match what:
        case "no file":
            weights.unlink()
        case "short weights":
            weights.write_bytes(weights.read_bytes()[:-40])
        case "unknown layer":
            text.write_text(text.read_text().replace("ReLU", "Frobnicate"))
        case "short text":
            text.write_text(text.read_text()[: len(text.read_text()) // 2])
        case "other text":
            text.write_text("<html>")
        case "no description":
            (folder / "network.json").unlink()
        case "other description":
            (folder / "network.json").write_text(json.dumps([1, 2]))


@pytest.mark.parametrize(
    "what",
    [
        "no file",
        "short weights",
        "unknown layer",
        "short text",
        "other text",
        "no description",
        "other description",
    ],
)
def test_damaged_conversions_are_one_line(what: str, capfd: pytest.CaptureFixture[str]) -> None:
    network, folder = residual_network(), Path()
    convert(network, folder)
    damage(folder, what)
    with pytest.raises(BadDataError) as caught:
        NcnnEngine(folder, layers=list(network.outputs))
    assert "Delete the folder" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_layer_that_was_not_converted_is_named() -> None:
    convert(residual_network(), Path())
    with pytest.raises(BadDataError, match="block5_pool"):
        NcnnEngine(Path(), layers=["block5_pool"])


def test_maps_of_another_shape_than_converted_are_refused() -> None:
    convert(residual_network(), Path())
    description = json.loads(Path("network.json").read_text())
    description["outputs"]["sum"]["shape"] = [5, 5, 17]
    Path("network.json").write_text(json.dumps(description))
    engine = NcnnEngine(Path(), layers=["sum"])
    with pytest.raises(BadDataError, match="17"):
        engine(IMAGES)
