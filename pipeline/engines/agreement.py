"""How far features are from those that they should be."""

from typing import Any

import numpy as np
import numpy.typing as npt


def relative_errors(
    expected: npt.NDArray[np.floating[Any]], found: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float64]:
    """‖found - expected‖ / ‖expected‖ of each row, in the L2 norm: two (n, ...) -> (n,).

    Elementwise, errors would be large wherever a feature is nearly 0. Infinite where something is
    not finite, or the shapes differ.
    """
    if expected.shape != found.shape:
        return np.full(len(expected), np.inf)
    wide = expected.reshape(len(expected), -1).astype(np.float64)
    distance = np.linalg.norm(found.reshape(len(found), -1) - wide, axis=1)
    length = np.linalg.norm(wide, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(distance == 0, 0.0, distance / length)
    return np.where(np.isfinite(error), error, np.inf)
