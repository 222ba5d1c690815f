"""From feature maps to what a layer key asks for."""

import numpy as np
import numpy.typing as npt

from pipeline.spec import split_layer_key


def pooled(maps: npt.NDArray[np.float32], pooling: str) -> npt.NDArray[np.float32]:
    """(B, H, W, C) -> itself (``none``), or its average or maximum over H and W, (B, C)."""
    if pooling == "none":
        return maps
    reduced = maps.mean(axis=(1, 2)) if pooling == "avg" else maps.max(axis=(1, 2))
    return np.asarray(reduced, np.float32)


def pooled_shape(shape: tuple[int, ...], key: str) -> tuple[int, ...]:
    """The shape of a row of a layer key, whose layer's maps are (H, W, C)."""
    return shape if split_layer_key(key)[1] == "none" else shape[-1:]
