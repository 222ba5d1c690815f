"""A Keras base as a plain network of operations, for the engines that are not Keras.

Keras' own way, ``export(format="onnx")``, traces TensorFlow's graph: 20 to 50 times slower, one
package more, and what comes out is TensorFlow's operations, not the base's layers.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.registry import PREPROCESSING, Base
from pipeline.engines.network import (
    IMAGE,
    Activation,
    Add,
    Affine,
    CannotConvert,
    Concat,
    Conv,
    Crop,
    GlobalAverage,
    LayerNorm,
    Multiply,
    Network,
    Operation,
    Pad,
    Pair,
    Pool,
    Sides,
)
from pipeline.errors import UsageError
from pipeline.keras_backend import keras

Inputs = tuple[str, ...]
Numbers = npt.NDArray[Any] | float

_ACTIVATIONS = {  # Keras' names
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "swish",
    "swish": "swish",
    "hard_sigmoid": "hard_sigmoid",
    "hard_silu": "hard_swish",
    "hard_swish": "hard_swish",
    "tanh": "tanh",
    "gelu": "gelu",
}
_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "hard_sigmoid")


def read_network(
    base_model: Any, base: Base, *, image_size: int, preprocessing: str, layers: Sequence[str]
) -> Network:
    """Read what a base computes up to the layers asked for.

    Parameters
    ----------
    base_model : as `pipeline.bases.build.build_base` returns it.
    layers : names of layers whose outputs are maps (H, W, C), without pooling.

    Raises UsageError for a layer that is not there or gives no maps, CannotConvert for a layer
    that no operation stands for.
    """
    outputs = {layer: _maps(base_model, base, layer) for layer in layers}
    operations = _read(base_model, list(outputs.values()))
    mode = base.preprocessing if preprocessing == "native" else preprocessing
    return Network(
        image_size=image_size,
        preprocessing=PREPROCESSING[mode],
        operations=simplified(operations, layers),
        outputs={layer: tuple(maps.shape[1:]) for layer, maps in outputs.items()},
    )


def simplified(operations: Sequence[Operation], outputs: Sequence[str]) -> tuple[Operation, ...]:
    """The same results by fewer operations; those of ``outputs`` keep their names."""
    operations = _without_identities(operations, outputs)
    operations = _with_affines_folded(operations, outputs)
    return tuple(_needed(_with_pads_merged(operations), outputs))


def _maps(base_model: Any, base: Base, layer: str) -> Any:
    try:
        maps = base_model.get_layer(layer).output
    except ValueError as error:
        raise UsageError(
            f"{base.name} has no layer {layer!r}: --list-layers {base.name} shows them"
        ) from error
    if isinstance(maps, list) or len(maps.shape) != 4:
        raise UsageError(f"layer {layer} of {base.name} gives no feature maps; choose another")
    return maps


def _read(model: Any, outputs: Sequence[Any]) -> list[Operation]:
    """Each Keras operation that the outputs need, behind those that it takes its inputs from."""
    wanted = {id(tensor) for tensor in outputs}
    needed = []
    for layer in reversed(model.operations):  # Keras keeps them in the order they compute in
        if id(layer.output) in wanted:
            needed.append(layer)
            wanted |= {id(tensor) for tensor in _input_tensors(layer)}
    names = {id(layer.output): layer.name for layer in needed}
    return [
        operation
        for layer in reversed(needed)
        for operation in _read_layer(
            layer, layer.name, tuple(names[id(tensor)] for tensor in _input_tensors(layer))
        )
    ]


def _input_tensors(layer: Any) -> list[Any]:
    if isinstance(layer, keras.layers.InputLayer):
        return []
    return layer.input if isinstance(layer.input, list) else [layer.input]


def _read_layer(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    """A layer's operations; the last goes by the name given."""
    if type(layer).__name__ not in _READERS:
        raise _cannot_convert(layer, "no operation stands for it")
    yield from _READERS[type(layer).__name__](layer, name, inputs)


def _cannot_convert(layer: Any, reason: str) -> CannotConvert:
    return CannotConvert(
        f"layer {layer.name} ({type(layer).__name__}) cannot be converted: {reason}"
    )


def _input(_layer: Any, name: str, _inputs: Inputs) -> Iterator[Operation]:
    yield _identity(name, (IMAGE,), channels=3)


