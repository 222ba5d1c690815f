"""Write a network for ncnn: `model.param`, the layers as text, and `model.bin`, the weights.

The format: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure; the numbered
parameters of layers: docs/developer-guide/operators.md there. pnnx, ncnn's converter, is not used:
it drops explicit padding silently.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.engines import network as ops

PARAM_FILE, WEIGHTS_FILE = "model.param", "model.bin"
PIXELS = "pixels"  # name of the image in ncnn

_FORMAT = 7767517  # the first line of every .param file
_RAW = np.zeros(1, np.float32)  # precedes the weights of a convolution: not compressed
_AUTOMATIC = -233  # a size that ncnn computes
_ARRAY = -23300  # array parameter n has the number _ARRAY - n
_RESULT_SHAPES, _WITHOUT = 30, 31  # parameters that every layer has
_WINOGRAD = 1 << 6  # a bit of _WITHOUT
_SHALLOW = 4  # input channels up to which Winograd's transforms cost more than they save

Parameters = Mapping[int, int | float | Sequence[int | float]]

_HARD: Parameters = {0: 1 / 6, 1: 0.5}  # the default slope of ncnn is 1/5
_FUNCTIONS: Mapping[str, tuple[str, Parameters]] = {
    "relu": ("ReLU", {}),
    "relu6": ("Clip", {0: 0.0, 1: 6.0}),
    "sigmoid": ("Sigmoid", {}),
    "swish": ("Swish", {}),
    "hard_sigmoid": ("HardSigmoid", _HARD),
    "hard_swish": ("HardSwish", _HARD),
    "tanh": ("TanH", {}),
    "gelu": ("GELU", {}),
    "add": ("BinaryOp", {0: 0}),
    "multiply": ("BinaryOp", {0: 2}),
    "concat": ("Concat", {0: 0}),
}
_FUSED: Mapping[str, Parameters] = {  # activations that a convolution can apply
    "relu": {9: 1},
    "relu6": {9: 3, 10: (0.0, 6.0)},
    "sigmoid": {9: 4},
    "hard_swish": {9: 6, 10: (1 / 6, 0.5)},
}


class _Layer(NamedTuple):
    """A layer of ncnn, with its weights in the order in which ncnn reads them."""

    kind: str
    inputs: tuple[str, ...]
    result: str
    parameters: Parameters  # by number
    weights: tuple[ops.Array, ...] = ()


def write_ncnn(network: ops.Network, folder: Path) -> dict[str, str]:
    """Write a network whose input is the blob `PIXELS`, float32 (3, S, S) 0..255.

    Returns the blob of each output, (C, H, W). Raises CannotConvert for an unsupported operation.
    """
    layers = list(_convert_network(network))
    shapes = {operation.name: operation.shape for operation in network.operations}
    shapes[ops.IMAGE] = (3, network.image_size, network.image_size)
    readers = Counter(value for layer in layers for value in layer.inputs)
    readers.update(list(network.outputs))
    blobs: dict[str, list[str]] = {}  # value -> one blob per reader
    lines: list[str] = []
    with (folder / WEIGHTS_FILE).open("wb") as file:
        for number, layer in enumerate(layers):
            inputs = [blobs[value].pop() for value in layer.inputs]
            blob = PIXELS if layer.kind == "Input" else f"{number}"
            shape = shapes.get(layer.result, (0, 0, 0))  # zeros if unknown
            lines.append(_format_layer(layer.kind, inputs, [blob], layer.parameters, shape))
            blobs[layer.result] = [blob]
            if (count := readers[layer.result]) > 1:  # in ncnn a blob has one reader
                blobs[layer.result] = [f"{blob}.{copy}" for copy in range(count)]
                lines.append(_format_layer("Split", [blob], blobs[layer.result], {}, shape))
            for array in layer.weights:
                file.write(np.ascontiguousarray(array, "<f4").data)
    blob_count = sum(int(line.split()[3]) for line in lines)  # each is the output of one layer
    text = "\n".join([f"{_FORMAT}", f"{len(lines)} {blob_count}", *lines, ""])
    (folder / PARAM_FILE).write_text(text, encoding="ascii")
    return {layer: blobs[layer].pop() for layer in network.outputs}


def _format_layer(
    kind: str, inputs: list[str], outputs: list[str], parameters: Parameters, shape: ops.Shape
) -> str:
    """Return the text of a layer, which has the name of its first output."""
    # Shapes let convolutions use the fastest algorithm: VGG16 gains 10 %, ResNet50 20 %.
    if any(shape):
        channels, height, width = shape
        shapes = (len(shape), width, height, channels) * len(outputs)
        parameters = {**parameters, _RESULT_SHAPES: shapes}
    numbered = [
        f"{_ARRAY - number}={len(value)},{','.join(map(_format_number, value))}"
        if isinstance(value, Sequence)
        else f"{number}={_format_number(value)}"
        for number, value in parameters.items()
    ]
    counts = [str(len(inputs)), str(len(outputs))]
    return " ".join([kind, outputs[0], *counts, *inputs, *outputs, *numbered])


def _format_number(value: int | float) -> str:
    """Format a number: ncnn reads at most 15 characters of it, as float32."""
    return f"{value:.8e}" if isinstance(value, float) else str(value)


def _convert_network(network: ops.Network) -> Iterator[_Layer]:
    """Yield ncnn's layers; a convolution applies the activation that is its only reader."""
    side, preprocessing = network.image_size, network.preprocessing
    scale, offset = np.array([preprocessing.scale, preprocessing.offset], np.float32)
    yield _Layer("Input", (), PIXELS, {0: side, 1: side, 2: 3})
    yield from _convert_affine(
        ops.Affine(name=ops.IMAGE, inputs=(PIXELS,), scale=scale, offset=offset)
    )
    activations = _find_fused_activations(network)
    for operation in network.operations:
        if isinstance(operation, ops.Conv):
            yield _convert_conv(operation, activations.get(operation.name))
        elif operation not in activations.values():
            yield from _convert_operation(operation)


