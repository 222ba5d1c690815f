"""The input of a head: flattened or averaged feature maps."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.heads.config import Input


def flatten_or_pool(features: npt.NDArray[Any], input: Input) -> npt.NDArray[np.float32]:
    """Flatten or average maps: (B, H, W, C) -> (B, H·W·C) flat or (B, C) pooled."""
    if input == "flat" or features.ndim == 2:
        return features.reshape(len(features), -1)
    means: npt.NDArray[Any] = features.mean(axis=tuple(range(1, features.ndim - 1)))
    return means.astype("float32", copy=False)


def feature_count(shape: Sequence[int], input: Input) -> int:
    """Return the number of columns that `flatten_or_pool` makes of maps of this shape."""
    return math.prod(shape) if input == "flat" else shape[-1]
