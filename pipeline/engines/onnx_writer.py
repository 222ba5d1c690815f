"""A network as an ONNX file: uint8 RGB (B, S, S, 3) in, float32 maps (B, H, W, C) out."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.bases.registry import Rescale
from pipeline.engines.network import (
    IMAGE,
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Crop,
    GlobalAverage,
    LayerNorm,
    Multiply,
    Network,
    Operation,
    Pad,
    Pool,
)

IMAGES = "images"  # the input's name; outputs go by their layers' names

_OPSET = 20  # the first with Gelu; ONNX Runtime 1.19 knows up to 21
_TO_MAPS, _TO_ROWS = (0, 3, 1, 2), (0, 2, 3, 1)

Nodes = Iterator[onnx.NodeProto]


def write_onnx(network: Network, path: Path) -> None:
    """Write a network.

    Messages that follow each other in a file are one to who reads it, repeated fields appended: so
    each weight is written by itself, and no second copy of all of them is ever in memory.
    """
    opsets = [helper.make_opsetid("", _OPSET)]
    model = onnx.ModelProto(ir_version=helper.find_min_ir_version_for(opsets), opset_import=opsets)
    model.graph.name = "base"
    with path.open("wb") as file:
        graph = _Graph(model.graph, file)
        graph.add_preprocessing(network.preprocessing)
        for operation in network.operations:
            graph.add(operation)
        for layer in network.outputs:
            graph.node("Transpose", [_maps(layer)], layer, perm=_TO_ROWS)
        size = network.image_size
        model.graph.input.append(
            helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["batch", size, size, 3])
        )
        model.graph.output.extend(
            helper.make_tensor_value_info(layer, TensorProto.FLOAT, ["batch", *shape])
            for layer, shape in network.outputs.items()
        )
        file.write(model.SerializeToString())


def _maps(name: str) -> str:
    """What an operation's result is called, (B, C, H, W); a layer's name is its rows'."""
    return f"{name}/maps"


class _Graph:
    """Takes nodes and constants as they come; constants go to the file at once."""

    def __init__(self, proto: onnx.GraphProto, file: BinaryIO) -> None:
        self._proto = proto
        self._file = file

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node; returns its output's name."""
        self._proto.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        """Add a constant; returns its name."""
        part = onnx.ModelProto()
        part.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        self._file.write(part.SerializeToString())
        return name

    def add_preprocessing(self, rescale: Rescale) -> None:
        """As `pipeline.bases.build.preprocess` does it; bytes are cheaper to move than floats."""
        value = self.node("Transpose", [IMAGES], "preprocessing/bytes", perm=_TO_MAPS)
        if rescale.bgr:
            order = self.constant("preprocessing/order", np.array([2, 1, 0]))
            value = self.node("Gather", [value, order], "preprocessing/bgr", axis=1)
        value = self.node("Cast", [value], "preprocessing/float", to=TensorProto.FLOAT)
        for kind, numbers in (("Mul", rescale.scale), ("Add", rescale.offset)):
            factors = np.array(numbers, np.float32).reshape(3, 1, 1)
            constant = self.constant(f"preprocessing/{kind}/numbers", factors)
            value = self.node(kind, [value, constant], f"preprocessing/{kind}")
        self.node("Identity", [value], _maps(IMAGE))

    def add(self, operation: Operation) -> None:
        _WRITERS[type(operation)](self, operation)


def _conv(graph: _Graph, conv: Any) -> None:
    weight = graph.constant(f"{conv.name}/weight", conv.weight)
    bias = graph.constant(f"{conv.name}/bias", conv.bias)
    graph.node(
        "Conv",
        [_maps(conv.inputs[0]), weight, bias],
        _maps(conv.name),
        kernel_shape=conv.weight.shape[2:],
        strides=conv.stride,
        pads=conv.pads,
        dilations=conv.dilation,
        group=conv.groups,
    )


