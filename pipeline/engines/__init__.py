"""Who computes the features: one protocol, several engines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.bases.registry import PIXELS, Base
from pipeline.bases.weights import WeightsChoice


class Engine(Protocol):
    """Computes features of images.

    Attributes
    ----------
    name : recorded with the cache, e.g. ``tensorflow``.
    version : of the library that computes.
    weights : digest of the weights in use, as `pipeline.bases.weights` defines it.
    row_shapes : layer key -> shape of one row, (H, W, C) or (C,).
    """

    name: str
    version: str
    weights: str
    row_shapes: Mapping[str, tuple[int, ...]]

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """(B, H, W, 3) uint8 RGB -> layer key -> (B, *row shape) float32."""
        ...


def open_engine(
    base: Base,
    *,
    image_size: int,
    preprocessing: str,
    weights: WeightsChoice,
    weights_folder: Path,
    layers: Sequence[str],
    batch_size: int,
) -> Engine:
    """Choose and open the engine for a base; takes seconds where TensorFlow is loaded.

    Parameters
    ----------
    layers : layer keys, see `pipeline.spec.layer_key`.
    batch_size : images per call, at most.

    Raises UsageError for an unknown layer, and whatever `pipeline.bases.build.build_base` raises.
    """
    if base.name == PIXELS:
        from pipeline.engines.pixels import PixelsEngine

        return PixelsEngine(image_size=image_size, layers=layers)
    from pipeline.engines.tensorflow import TensorFlowEngine

    return TensorFlowEngine(
        base,
        image_size=image_size,
        preprocessing=preprocessing,
        weights=weights,
        weights_folder=weights_folder,
        layers=layers,
        batch_size=batch_size,
    )
