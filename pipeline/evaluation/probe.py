"""A quick linear probe of cached features: principal components and logistic regression."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE = 2000  # maximum number of rows that components are fitted on
TOLERANCE = 1e-4  # 1e-3 and 1e-7 rank the same wrong labels of cats and dogs first
MAX_ITERATIONS = 100

Floats = npt.NDArray[np.float32]


def fit_components(features: Floats, max_count: int) -> Any:
    """Fit at most ``max_count`` principal components on a sample of the rows (N, D).

    Returns a pipeline. Its first step multiplies by the power of two that brings the largest value
    of the sample to 0.5 … 1: the products of the randomized SVD neither overflow nor underflow, and
    the components of features of any scale are the same, bit by bit.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    if len(features) > SAMPLE:
        chosen = np.random.default_rng(0).choice(len(features), SAMPLE, replace=False)
        features = features[np.sort(chosen)]
    _, exponent = np.frexp(np.abs(features).max(initial=0))
    scale = FunctionTransformer(partial(_times_power_of_two, exponent=-exponent))
    count = min(max_count, *features.shape)
    pca = PCA(count, svd_solver="randomized", iterated_power=2, random_state=0)
    with np.errstate(invalid="ignore"):  # 0 / 0: the share of constant features in the variance
        return make_pipeline(scale, pca).fit(features)


def _times_power_of_two(features: Floats, exponent: int) -> Floats:
    return np.asarray(np.ldexp(features, exponent))


def fit_probe(features: Floats, labels: npt.NDArray[np.int64], C: float) -> Any:
    """Fit logistic regression with inverse penalty ``C`` on rows (N, D)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from pipeline.heads.scaler import CommonScaler

    model = LogisticRegression(C=C, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum suffices
        return make_pipeline(CommonScaler(), model).fit(features, labels)
