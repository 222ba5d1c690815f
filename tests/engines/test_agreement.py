"""How far features are from those that they should be."""

from typing import Any

import numpy as np
import pytest

from pipeline.engines import relative_errors


@pytest.mark.parametrize(
    ("expected", "found", "errors"),
    [
        ([[3.0, 4.0]], [[3.0, 4.0]], [0.0]),
        ([[3.0, 4.0], [0.0, 5.0]], [[3.0, 4.0], [0.0, 5.5]], [0.0, 0.1]),
        ([[0.0, 0.0]], [[0.0, 0.0]], [0.0]),
        ([[0.0, 0.0]], [[0.0, 1e-9]], [np.inf]),
        ([[3.0, 4.0]], [[np.nan, 4.0]], [np.inf]),
        ([[3.0, 4.0]], [[3.0, 4.0, 0.0]], [np.inf]),
        ([[[3.0], [4.0]]], [[[3.0], [9.0]]], [1.0]),
    ],
)
def test_error_is_of_a_row_in_the_l2_norm(
    expected: list[Any], found: list[Any], errors: list[float]
) -> None:
    measured = relative_errors(np.array(expected, "f4"), np.array(found, "f4"))
    np.testing.assert_allclose(measured, errors, rtol=1e-6)
