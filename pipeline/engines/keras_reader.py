"""Read a Keras base as a `Network` of operations, for the engines other than TensorFlow.

Keras' ``export(format="onnx")`` traces the TensorFlow graph: it is 20 to 50 times slower, needs one
more package and gives TensorFlow's operations instead of the layers of the base.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.build import feature_maps
from pipeline.bases.config import BaseConfig
from pipeline.engines import network as ops
from pipeline.keras_backend import keras

Inputs = tuple[str, ...]
Numbers = npt.NDArray[Any] | float

_SAME_NAME = ("relu", "relu6", "sigmoid", "swish", "hard_sigmoid", "hard_swish", "tanh", "gelu")
_ACTIVATIONS = {name: name for name in _SAME_NAME} | {"silu": "swish", "hard_silu": "hard_swish"}


def read_network(base_model: Any, config: BaseConfig, layers: Sequence[str]) -> ops.Network:
    """Read a base (`pipeline.bases.build.build_base`) up to layers that output feature maps.

    Raises UsageError for another layer, CannotConvert for an unsupported one.
    """
    outputs = {layer: feature_maps(base_model, config.network, layer) for layer in layers}
    return ops.Network(
        image_size=config.size,
        preprocessing=config.rescale,
        operations=ops.simplify(_read_operations(base_model, outputs), layers),
        outputs={layer: tuple(maps.shape[1:]) for layer, maps in outputs.items()},
    )


def _read_operations(model: Any, outputs: Mapping[str, Any]) -> list[ops.Operation]:
    """Return the operations that the outputs need, each after the operations it reads."""
    needed = {id(tensor) for tensor in outputs.values()}
    layers = []
    for layer in reversed(model.operations):  # Keras stores them in the order of computation
        if id(layer.output) in needed:
            layers.append(layer)
            needed |= {id(tensor) for tensor in _input_tensors(layer)}
    operations: list[ops.Operation] = []
    names: dict[int, str] = {}  # Keras tensor -> the operation that computes it
    for layer in reversed(layers):
        inputs = tuple(names[id(tensor)] for tensor in _input_tensors(layer)) or (ops.IMAGE,)
        converted = list(_convert_layer(layer, layer.name, inputs))
        if not converted and layer.name in outputs:
            converted = list(_add_shapes(layer, [_make_affine(layer, layer.name, inputs)]))
        operations += converted
        names[id(layer.output)] = layer.name if converted else inputs[0]
    return operations


def _input_tensors(layer: Any) -> list[Any]:
    if isinstance(layer, keras.layers.InputLayer):
        return []
    return layer.input if isinstance(layer.input, list) else [layer.input]


def _convert_layer(layer: Any, name: str, inputs: Inputs) -> Iterator[ops.Operation]:
    """Convert a layer, to nothing if it only acts in training; the last operation gets ``name``."""
    return _add_shapes(layer, _convert_by_kind(layer, name, inputs))


def _add_shapes(layer: Any, operations: Iterable[ops.Operation]) -> Iterator[ops.Operation]:
    """Yield the operations of a layer with the shapes of their results, (C, H, W)."""
    _, *sides, channels = layer.output.shape
    height, width = (*sides, 1, 1)[:2]
    for operation in operations:
        count = len(operation.weight) if isinstance(operation, ops.Conv) else channels
        is_inner = any(operation.shape)  # of a layer in a Sequential
        yield operation if is_inner else replace(operation, shape=(count, height, width))


def _convert_by_kind(layer: Any, name: str, inputs: Inputs) -> Iterator[ops.Operation]:
    """Yield the operations of a layer without shapes; raises CannotConvert."""
    match type(layer).__name__:
        case "InputLayer" | "Dropout" | "Identity" | "StochasticDepth":
            pass
        case "Reshape":
            # squeeze-and-excite reshapes averages (C,) to (1, 1, C): both are (C, 1, 1) here
            is_supported = tuple(layer.output.shape[1:]) == (1, 1, layer.input.shape[-1])
            _require(layer, is_supported, "its shape is not (1, 1, C)")
        case "Conv2D":
            weight = _to_array(layer.kernel).transpose(3, 2, 0, 1)
            yield from _add_activation(layer, _make_conv(layer, name, inputs, weight, layer.groups))
        case "DepthwiseConv2D":
            yield from _add_activation(layer, _make_depthwise(layer, layer.kernel, name, inputs))
        case "SeparableConv2D":
            depthwise = _make_depthwise(layer, layer.depthwise_kernel, f"{name}/depthwise", inputs)
            yield replace(depthwise, bias=np.zeros(len(depthwise.weight), np.float32))
            weight = _to_array(layer.pointwise_kernel).transpose(3, 2, 0, 1)
            pointwise = _make_pointwise(layer, name, (depthwise.name,), weight)
            yield from _add_activation(layer, pointwise)
        case "Dense":
            weight = _to_array(layer.kernel).T[:, :, None, None]
            yield from _add_activation(layer, _make_pointwise(layer, name, inputs, weight))
        case "BatchNormalization":
            mean, variance = _to_array(layer.moving_mean), _to_array(layer.moving_variance)
            scale = _norm_scale(layer) / np.sqrt(variance.astype(float) + layer.epsilon)
            yield _make_affine(layer, name, inputs, scale, _norm_offset(layer) - mean * scale)
        case "Normalization":
            _require(layer, not layer.invert, "it is inverted")
            mean, variance = _to_array(layer.mean).ravel(), _to_array(layer.variance).ravel()
            scale = 1 / np.maximum(np.sqrt(variance.astype(float)), keras.config.epsilon())
            yield _make_affine(layer, name, inputs, scale, -mean * scale)
        case "Rescaling":
            yield _make_affine(layer, name, inputs, layer.scale, layer.offset)
        case "LayerScale":
            yield _make_affine(layer, name, inputs, _to_array(layer.gamma))
        case "LayerNormalization":
            axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
            is_supported = axes in ([-1], [3]) and not getattr(layer, "rms_scaling", False)
            _require(layer, is_supported, "it does not normalise over the channels only")
            affine = _make_affine(layer, name, inputs, _norm_scale(layer), _norm_offset(layer))
            yield ops.LayerNorm(**vars(affine), epsilon=layer.epsilon)
        case "Activation":
            if function := _find_activation(layer):
                yield ops.Function(name=name, inputs=inputs, function=function)
        case "ReLU":
            maximum, is_plain = layer.max_value, not layer.negative_slope + layer.threshold
            _require(layer, maximum in (None, 6) and is_plain, "it is not a ReLU or ReLU6")
            function = "relu" if maximum is None else "relu6"
            yield ops.Function(name=name, inputs=inputs, function=function)
        case "MaxPooling2D" | "AveragePooling2D" as kind:
            yield ops.Pool(
                name=name,
                inputs=inputs,
                function=kind[:3].lower().replace("ave", "avg"),
                size=layer.pool_size,
                stride=layer.strides,
                pads=_compute_pads(layer, layer.pool_size),
            )
        case "GlobalAveragePooling2D":
            yield ops.Function(name=name, inputs=inputs, function="global_average")
        case "ZeroPadding2D":
            yield ops.Pad(name=name, inputs=inputs, pads=_to_sides(layer.padding))
        case "Cropping2D":
            yield ops.Crop(name=name, inputs=inputs, sides=_to_sides(layer.cropping))
        case "Add" if len(inputs) == 1:  # x + 3.0
            yield _make_affine(layer, name, inputs, 1.0, _find_constant(layer))
        case "Multiply" if len(inputs) == 1:  # x * 2.0
            yield _make_affine(layer, name, inputs, _find_constant(layer))
        case "Add" | "Multiply" | "CustomScaleLayer" as kind:
            _require(layer, len(inputs) == 2, f"it has {len(inputs)} inputs, not 2")
            if kind == "CustomScaleLayer":  # InceptionResNetV2's: x + scale * y
                scaled = _make_affine(layer, f"{name}/scaled", inputs[1:], layer.scale)
                yield scaled
                inputs = (inputs[0], scaled.name)
            function = "multiply" if kind == "Multiply" else "add"
            yield ops.Function(name=name, inputs=inputs, function=function)
        case "Concatenate":
            reason = f"it concatenates axis {layer.axis}, not the channels"
            _require(layer, layer.axis in (-1, 3), reason)
            yield ops.Function(name=name, inputs=inputs, function="concat")
        case "Sequential":
            operations: list[ops.Operation] = []
            for inner in layer.layers:
                operations += _convert_layer(inner, f"{name}/{inner.name}", inputs)
                inputs = (operations[-1].name,) if operations else inputs
            yield from operations[:-1]
            yield replace(operations[-1], name=name)
        case _:
            _require(layer, False, "it is not supported")


def _require(layer: Any, is_supported: bool, reason: str) -> None:
    """Raise CannotConvert unless a layer's settings are supported."""
    if not is_supported:
        kind = type(layer).__name__
        raise ops.CannotConvert(f"layer {layer.name} ({kind}) cannot be converted: {reason}")


