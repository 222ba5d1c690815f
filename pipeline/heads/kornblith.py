"""Logistic regression as Kornblith et al. (2019) compare bases with it."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression


class KornblithRegression(LogisticRegression):  # type: ignore[misc]
    """Logistic regression whose ``l2`` weighs ½‖w‖² beside the *mean* log loss.

    Kornblith et al., "Do better ImageNet models transfer better?" (CVPR 2019), state the penalty
    so. It is scikit-learn's with ``C = 1 / (N · l2)``, on features that are not scaled.

    Parameters
    ----------
    l2 : the penalty.
    max_iter, tol : as in `LogisticRegression`.
    """

    def __init__(self, l2: float = 1.0, *, max_iter: int = 10_000, tol: float = 1e-8) -> None:
        super().__init__(max_iter=max_iter, tol=tol)
        self.l2 = l2

    def fit(self, X: npt.NDArray[Any], y: npt.ArrayLike, sample_weight: Any = None) -> Self:
        self.C = 1 / (len(X) * self.l2)
        super().fit(np.asarray(X, np.float64), y, sample_weight)
        return self
