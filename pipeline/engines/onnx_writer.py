"""Write a network as an ONNX file: uint8 RGB (B, S, S, 3) in, float32 maps (B, H, W, C) out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.bases.registry import Rescale
from pipeline.engines import network as ops

IMAGES = "images"  # name of the input; outputs have the names of their layers

_OPSET = 20  # the first with Gelu; ONNX Runtime 1.19 supports up to 21
_TO_MAPS, _TO_ROWS = (0, 3, 1, 2), (0, 2, 3, 1)

_FUNCTIONS: Mapping[str, str] = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "hard_swish": "HardSwish",
    "tanh": "Tanh",
    "gelu": "Gelu",
    "global_average": "GlobalAveragePool",
    "add": "Add",
    "multiply": "Mul",
}


def write_onnx(network: ops.Network, path: Path) -> None:
    """Write a network as an ONNX file.

    A protobuf reader merges messages that follow each other in a file: each weight is written as a
    message, without a second copy of all weights in memory.
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
        shape = ["batch", network.image_size, network.image_size, 3]
        images = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, shape)
        model.graph.input.append(images)
        model.graph.output.extend(
            helper.make_tensor_value_info(layer, TensorProto.FLOAT, ["batch", *shape])
            for layer, shape in network.outputs.items()
        )
        file.write(model.SerializeToString())


def _maps(name: str) -> str:
    """Return the name of the result of an operation, (B, C, H, W); rows have the layer's name."""
    return f"{name}/maps"


class _Graph:
    """Collect nodes, and write constants to the file immediately."""

    def __init__(self, proto: onnx.GraphProto, file: BinaryIO) -> None:
        self._proto = proto
        self._file = file

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        self._proto.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        """Add a constant; returns its name."""
        part = onnx.ModelProto()
        part.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        self._file.write(part.SerializeToString())
        return name

    def add_preprocessing(self, rescale: Rescale) -> None:
        """Preprocess as `pipeline.bases.build.preprocess`; bytes transpose faster than floats."""
        value = self.node("Transpose", [IMAGES], "preprocessing/bytes", perm=_TO_MAPS)
        if rescale.bgr:
            order = self.constant("preprocessing/order", np.array([2, 1, 0]))
            value = self.node("Gather", [value, order], "preprocessing/bgr", axis=1)
        value = self.node("Cast", [value], "preprocessing/float", to=TensorProto.FLOAT)
        for kind, numbers in (("Mul", rescale.scale), ("Add", rescale.offset)):
            factors = np.array(numbers, np.float32).reshape(3, 1, 1)
            constant = self.constant(f"preprocessing/{kind}/numbers", factors)
            value = self.node(kind, [value, constant], f"preprocessing/{kind}")
        self.node("Identity", [value], _maps(ops.IMAGE))

    def add(self, operation: ops.Operation) -> None:
        """Add the nodes of an operation; the last one computes its maps."""
        inputs, name = [_maps(source) for source in operation.inputs], operation.name
        target = _maps(name)
        match operation:
            case ops.Conv():
                weight = self.constant(f"{name}/weight", operation.weight)
                bias = self.constant(f"{name}/bias", operation.bias)
                attributes = {"kernel_shape": operation.weight.shape[2:], "group": operation.groups}
                attributes |= {"strides": operation.stride, "dilations": operation.dilation}
                inputs += [weight, bias]
                self.node("Conv", inputs, target, pads=operation.pads, **attributes)
            case ops.Affine(scale=scale, offset=offset):
                # one node instead of Mul and Add; ONNX Runtime's blocked layout supports it
                numbers = {"scale": scale, "offset": offset}
                numbers |= {"mean": np.zeros_like(scale), "variance": np.ones_like(scale)}
                inputs += [self.constant(f"{name}/{key}", array) for key, array in numbers.items()]
                self.node("BatchNormalization", inputs, target, epsilon=0.0)
            case ops.LayerNorm():
                rows = self.node("Transpose", inputs, f"{name}/in", perm=_TO_ROWS)
                factors = self.constant(f"{name}/scale", operation.scale)
                inputs = [rows, factors, self.constant(f"{name}/offset", operation.offset)]
                epsilon, out = operation.epsilon, f"{name}/out"
                normed = self.node("LayerNormalization", inputs, out, epsilon=epsilon)
                self.node("Transpose", [normed], target, perm=_TO_MAPS)
            case ops.Function(function="relu6"):
                low = self.constant(f"{name}/low", np.float32(0))
                high = self.constant(f"{name}/high", np.float32(6))
                self.node("Clip", [*inputs, low, high], target)
            case ops.Function(function="swish"):
                gate = self.node("Sigmoid", inputs, f"{name}/sigmoid")
                self.node("Mul", [*inputs, gate], target)
            case ops.Function(function="hard_sigmoid"):
                self.node("HardSigmoid", inputs, target, alpha=1 / 6, beta=0.5)
            case ops.Function(function="concat"):
                self.node("Concat", inputs, target, axis=1)
            case ops.Function(function=function):
                self.node(_FUNCTIONS[function], inputs, target)
            case ops.Pool(function=function, size=size, stride=stride, pads=pads):
                kind = {"max": "MaxPool", "avg": "AveragePool"}[function]
                self.node(kind, inputs, target, kernel_shape=size, strides=stride, pads=pads)
            case ops.Pad(pads=(top, left, bottom, right)):
                sides = np.array([0, 0, top, left, 0, 0, bottom, right])
                self.node("Pad", [*inputs, self.constant(f"{name}/pads", sides)], target)
            case ops.Crop(sides=(top, left, bottom, right)):
                end = np.iinfo(np.int64).max
                numbers = {
                    "starts": np.array([top, left]),
                    "ends": np.array([-bottom or end, -right or end]),
                    "axes": np.array([2, 3]),
                }
                inputs += [self.constant(f"{name}/{key}", array) for key, array in numbers.items()]
                self.node("Slice", inputs, target)