def _make_pointwise(layer: Any, name: str, inputs: Inputs, weight: ops.Array) -> ops.Conv:
    """Return a 1 × 1 convolution with weight (O, I, 1, 1)."""
    bias = _to_array(layer.bias) if layer.use_bias else np.zeros(len(weight), np.float32)
    return ops.Conv(name=name, inputs=inputs, weight=weight, bias=bias)


def _make_conv(layer: Any, name: str, inputs: Inputs, weight: ops.Array, groups: int) -> ops.Conv:
    """Return a convolution with weight (O, I / groups, height, width)."""
    size = (weight.shape[2], weight.shape[3])
    return replace(
        _make_pointwise(layer, name, inputs, weight),
        stride=layer.strides,
        pads=_compute_pads(layer, size, layer.dilation_rate),
        dilation=layer.dilation_rate,
        groups=groups,
    )


def _make_depthwise(layer: Any, kernel: Any, name: str, inputs: Inputs) -> ops.Conv:
    """Return a convolution for a kernel (h, w, C, M): channel c gives channels c · M + 0…M-1."""
    height, width, channels, multiplier = kernel.shape
    shape = (channels * multiplier, 1, height, width)
    weight = _to_array(kernel).transpose(2, 3, 0, 1).reshape(shape)
    return _make_conv(layer, name, inputs, weight, channels)


