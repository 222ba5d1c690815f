"""Predicting in blocks of rows, so that memory does not grow with their number."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.heads.head import Floats

ROWS_PER_BLOCK = 1024  # 64 MiB at 8,192 features in float64


def in_blocks(
    score: Callable[[Floats], npt.NDArray[np.float64]], features: Floats
) -> npt.NDArray[np.float64]:
    """Scores (N, K) of features (N, D), block after block."""
    starts = range(0, max(len(features), 1), ROWS_PER_BLOCK)
    return np.concatenate([score(features[start : start + ROWS_PER_BLOCK]) for start in starts])
