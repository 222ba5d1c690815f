"""No network at all: the image itself as features, the floor that shows what a base buys."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.bases.registry import PIXELS
from pipeline.engines.pooling import pooled, pooled_shape
from pipeline.errors import UsageError
from pipeline.spec import split_layer_key


class PixelsEngine:
    """uint8 RGB 0..255 -> float32 0..1."""

    name = PIXELS
    version = np.__version__
    weights = "none"
    calls_at_once = 1

    def __init__(self, *, image_size: int, layers: Sequence[str]) -> None:
        for key in layers:
            if split_layer_key(key)[0] != PIXELS:
                raise UsageError(f"the base pixels has one layer, pixels; received --layer {key}")
        self.error: Mapping[str, float] = {}
        shape = (image_size, image_size, 3)
        self.row_shapes: Mapping[str, tuple[int, ...]] = {
            key: pooled_shape(shape, key) for key in layers
        }

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        values = images.astype(np.float32) / np.float32(255)  # (B, H, W, 3)
        return {key: pooled(values, split_layer_key(key)[1]) for key in self.row_shapes}
