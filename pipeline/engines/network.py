"""What a frozen base computes, as a short list of operations: one reading of Keras serves every
engine that is not Keras.

Values are maps of one image, channels first, float32: (C, H, W). `pipeline.engines.keras_reader`
makes such a network, the writers of the engines take it. Nothing here needs TensorFlow.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
    """One step; its result goes by its name, which is a Keras layer's where it is that layer's
    output."""

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
class Activation(Operation):
    """Elementwise: relu, relu6, sigmoid, swish, hard_sigmoid (x/6 + 1/2 in 0..1), hard_swish,
    tanh, gelu (exact)."""

    function: str


@dataclass(frozen=True, kw_only=True)
class Pool(Operation):
    """``max`` or ``avg`` over windows; padding counts in neither."""

    function: str
    size: Pair
    stride: Pair
    pads: Sides = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class GlobalAverage(Operation):
    """(C, H, W) -> (C, 1, 1)."""


@dataclass(frozen=True, kw_only=True)
class Pad(Operation):
    """Zeros around."""

    pads: Sides


@dataclass(frozen=True, kw_only=True)
class Crop(Operation):
    """The sides cut off."""

    sides: Sides


@dataclass(frozen=True, kw_only=True)
class Add(Operation):
    """The sum of two maps."""


@dataclass(frozen=True, kw_only=True)
class Multiply(Operation):
    """The product of two maps; one may be (C, 1, 1)."""


@dataclass(frozen=True, kw_only=True)
class Concat(Operation):
    """Two or more maps, one's channels behind the other's."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A base up to the layers asked for.

    Attributes
    ----------
    image_size : height and width of the uint8 RGB image that goes in.
    preprocessing : makes float32 maps (3, H, W) of it, which the operations know as ``image``.
    operations : each after those whose results it takes.
    outputs : layer name -> shape (H, W, C) of its maps as Keras has them; its operation has the
        same name.
    """

    image_size: int
    preprocessing: Rescale
    operations: tuple[Operation, ...]
    outputs: Mapping[str, tuple[int, int, int]]
