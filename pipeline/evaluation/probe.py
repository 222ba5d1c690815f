"""A quick linear probe of cached features: principal components and logistic regression on them."""

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.heads.linear import LinearClassifier
from pipeline.heads.training import TrainingSet

SAMPLE = 2000  # rows that components are taken from at most
# Near the optimum is enough to rank and to compare: held-out probabilities of cats and dogs put the
# same wrong labels first with 1e-3 and with 1e-7.
TOLERANCE = 1e-4
MOST_ITERATIONS = 100

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Components:
    """Principal components of some rows of features.

    Attributes
    ----------
    mean : (D,) of the rows.
    axes : (d, D) orthonormal, the largest deviation first.
    deviations : (d,) standard deviation along each.
    """

    mean: Floats
    axes: Floats
    deviations: Floats

    @classmethod
    def of(cls, features: Floats, most: int) -> Self:
        """The first d components, ``most`` or as many as there can be, of a sample of the rows."""
        from sklearn.utils.extmath import randomized_svd

        if len(features) > SAMPLE:
            chosen = np.random.default_rng(0).choice(len(features), SAMPLE, replace=False)
            features = features[np.sort(chosen)]
        mean = features.mean(axis=0)
        _, singular, axes = randomized_svd(
            features - mean, min(most, *features.shape), n_iter=2, random_state=0
        )
        return cls(mean, axes, singular / np.float32(len(features) ** 0.5))

    def __call__(self, features: Floats) -> Floats:
        """Centred coordinates: (N, D) -> (N, d)."""
        return np.asarray(features @ self.axes.T - self.mean @ self.axes.T, np.float32)


def fit_probe(train: TrainingSet, penalty: float) -> LinearClassifier:
    """Logistic regression at one C, on rows that every class stands in."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, tol=TOLERANCE, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is enough
        model.fit(train.coordinates, train.labels)
    return LinearClassifier.fold(
        train, weights=model.coef_, intercepts=model.intercept_, has_probabilities=True
    )