def _affine(graph: _Graph, affine: Any) -> None:
    """One node where Mul and Add would be two; ONNX Runtime's blocked layout takes it, too."""
    numbers = {
        "scale": affine.scale,
        "offset": affine.offset,
        "mean": np.zeros_like(affine.scale),
        "variance": np.ones_like(affine.scale),
    }
    constants = [graph.constant(f"{affine.name}/{key}", value) for key, value in numbers.items()]
    graph.node(
        "BatchNormalization",
        [_maps(affine.inputs[0]), *constants],
        _maps(affine.name),
        epsilon=0.0,
    )


def _layer_norm(graph: _Graph, norm: Any) -> None:
    rows = graph.node("Transpose", [_maps(norm.inputs[0])], f"{norm.name}/in", perm=_TO_ROWS)
    scale = graph.constant(f"{norm.name}/scale", norm.scale)
    offset = graph.constant(f"{norm.name}/offset", norm.offset)
    normed = graph.node(
        "LayerNormalization", [rows, scale, offset], f"{norm.name}/out", epsilon=norm.epsilon
    )
    graph.node("Transpose", [normed], _maps(norm.name), perm=_TO_MAPS)


def _activation(graph: _Graph, activation: Any) -> None:
    source, target = _maps(activation.inputs[0]), _maps(activation.name)
    match activation.function:
        case "relu6":
            low = graph.constant(f"{activation.name}/low", np.float32(0))
            high = graph.constant(f"{activation.name}/high", np.float32(6))
            graph.node("Clip", [source, low, high], target)
        case "swish":
            gate = graph.node("Sigmoid", [source], f"{activation.name}/sigmoid")
            graph.node("Mul", [source, gate], target)
        case "hard_sigmoid":
            graph.node("HardSigmoid", [source], target, alpha=1 / 6, beta=0.5)
        case function:
            graph.node(_FUNCTIONS[function], [source], target)


_FUNCTIONS: Mapping[str, str] = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "hard_swish": "HardSwish",
    "tanh": "Tanh",
    "gelu": "Gelu",
}


def _pool(graph: _Graph, pool: Any) -> None:
    kind = {"max": "MaxPool", "avg": "AveragePool"}[pool.function]
    graph.node(
        kind,
        [_maps(pool.inputs[0])],
        _maps(pool.name),
        kernel_shape=pool.size,
        strides=pool.stride,
        pads=pool.pads,
    )


def _pad(graph: _Graph, pad: Any) -> None:
    top, left, bottom, right = pad.pads
    pads = graph.constant(f"{pad.name}/pads", np.array([0, 0, top, left, 0, 0, bottom, right]))
    graph.node("Pad", [_maps(pad.inputs[0]), pads], _maps(pad.name))


def _crop(graph: _Graph, crop: Any) -> None:
    top, left, bottom, right = crop.sides
    whole = np.iinfo(np.int64).max
    starts = graph.constant(f"{crop.name}/starts", np.array([top, left]))
    ends = graph.constant(f"{crop.name}/ends", np.array([-bottom or whole, -right or whole]))
    axes = graph.constant(f"{crop.name}/axes", np.array([2, 3]))
    graph.node("Slice", [_maps(crop.inputs[0]), starts, ends, axes], _maps(crop.name))


def _plain(kind: str, **attributes: Any) -> Callable[[_Graph, Any], None]:
    def write(graph: _Graph, operation: Operation) -> None:
        inputs = [_maps(name) for name in operation.inputs]
        graph.node(kind, inputs, _maps(operation.name), **attributes)

    return write


_WRITERS: Mapping[type[Operation], Callable[[_Graph, Any], None]] = {
    Activation: _activation,
    Add: _plain("Add"),
    Affine: _affine,
    Concat: _plain("Concat", axis=1),
    Conv: _conv,
    Crop: _crop,
    GlobalAverage: _plain("GlobalAveragePool"),
    LayerNorm: _layer_norm,
    Multiply: _plain("Mul"),
    Pad: _pad,
    Pool: _pool,
}
