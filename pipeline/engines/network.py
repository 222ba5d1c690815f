"""`Network`, a frozen base as a short list of operations, which the engines' writers convert.

Values are maps of one image, channels first, float32: (C, H, W). `pipeline.engines.keras_reader`
reads the network from Keras and simplifies it. Nothing here needs TensorFlow.
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
Shape = tuple[int, int, int]  # channels, height, width

IMAGE = "image"  # input of the first operation: the preprocessed image


class CannotConvert(PipelineError):
    """A layer or operation that this network or the engine does not support."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation; its result has its name, that of the Keras layer with the same output."""

    name: str
    inputs: tuple[str, ...]
    shape: Shape = (0, 0, 0)  # of the result; zeros if unknown


@dataclass(frozen=True, kw_only=True)
class Conv(Operation):
    """Convolution, depthwise if groups == C; a Dense layer over channels is a 1 × 1 convolution.

    ``weight`` is (O, I / groups, height, width), ``bias`` (O,).
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
    """Normalisation over the channels at each position, then · scale + offset, (C,) each."""

    scale: Array
    offset: Array
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Function(Operation):
    """Function without weights.

    Elementwise: relu, relu6, sigmoid, swish, hard_sigmoid (x/6 + 1/2 in 0..1), hard_swish, tanh,
    gelu (exact). Of two maps, one of which may be (C, 1, 1): add, multiply. Of the channels of
    several maps: concat. (C, H, W) -> (C, 1, 1): global_average.
    """

    function: str


@dataclass(frozen=True, kw_only=True)
class Pool(Operation):
    """``max`` or ``avg`` over windows; both ignore padding."""

    function: str
    size: Pair
    stride: Pair
    pads: Sides = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Pad(Operation):
    """Padding with zeros."""

    pads: Sides


@dataclass(frozen=True, kw_only=True)
class Crop(Operation):
    """Cropping of the sides."""

    sides: Sides


@dataclass(frozen=True, kw_only=True)
class Network:
    """A base up to the requested layers; its preprocessed uint8 RGB image is the value ``image``.

    ``outputs`` maps layers, which are names of operations, to the shapes (H, W, C) of their maps.
    """

    image_size: int
    preprocessing: Rescale
    operations: tuple[Operation, ...]
    outputs: Mapping[str, tuple[int, int, int]]


_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "hard_sigmoid")


def simplify(operations: Sequence[Operation], outputs: Sequence[str]) -> tuple[Operation, ...]:
    """Return fewer operations with the same ``outputs``, which keep their names."""
    needed, kept = set(outputs), []
    for operation in reversed(_merge_pads(_fold_affines(operations, outputs))):
        if operation.name in needed:
            kept.append(operation)
            needed |= set(operation.inputs)
    return tuple(reversed(kept))


def _fold_affines(operations: Sequence[Operation], outputs: Sequence[str]) -> list[Operation]:
    """Fold each affine operation into the Conv or Affine before it that nothing else reads."""
    readers = Counter(name for operation in operations for name in operation.inputs)
    folded: dict[str, Operation] = {}
    for operation in operations:
        if isinstance(operation, Affine):
            source = operation.inputs[0]
            before = folded.get(source)
            if isinstance(before, Conv | Affine) and readers[source] == 1 and source not in outputs:
                del folded[source]
                operation = _fold(before, operation)
        folded[operation.name] = operation
    return list(folded.values())


def _fold(before: Conv | Affine, affine: Affine) -> Operation:
    """Return one operation that computes ``before``, then ``affine``."""
    scale, offset, name = affine.scale, affine.offset, affine.name
    if isinstance(before, Affine):
        offset = before.offset * scale + offset
        return replace(before, name=name, scale=before.scale * scale, offset=offset)
    weight = before.weight * scale[:, None, None, None]
    return replace(before, name=name, weight=weight, bias=before.bias * scale + offset)


def _merge_pads(operations: Sequence[Operation]) -> list[Operation]:
    """Merge each padding into the operations that read it, if their results stay the same."""
    by_name = {operation.name: operation for operation in operations}
    merged = []
    for operation in operations:
        pad = by_name.get(operation.inputs[0])
        if isinstance(pad, Pad) and isinstance(operation, Conv | Pool):
            top, left, bottom, right = np.add(operation.pads, pad.pads).tolist()
            padded = replace(operation, inputs=pad.inputs, pads=(top, left, bottom, right))
            if isinstance(padded, Conv) or _padding_is_harmless(padded, by_name.get(pad.inputs[0])):
                operation = padded
        merged.append(operation)
    return merged


def _padding_is_harmless(pool: Pool, padded: Operation | None) -> bool:
    """Return whether zero padding keeps all maxima: no negative value, no window of padding."""
    return (
        pool.function == "max"
        and isinstance(padded, Function)
        and padded.function in _NEVER_NEGATIVE
        and max(pool.pads) < min(pool.size)
    )
