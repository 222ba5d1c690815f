"""No network at all: the image itself as features, the floor that shows what a base buys."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.bases.registry import PIXELS
from pipeline.errors import UsageError
from pipeline.spec import split_layer_key


class PixelsEngine:
    """uint8 RGB 0..255 -> float32 0..1."""

    name = PIXELS
    version = np.__version__
    weights = "none"

    def __init__(self, *, image_size: int, layers: Sequence[str]) -> None:
        for key in layers:
            if split_layer_key(key)[0] != PIXELS:
                raise UsageError(f"the base pixels has one layer, pixels; received --layer {key}")
        shape = (image_size, image_size, 3)
        self.row_shapes: Mapping[str, tuple[int, ...]] = {
            key: shape if split_layer_key(key)[1] == "none" else shape[-1:] for key in layers
        }

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        values = images.astype(np.float32) / np.float32(255)  # (B, H, W, 3)
        return {key: _pooled(values, split_layer_key(key)[1]) for key in self.row_shapes}


def _pooled(values: npt.NDArray[np.float32], pooling: str) -> npt.NDArray[np.float32]:
    """(B, H, W, C) -> itself, or its average or maximum over H and W, (B, C)."""
    if pooling == "none":
        return values
    reduced = values.mean(axis=(1, 2)) if pooling == "avg" else values.max(axis=(1, 2))
    return np.asarray(reduced, np.float32)