def _find_fused_activations(network: ops.Network) -> dict[str, ops.Function]:
    """Map each convolution to the activation that is its only reader."""
    readers = Counter(value for operation in network.operations for value in operation.inputs)
    readers.update(list(network.outputs))
    convolutions = {conv.name for conv in network.operations if isinstance(conv, ops.Conv)}
    return {
        operation.inputs[0]: operation
        for operation in network.operations
        if isinstance(operation, ops.Function) and operation.function in _FUSED
        if operation.inputs[0] in convolutions and readers[operation.inputs[0]] == 1
    }


def _convert_conv(conv: ops.Conv, activation: ops.Function | None) -> _Layer:
    count, depth, height, width = conv.weight.shape
    top, left, bottom, right = conv.pads
    parameters: Parameters = {
        0: count, 1: width, 11: height,
        2: conv.dilation[1], 12: conv.dilation[0], 3: conv.stride[1], 13: conv.stride[0],
        4: left, 14: top, 15: right, 16: bottom,
        5: 1, 6: conv.weight.size,  # 5: there is a bias
        **({7: conv.groups} if conv.groups > 1 else {}),
        **({_WITHOUT: _WINOGRAD} if conv.groups == 1 and depth <= _SHALLOW else {}),
        **(_FUSED[activation.function] if activation else {}),
    }  # fmt: skip
    kind = "ConvolutionDepthWise" if conv.groups > 1 else "Convolution"
    result = activation.name if activation else conv.name
    return _Layer(kind, conv.inputs, result, parameters, (_RAW, conv.weight, conv.bias))


def _convert_operation(operation: ops.Operation) -> Iterator[_Layer]:
    """Yield the layers of an operation that is not a convolution."""
    inputs, name = operation.inputs, operation.name
    parameters: Parameters
    match operation:
        case ops.Affine():
            yield from _convert_affine(operation)
        case ops.LayerNorm(scale=scale, offset=offset, epsilon=epsilon):
            # ncnn normalises along the last axis
            yield _Layer("Permute", inputs, f"{name}/last", {0: 3})  # (C, H, W) -> (H, W, C)
            last, scaled, parameters = f"{name}/last", f"{name}/scaled", {0: scale.size, 1: epsilon}
            yield _Layer("LayerNorm", (last,), scaled, parameters, (scale, offset))
            yield _Layer("Permute", (scaled,), name, {0: 4})  # (H, W, C) -> (C, H, W)
        case ops.Pool(function=function, size=size, stride=stride, pads=(top, left, bottom, right)):
            parameters = {
                0: ("max", "avg").index(function),
                1: size[1], 11: size[0], 2: stride[1], 12: stride[0],
                3: left, 13: top, 14: right, 15: bottom, 5: 1,  # 5: no padding besides this
            }  # fmt: skip
            yield _Layer("Pooling", inputs, name, parameters)
        case ops.Function(function="global_average"):
            yield _Layer("Pooling", inputs, f"{name}/flat", {0: 1, 4: 1})  # (C,)
            yield _Layer("Reshape", (f"{name}/flat",), name, {0: 1, 1: 1, 2: -1})  # (C, 1, 1)
        case ops.Function(function=function):
            if function not in _FUNCTIONS:
                raise ops.CannotConvert(f"{name}: ncnn has no activation {function}")
            yield _Layer(_FUNCTIONS[function][0], inputs, name, _FUNCTIONS[function][1])
        case ops.Pad(pads=(top, left, bottom, right)):
            yield _Layer("Padding", inputs, name, {0: top, 1: bottom, 2: left, 3: right})
        case ops.Crop(sides=(top, left, bottom, right)):
            sizes = dict.fromkeys((3, 4, 5), _AUTOMATIC)
            parameters = {0: left, 1: top, **sizes, 6: right, 7: bottom}
            yield _Layer("Crop", inputs, name, parameters)
        case _:
            raise ops.CannotConvert(f"{name}: ncnn has no {type(operation).__name__}")


def _convert_affine(affine: ops.Affine) -> Iterator[_Layer]:
    parameters = {0: affine.scale.size, 1: 1}
    yield _Layer("Scale", affine.inputs, affine.name, parameters, (affine.scale, affine.offset))