def _to_array(variable: Any) -> ops.Array:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def _norm_scale(norm: Any) -> Numbers:
    return _to_array(norm.gamma) if norm.scale else 1.0


def _norm_offset(norm: Any) -> Numbers:
    return _to_array(norm.beta) if norm.center else 0.0


def _to_sides(pairs: tuple[ops.Pair, ops.Pair]) -> ops.Sides:
    (top, bottom), (left, right) = pairs
    return (top, left, bottom, right)


def _find_constant(operation: Any) -> float:
    """Return the number in ``x + 3.0``."""
    # Keras stores the arguments of a call that are not tensors nowhere else
    arguments = operation._inbound_nodes[0].arguments.args
    numbers = [float(value) for value in arguments if isinstance(value, int | float)]
    is_supported = len(arguments) == 2 and len(numbers) == 1
    _require(operation, is_supported, "its inputs are not a map and a number")
    return numbers[0]


def _find_activation(layer: Any) -> str | None:
    """Return the activation of a layer; None for a linear one."""
    name = keras.activations.serialize(layer.activation)
    if name == "linear":
        return None
    is_supported = isinstance(name, str) and name in _ACTIVATIONS
    _require(layer, is_supported, f"the activation {name} is not supported")
    return _ACTIVATIONS[name]


def _add_activation(layer: Any, operation: ops.Operation) -> Iterator[ops.Operation]:
    """Yield an operation and the layer's activation after it; the last has the layer's name."""
    if function := _find_activation(layer):
        linear = replace(operation, name=f"{operation.name}/linear")
        yield linear
        yield ops.Function(name=operation.name, inputs=(linear.name,), function=function)
    else:
        yield operation


def _compute_pads(layer: Any, size: ops.Pair, dilation: ops.Pair = (1, 1)) -> ops.Sides:
    """Return TensorFlow's zero padding; an odd zero goes to the bottom or the right."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    zeros = []
    for sides in zip(layer.input.shape[1:3], size, layer.strides, dilation, strict=True):
        length, window, stride, step = sides
        covered = (-(-length // stride) - 1) * stride + (window - 1) * step + 1
        zeros.append(max(covered - length, 0))
    rows, columns = zeros
    return (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


def _make_affine(
    layer: Any, name: str, inputs: Inputs, scale: Numbers = 1.0, offset: Numbers = 0.0
) -> ops.Affine:
    """Return x · scale + offset; numbers apply to every channel of the layer."""
    scale, offset = (
        np.array(np.broadcast_to(values, layer.output.shape[-1]), np.float32)
        for values in (scale, offset)
    )
    return ops.Affine(name=name, inputs=inputs, scale=scale, offset=offset)
