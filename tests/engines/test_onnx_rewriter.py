"""A rewritten .onnx file computes from bytes what the file computes from prepared pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from onnx_files import CHANNELS, SIZE, conv_nodes, token_nodes, write_onnx_file

from pipeline.bases.config import BaseConfig
from pipeline.engines import onnx_rewriter, open_engine, relative_errors
from pipeline.engines.onnx import OnnxEngine
from pipeline.engines.onnx_rewriter import convert

FILE = Path("net.onnx")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
MEAN = np.array([0.485, 0.456, 0.406])  # of ImageNet
DEVIATION = np.array([0.229, 0.224, 0.225])

Array = npt.NDArray[Any]


def plain(tensor: str, values: Array, *, batch: int = 0) -> Array:
    """Run the file with ONNX Runtime on prepared pixels (n, 3, S, S) or (n, S, S, 3)."""
    import onnxruntime

    model = onnx.load(FILE)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if tensor not in [output.name for output in model.graph.output]:
        model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (entry,) = session.get_inputs()
    batch = batch or 1
    full = np.concatenate([values, values])  # whole batches
    starts = range(0, len(values), batch)
    runs = [session.run([tensor], {entry.name: full[s : s + batch]})[0] for s in starts]
    return np.concatenate(runs)[: len(values)]


def prepared(images: Array = IMAGES) -> Array:
    return ((images / 255 - MEAN) / DEVIATION).astype("f4")


def rewritten(config: BaseConfig, layers: Sequence[str] = ()) -> OnnxEngine:
    names = [layer.name for layer in config.file_layers(layers)]
    Path("converted").mkdir()
    convert(config, names, IMAGES[:2], Path("converted"))
    engine: Any = OnnxEngine
    return engine(Path("converted"), layers=names)


def assert_equal(received: Array, expected: Array) -> None:
    assert relative_errors(expected, received).max() < 1e-5


@pytest.mark.parametrize("batch", [0, 3])
def test_every_layer_of_a_channels_first_file_is_computed(batch: int) -> None:
    write_onnx_file(FILE, shape=(batch or "n", 3, SIZE, SIZE))
    config = BaseConfig(base="net.onnx", mean_std="imagenet")
    features = rewritten(config, ["conv", "relu", "pool", "vector"])(IMAGES)
    values = prepared().transpose(0, 3, 1, 2)
    for layer, tensor in (("conv", "/conv"), ("relu", "/relu:0"), ("pool", "/pool")):
        expected = plain(tensor, values, batch=batch).transpose(0, 2, 3, 1)
        assert_equal(features[layer], expected)
    assert_equal(features["vector"], plain("vector", values, batch=batch))


def test_channels_last_file_with_reversed_colours_is_computed() -> None:
    nodes, arrays = conv_nodes()
    nodes.insert(0, helper.make_node("Transpose", ["images"], ["first"], perm=[0, 3, 1, 2]))
    nodes[1].input[0] = "first"
    nodes.insert(4, helper.make_node("Transpose", ["/pool"], ["rows"], perm=[0, 2, 3, 1]))
    write_onnx_file(FILE, nodes, arrays, shape=("n", SIZE, SIZE, 3))
    config = BaseConfig(base="net.onnx", mean_std="103.9,116.8,123.7/1", channels="bgr")
    features = rewritten(config, ["rows"])(IMAGES)
    values = IMAGES[..., ::-1].astype("f4") - np.array([103.9, 116.8, 123.7], "f4")
    assert_equal(features["rows"], plain("rows", values))


@pytest.mark.parametrize("tokens", ["cls", "patches"])
def test_tokens_become_a_vector_or_a_map(tokens: str) -> None:
    write_onnx_file(FILE, *token_nodes(), rows=(17, CHANNELS))
    config = BaseConfig(base="net.onnx", mean_std="imagenet", tokens=tokens)
    (features,) = rewritten(config)(IMAGES).values()
    expected = plain("vector", prepared().transpose(0, 3, 1, 2))
    rows = expected[:, 0] if tokens == "cls" else expected[:, 1:].reshape(-1, 4, 4, CHANNELS)
    assert_equal(features, rows)


def test_file_that_runs_one_image_at_a_time_is_not_batched() -> None:
    """Exporters that trace write the batch of the example into a Reshape."""
    nodes, arrays = conv_nodes()
    arrays.append(onnx.numpy_helper.from_array(np.array([1, CHANNELS]), "one_row"))
    nodes[-1] = helper.make_node("Reshape", ["average", "one_row"], ["vector"])
    write_onnx_file(FILE, nodes, arrays)
    config = BaseConfig(base="net.onnx", mean_std="unit")
    assert config.measured.batch == 1
    features = open_engine(config, ["vector"])(IMAGES)["vector"]
    assert_equal(features, plain("vector", (IMAGES / 255).astype("f4").transpose(0, 3, 1, 2)))


def test_network_that_tf2onnx_converts_is_computed() -> None:
    import tf2onnx

    from pipeline.keras_backend import keras, tf

    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Conv2D(CHANNELS, 3, strides=2, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(6.0),
            keras.layers.DepthwiseConv2D(3, padding="same", activation="swish"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    signature = [tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="image")]
    function = tf.function(lambda image: model(image, training=False), input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=15)
    FILE.write_bytes(proto.SerializeToString())
    config = BaseConfig(base="net.onnx", mean_std="imagenet")
    (layer,) = config.file_layers(())
    (features,) = rewritten(config)(IMAGES).values()
    expected = keras.Model(model.inputs, model.layers[-2].output)([prepared()], training=False)
    assert layer.shape == expected.shape[1:]
    assert_equal(features, np.asarray(expected))


class TorchNets:
    """Networks in the shapes of well-known ones, small, with random weights."""

    @staticmethod
    def build(torch: Any, name: str) -> Any:
        nn = torch.nn

        def block(before: int, after: int, stride: int = 1, groups: int = 1) -> list[Any]:
            conv = nn.Conv2d(before, after, 3, stride, 1, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(after), nn.SiLU()]

        class Branches(nn.Module):  # type: ignore[misc]
            """GoogLeNet's: parallel convolutions and a pooling, concatenated."""

            def __init__(self, channels: int) -> None:
                super().__init__()
                pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(channels, 8, 1))
                wide = nn.Sequential(*block(channels, 8), nn.Conv2d(8, 8, 5, padding=2))
                self.parts = nn.ModuleList([nn.Conv2d(channels, 8, 1), wide, pool])

            def forward(self, maps: Any) -> Any:
                return torch.cat([part(maps) for part in self.parts], 1)

        class Squeeze(nn.Module):  # type: ignore[misc]
            """EfficientNet's: maps times a gate of their averages."""

            def __init__(self, channels: int) -> None:
                super().__init__()
                self.gate = nn.Sequential(
                    nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid()
                )

            def forward(self, maps: Any) -> Any:
                return maps * self.gate(maps)

        class ConvNextBlock(nn.Module):  # type: ignore[misc]
            def __init__(self, channels: int) -> None:
                super().__init__()
                self.depth = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
                self.rows = nn.Sequential(
                    nn.LayerNorm(channels), nn.Linear(channels, 32), nn.GELU(),
                    nn.Linear(32, channels),
                )  # fmt: skip

            def forward(self, maps: Any) -> Any:
                rows = self.rows(self.depth(maps).permute(0, 2, 3, 1))
                return maps + rows.permute(0, 3, 1, 2)

        class Transformer(nn.Module):  # type: ignore[misc]
            """DINOv2's: patches, a class token, positions, attention."""

            def __init__(self) -> None:
                super().__init__()
                self.patches = nn.Conv2d(3, 32, 8, 8)
                self.first = nn.Parameter(torch.randn(1, 1, 32))
                self.positions = nn.Parameter(torch.randn(1, 65, 32))
                layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
                self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32))

            def forward(self, images: Any) -> Any:
                tokens = self.patches(images).flatten(2).transpose(1, 2)
                tokens = torch.cat([self.first.expand(images.shape[0], -1, -1), tokens], 1)
                return self.layers(tokens + self.positions)[:, 0]

        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)]
        layers = {
            "lenet": [
                nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
                nn.AvgPool2d(2), nn.Flatten(), nn.LazyLinear(10),
            ],
            "alexnet": [
                nn.Conv2d(3, 16, 11, 4, 2), nn.ReLU(), nn.LocalResponseNorm(5),
                nn.MaxPool2d(3, 2), nn.Conv2d(16, 32, 5, padding=2, groups=2), nn.ReLU(),
                nn.MaxPool2d(3, 2), nn.Flatten(), nn.Dropout(), nn.LazyLinear(10),
            ],
            "googlenet": [*block(3, 16, 2), Branches(16), Branches(24), *head],
            "efficientnet": [*block(3, 16, 2), *block(16, 16, 1, 16), Squeeze(16), *head],
            "convnext": [nn.Conv2d(3, 16, 4, 4), ConvNextBlock(16), ConvNextBlock(16), *head],
        }  # fmt: skip
        return Transformer() if name == "dinov2" else nn.Sequential(*layers[name])


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(
    "name", ["lenet", "alexnet", "googlenet", "efficientnet", "convnext", "dinov2"]
)
def test_network_that_torch_exports_is_computed(name: str, dynamo: bool, fixed: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(0)
    example = torch.rand(2, 3, 64, 64)
    network = TorchNets.build(torch, name)
    network(example)  # lazy layers; batch norms get statistics
    network.eval()
    free: dict[str, Any] = {}
    if not fixed and dynamo:
        free = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
    elif not fixed:
        free = {"dynamic_axes": {"images": {0: "batch"}}}
    torch.onnx.export(
        network, (example,), FILE, dynamo=dynamo, input_names=["images"], opset_version=18, **free
    )
    config = BaseConfig(base="net.onnx", mean_std="imagenet")
    assert config.measured.batch == (2 if fixed else 0)
    (layer,) = config.file_layers(())
    assert layer.form == ("tokens" if name == "dinov2" else "nchw")
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    (features,) = open_engine(config, [layer.name])(images).values()
    expected = plain(layer.tensor, prepared(images).transpose(0, 3, 1, 2), batch=2 * fixed)
    rows = expected[:, 0] if name == "dinov2" else expected.transpose(0, 2, 3, 1)
    assert_equal(features, rows)


def test_optimisation_that_changes_features_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_onnx_file(FILE)
    monkeypatch.setattr(onnx_rewriter, "TOLERANCE", -1.0)  # no error is small enough
    rewritten(BaseConfig(base="net.onnx", mean_std="half"))
    assert "optimisation changes features" in caplog.text
    trial = json.loads(Path("converted", onnx_rewriter.TRIAL_FILE).read_text())
    assert trial["optimize"] is False
    assert trial["error"]["pool"] < 1e-5
