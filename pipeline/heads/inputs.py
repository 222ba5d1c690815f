"""The input of a head: flattened or averaged feature maps."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.heads.config import Input

PIXELS_PER_SIDE = 16  # pixels are averaged to 16 × 16: a crop moves edges by less


def flatten_or_pool(features: npt.NDArray[Any], input: Input) -> npt.NDArray[np.float32]:
    """Flatten or average maps: (B, H, W, C) -> (B, H·W·C) flat or (B, C) pooled."""
    if input == "flat" or features.ndim == 2:
        return features.reshape(len(features), -1)
    means: npt.NDArray[Any] = features.mean(axis=tuple(range(1, features.ndim - 1)))
    return means.astype("float32", copy=False)


def feature_count(shape: Sequence[int], input: Input) -> int:
    """Return the number of columns that `flatten_or_pool` makes of maps of this shape."""
    return math.prod(shape) if input == "flat" else shape[-1]


def shrink_images(images: npt.NDArray[Any], side: int) -> npt.NDArray[np.float32]:
    """Average pixels to a grid: (B, H, W, C) -> (B, h·w·C), h and w at most ``side``."""
    for axis in (1, 2):
        if images.shape[axis] > side:
            edges = np.linspace(0, images.shape[axis], side + 1).round().astype(int)
            sums = np.add.reduceat(images, edges[:-1], axis=axis)
            widths = np.diff(edges).astype(np.float32)
            images = sums / np.expand_dims(widths, tuple({0, 1, 2, 3} - {axis}))
    return images.reshape(len(images), -1)