def _nothing(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    """A layer that only acts in training."""
    yield _identity(name, inputs, layer.output.shape[-1])


def _reshape(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    """Squeeze-and-excite makes (1, 1, C) of the averages (C,), which are (C, 1, 1) here."""
    if tuple(layer.output.shape[1:]) != (1, 1, layer.input.shape[-1]):
        raise _cannot_convert(layer, "it gives another shape than (1, 1, C)")
    yield _identity(name, inputs, layer.output.shape[-1])


def _conv(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    weight = _array(layer.kernel).transpose(3, 2, 0, 1)
    convolved = Conv(
        name=name,
        inputs=inputs,
        weight=weight,
        bias=_bias(layer, len(weight)),
        stride=layer.strides,
        pads=_pads(layer, layer.kernel_size, layer.dilation_rate),
        dilation=layer.dilation_rate,
        groups=layer.groups,
    )
    yield from _activated(layer, convolved)


def _depthwise_conv(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    convolved = _depthwise(layer, layer.kernel, name, inputs)
    yield from _activated(layer, replace(convolved, bias=_bias(layer, len(convolved.weight))))


def _separable_conv(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    convolved = _depthwise(layer, layer.depthwise_kernel, f"{name}/depthwise", inputs)
    yield convolved
    weight = _array(layer.pointwise_kernel).transpose(3, 2, 0, 1)
    bias = _bias(layer, len(weight))
    yield from _activated(
        layer, Conv(name=name, inputs=(convolved.name,), weight=weight, bias=bias)
    )


def _depthwise(layer: Any, kernel: Any, name: str, inputs: Inputs) -> Conv:
    """Kernel (height, width, C, M); channel c's results stand at c · M to c · M + M - 1."""
    height, width, channels, multiplier = kernel.shape
    weight = _array(kernel).transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return Conv(
        name=name,
        inputs=inputs,
        weight=weight,
        bias=np.zeros(len(weight), np.float32),
        stride=layer.strides,
        pads=_pads(layer, (height, width), layer.dilation_rate),
        dilation=layer.dilation_rate,
        groups=channels,
    )


def _dense(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    weight = _array(layer.kernel).T[:, :, None, None]
    yield from _activated(
        layer, Conv(name=name, inputs=inputs, weight=weight, bias=_bias(layer, len(weight)))
    )


def _batch_norm(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    mean, variance = _array(layer.moving_mean), _array(layer.moving_variance)
    gamma = _array(layer.gamma) if layer.scale else 1.0
    beta = _array(layer.beta) if layer.center else 0.0
    scale = gamma / np.sqrt(variance.astype(float) + layer.epsilon)
    yield _affine(layer, name, inputs, scale, beta - mean * scale)


def _normalization(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    if layer.invert:
        raise _cannot_convert(layer, "it is inverted")
    mean, variance = _array(layer.mean).ravel(), _array(layer.variance).ravel()
    scale = 1 / np.maximum(np.sqrt(variance.astype(float)), keras.config.epsilon())
    yield _affine(layer, name, inputs, scale, -mean * scale)


def _rescaling(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    yield _affine(layer, name, inputs, np.asarray(layer.scale), np.asarray(layer.offset))


def _layer_scale(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    yield _affine(layer, name, inputs, _array(layer.gamma), 0.0)


def _layer_norm(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if axes not in ([-1], [3]) or getattr(layer, "rms_scaling", False):
        raise _cannot_convert(layer, "it does not normalise over the channels alone")
    channels = layer.output.shape[-1]
    yield LayerNorm(
        name=name,
        inputs=inputs,
        scale=_channels(_array(layer.gamma) if layer.scale else 1.0, channels),
        offset=_channels(_array(layer.beta) if layer.center else 0.0, channels),
        epsilon=layer.epsilon,
    )


def _activation(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    function = _function(layer)
    if function is None:
        yield _identity(name, inputs, layer.output.shape[-1])
    else:
        yield Activation(name=name, inputs=inputs, function=function)


def _relu(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    if layer.max_value not in (None, 6) or layer.negative_slope or layer.threshold:
        raise _cannot_convert(layer, "it is neither a ReLU nor a ReLU6")
    function = "relu" if layer.max_value is None else "relu6"
    yield Activation(name=name, inputs=inputs, function=function)


def _pool(function: str) -> Callable[[Any, str, Inputs], Iterator[Operation]]:
    def read(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
        yield Pool(
            name=name,
            inputs=inputs,
            function=function,
            size=layer.pool_size,
            stride=layer.strides,
            pads=_pads(layer, layer.pool_size),
        )

    return read


def _global_average(_layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    yield GlobalAverage(name=name, inputs=inputs)


def _zero_padding(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    (top, bottom), (left, right) = layer.padding
    yield Pad(name=name, inputs=inputs, pads=(top, left, bottom, right))


def _cropping(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    (top, bottom), (left, right) = layer.cropping
    yield Crop(name=name, inputs=inputs, sides=(top, left, bottom, right))


def _add(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    if len(inputs) == 1:
        yield _affine(layer, name, inputs, 1.0, _constant(layer))
    else:
        yield Add(name=name, inputs=_two(layer, inputs))


def _multiply(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    if len(inputs) == 1:
        yield _affine(layer, name, inputs, _constant(layer), 0.0)
    else:
        yield Multiply(name=name, inputs=_two(layer, inputs))


def _custom_scale(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    """InceptionResNetV2's own: the first input plus the second times a number."""
    shortcut, branch = _two(layer, inputs)
    scaled = _affine(layer, f"{name}/scaled", (branch,), layer.scale, 0.0)
    yield scaled
    yield Add(name=name, inputs=(shortcut, scaled.name))


def _concat(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    if layer.axis not in (-1, 3):
        raise _cannot_convert(layer, f"it puts axis {layer.axis} together, not the channels")
    yield Concat(name=name, inputs=inputs)


def _sequential(layer: Any, name: str, inputs: Inputs) -> Iterator[Operation]:
    *earlier, last = layer.layers
    for inner in earlier:
        inner_name = f"{name}/{inner.name}"
        yield from _read_layer(inner, inner_name, inputs)
        inputs = (inner_name,)
    yield from _read_layer(last, name, inputs)


_READERS: Mapping[str, Callable[[Any, str, Inputs], Iterator[Operation]]] = {
    "Activation": _activation,
    "Add": _add,  # the layer, and x + 3.0
    "AveragePooling2D": _pool("avg"),
    "BatchNormalization": _batch_norm,
    "Concatenate": _concat,
    "Conv2D": _conv,
    "Cropping2D": _cropping,
    "CustomScaleLayer": _custom_scale,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise_conv,
    "Dropout": _nothing,
    "GlobalAveragePooling2D": _global_average,
    "InputLayer": _input,
    "LayerNormalization": _layer_norm,
    "LayerScale": _layer_scale,
    "MaxPooling2D": _pool("max"),
    "Multiply": _multiply,  # the layer, and x * 2.0
    "Normalization": _normalization,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable_conv,
    "Sequential": _sequential,
    "StochasticDepth": _nothing,
    "ZeroPadding2D": _zero_padding,
}


def _array(variable: Any) -> npt.NDArray[np.float32]:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def _bias(layer: Any, channels: int) -> npt.NDArray[np.float32]:
    return _array(layer.bias) if layer.use_bias else np.zeros(channels, np.float32)


def _constant(operation: Any) -> float:
    """The number in ``x + 3.0``."""
    # Keras tells what a call was given besides tensors nowhere else.
    given = operation._inbound_nodes[0].arguments.args
    numbers = [value for value in given if isinstance(value, int | float)]
    if len(given) != 2 or len(numbers) != 1:
        raise _cannot_convert(operation, "it takes other inputs than a map and a number")
    return float(numbers[0])


def _two(layer: Any, inputs: Inputs) -> Inputs:
    if len(inputs) != 2:
        raise _cannot_convert(layer, f"it has {len(inputs)} inputs, not 2")
    return inputs


def _function(layer: Any) -> str | None:
    """The activation of a layer; None for the linear one."""
    name = keras.activations.serialize(layer.activation)
    if name == "linear":
        return None
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise _cannot_convert(layer, f"no operation stands for the activation {name}")
    return _ACTIVATIONS[name]


def _activated(layer: Any, operation: Operation) -> Iterator[Operation]:
    """An operation and the activation behind it; the last of both goes by the layer's name."""
    function = _function(layer)
    if function is None:
        yield operation
    else:
        before = replace(operation, name=f"{operation.name}/linear")
        yield before
        yield Activation(name=operation.name, inputs=(before.name,), function=function)


def _pads(layer: Any, size: Pair, dilation: Pair = (1, 1)) -> Sides:
    """The zeros that TensorFlow puts around: what is odd goes below and to the right."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    before, after = [], []
    for sides in zip(layer.input.shape[1:3], size, layer.strides, dilation, strict=True):
        length, window, stride, step = sides
        reach = (-(-length // stride) - 1) * stride + (window - 1) * step + 1
        missing = max(reach - length, 0)
        before.append(missing // 2)
        after.append(missing - missing // 2)
    return (before[0], before[1], after[0], after[1])


def _channels(values: Numbers, channels: int) -> npt.NDArray[np.float32]:
    return np.array(np.broadcast_to(values, channels), np.float32)


def _affine(layer: Any, name: str, inputs: Inputs, scale: Numbers, offset: Numbers) -> Affine:
    channels = layer.output.shape[-1]
    return Affine(
        name=name,
        inputs=inputs,
        scale=_channels(scale, channels),
        offset=_channels(offset, channels),
    )


def _identity(name: str, inputs: Inputs, channels: int) -> Affine:
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return Affine(name=name, inputs=inputs, scale=ones, offset=zeros)


def _without_identities(operations: Sequence[Operation], outputs: Sequence[str]) -> list[Operation]:
    """Who reads what an affine operation leaves as it is reads the original instead."""
    originals: dict[str, str] = {}
    kept = []
    for operation in operations:
        inputs = tuple(originals.get(name, name) for name in operation.inputs)
        if (
            isinstance(operation, Affine)
            and operation.name not in outputs
            and np.all(operation.scale == 1)
            and not np.any(operation.offset)
        ):
            originals[operation.name] = inputs[0]
        else:
            kept.append(replace(operation, inputs=inputs))
    return kept


def _with_affines_folded(
    operations: Sequence[Operation], outputs: Sequence[str]
) -> list[Operation]:
    """An affine operation becomes part of the convolution, or affine operation, that it follows,
    where nobody else wants that one's result."""
    readers = Counter(name for operation in operations for name in operation.inputs)
    made: dict[str, Operation] = {}
    for operation in operations:
        if isinstance(operation, Affine):
            source = operation.inputs[0]
            before = made.get(source)
            if readers[source] == 1 and source not in outputs:
                if isinstance(before, Conv):
                    del made[source]
                    operation = _folded_into_conv(before, operation)
                elif isinstance(before, Affine):
                    del made[source]
                    operation = _folded_into_affine(before, operation)
        made[operation.name] = operation
    return list(made.values())


def _folded_into_conv(conv: Conv, affine: Affine) -> Conv:
    weight = conv.weight * affine.scale[:, None, None, None]
    bias = conv.bias * affine.scale + affine.offset
    return replace(conv, name=affine.name, weight=weight, bias=bias)


def _folded_into_affine(first: Affine, second: Affine) -> Affine:
    scale = first.scale * second.scale
    offset = first.offset * second.scale + second.offset
    return replace(first, name=second.name, scale=scale, offset=offset)


def _with_pads_merged(operations: Sequence[Operation]) -> list[Operation]:
    """Zeros around become part of what reads them, where that makes no difference."""
    made = {operation.name: operation for operation in operations}
    merged = []
    for operation in operations:
        pad = made.get(operation.inputs[0])
        if isinstance(pad, Pad) and isinstance(operation, Conv | Pool):
            top, left, bottom, right = np.add(operation.pads, pad.pads).tolist()
            wider = replace(operation, inputs=pad.inputs, pads=(top, left, bottom, right))
            if isinstance(wider, Conv) or _ignores_zeros(wider, made.get(pad.inputs[0])):
                operation = wider
        merged.append(operation)
    return merged


def _ignores_zeros(pool: Pool, padded: Operation | None) -> bool:
    """Whether zeros around have no say: where nothing is below zero, each window's largest value
    is the same without them, if it holds any other."""
    return (
        pool.function == "max"
        and isinstance(padded, Activation)
        and padded.function in _NEVER_NEGATIVE
        and max(pool.pads) < min(pool.size)
    )


def _needed(operations: Sequence[Operation], outputs: Sequence[str]) -> list[Operation]:
    wanted = set(outputs)
    kept = []
    for operation in reversed(operations):
        if operation.name in wanted:
            kept.append(operation)
            wanted |= set(operation.inputs)
    return kept[::-1]
