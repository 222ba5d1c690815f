"""Confidence intervals, paired tests and standard errors."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution

Correct = npt.NDArray[np.bool_]


def wilson_interval(correct: float, count: int) -> tuple[float, float]:
    """Return the bounds of a proportion's 95 % confidence interval (Wilson 1927).

    Unlike the normal approximation it stays within 0 … 1 and has a width even if all are correct.
    ``correct`` may be fractional, a mean over fits.
    """
    share, z = correct / count, Z_95
    centre = share + z**2 / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mcnemar_exact(first: Correct, second: Correct) -> float:
    """Return the two-sided p-value of two classifiers being equally accurate (McNemar 1947).

    Only images (N,) on which they differ count; under the null hypothesis either one is right with
    probability one half. The p-value is 1 if they never differ.
    """
    from scipy.stats import binomtest  # half a second to import

    differ = np.count_nonzero(first != second)
    return float(binomtest(np.count_nonzero(first & ~second), differ).pvalue) if differ else 1.0


def holm(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return p-values (N,) corrected for their number (Holm 1979); NaNs stay and do not count."""
    values = np.asarray(p_values, np.float64)
    corrected = np.full(len(values), math.nan)
    tests = np.flatnonzero(~np.isnan(values))
    order = tests[np.argsort(values[tests], kind="stable")]
    stepped = values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected


def standard_error(values: npt.NDArray[np.float64]) -> float:
    """Return the standard error of the mean of values (N,); infinite for a single value."""
    from scipy.stats import sem

    return float(sem(values)) if len(values) > 1 else math.inf
