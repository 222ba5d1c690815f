"""What a frozen base computes, as a short list of operations: one reading of Keras serves every
engine that is not Keras.

Values are maps of one image, channels first, float32: (C, H, W). `pipeline.engines.keras_reader`
makes such a network, `simplified`; the engines' writers take it. Nothing here needs TensorFlow.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.bases.registry import Rescale
from pipeline.errors import PipelineError

Array = npt.NDArray[np.float32]
Pair = tuple[int, int]  # height, width
Sides = tuple[int, int, int, int]  # top, left, bottom, right

IMAGE = "image"  # what the first operation takes: the preprocessed image


class CannotConvert(PipelineError):
    """A base holds what this network, or the engine it is written for, has no operation for."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step; its result goes by its name, a Keras layer's where it is that layer's output."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Conv(Operation):
    """Convolution, depthwise where groups == C; a Dense layer over channels is one of 1 × 1.

    weight (O, I / groups, height, width), bias (O,).
    """

    weight: Array
    bias: Array
    stride: Pair = (1, 1)
    pads: Sides = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class Affine(Operation):
    """x · scale + offset per channel, (C,) each: batch normalisation, rescaling, layer scale."""

    scale: Array
    offset: Array


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Operation):
    """Over the channels at each place, then · scale + offset, (C,) each."""

    scale: Array
    offset: Array
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Function(Operation):
    """What has no weights. Elementwise: relu, relu6, sigmoid, swish, hard_sigmoid (x/6 + 1/2 in
    0..1), hard_swish, tanh, gelu (exact). Of two maps: add, multiply, where one may be (C, 1, 1).
    Of their channels: concat. (C, H, W) -> (C, 1, 1): global_average.
    """

    function: str


@dataclass(frozen=True, kw_only=True)
class Pool(Operation):
    """``max`` or ``avg`` over windows; padding counts in neither."""

    function: str
    size: Pair
    stride: Pair
    pads: Sides = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Pad(Operation):
    """Zeros around."""

    pads: Sides


@dataclass(frozen=True, kw_only=True)
class Crop(Operation):
    """The sides cut off."""

    sides: Sides


@dataclass(frozen=True, kw_only=True)
class Network:
    """A base up to the layers asked for: uint8 RGB images, preprocessed to the value ``image``.

    ``outputs`` are layer names, which are operations', and the shapes (H, W, C) of their maps.
    """

    image_size: int
    preprocessing: Rescale
    operations: tuple[Operation, ...]
    outputs: Mapping[str, tuple[int, int, int]]


_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "hard_sigmoid")


def simplified(operations: Sequence[Operation], outputs: Sequence[str]) -> tuple[Operation, ...]:
    """The same results by fewer operations; those of ``outputs`` keep their names."""
    made = _with_pads_merged(_with_affines_folded(operations, outputs))
    wanted, needed = set(outputs), []
    for operation in reversed(made):
        if operation.name in wanted:
            needed.append(operation)
            wanted |= set(operation.inputs)
    return tuple(reversed(needed))


def _with_affines_folded(
    operations: Sequence[Operation], outputs: Sequence[str]
) -> list[Operation]:
    """Fold an affine operation into the Conv or Affine before it, where only it wants that one."""
    readers = Counter(name for operation in operations for name in operation.inputs)
    made: dict[str, Operation] = {}
    for operation in operations:
        if isinstance(operation, Affine):
            source = operation.inputs[0]
            before = made.get(source)
            if isinstance(before, Conv | Affine) and readers[source] == 1 and source not in outputs:
                del made[source]
                operation = _folded(before, operation)
        made[operation.name] = operation
    return list(made.values())


def _folded(before: Conv | Affine, affine: Affine) -> Operation:
    scale, offset, name = affine.scale, affine.offset, affine.name
    if isinstance(before, Affine):
        offset = before.offset * scale + offset
        return replace(before, name=name, scale=before.scale * scale, offset=offset)
    weight = before.weight * scale[:, None, None, None]
    return replace(before, name=name, weight=weight, bias=before.bias * scale + offset)


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
    """Whether zeros around have no say: nothing is below, and each window holds another value."""
    return (
        pool.function == "max"
        and isinstance(padded, Function)
        and padded.function in _NEVER_NEGATIVE
        and max(pool.pads) < min(pool.size)
    )
