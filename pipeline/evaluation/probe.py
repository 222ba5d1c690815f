"""A quick linear probe of cached features: principal components and logistic regression on them."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE = 2000  # rows that components are taken from at most
# Near the optimum is enough to rank and to compare: held-out probabilities of cats and dogs put the
# same wrong labels first with 1e-3 and with 1e-7.
TOLERANCE = 1e-4
MOST_ITERATIONS = 100

Floats = npt.NDArray[np.float32]


def fit_components(features: Floats, most: int) -> Any:
    """The first principal components, ``most`` or as many as there can be, of a sample of rows."""
    from sklearn.decomposition import PCA

    if len(features) > SAMPLE:
        chosen = np.random.default_rng(0).choice(len(features), SAMPLE, replace=False)
        features = features[np.sort(chosen)]
    count = min(most, *features.shape)
    return PCA(count, svd_solver="randomized", iterated_power=2, random_state=0).fit(features)


def fit_probe(features: Floats, labels: npt.NDArray[np.int64], C: float) -> Any:
    """Logistic regression at one C, fitted on rows (N, D) of every class."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from pipeline.heads.scaler import CommonScaler

    model = LogisticRegression(C=C, tol=TOLERANCE, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is enough
        return make_pipeline(CommonScaler(), model).fit(features, labels)
