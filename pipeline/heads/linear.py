"""Linear heads: logistic regression, support vector machine, ridge.

They learn on scaled features in a basis of the training rows (see `TrainingSet.basis`); the fitted
weights are folded back, so that predicting is one product with the features as cached.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC

from pipeline.heads.head import Candidate, FitOptions, Floats, HeadSpec, Input
from pipeline.heads.training import LabelledRows, TrainingSet

ROWS_PER_BLOCK = 4096  # predicting upcasts a block to float64: 256 MiB at 8,192 features


@dataclass(frozen=True)
class LinearClassifier:
    """Decision values ``features @ weights.T + intercepts``.

    weights (K, D) and intercepts (K,) float64; of two classes, one row decides: (1, D) and (1,).
    """

    weights: npt.NDArray[np.float64]
    intercepts: npt.NDArray[np.float64]
    has_probabilities: bool

    @classmethod
    def fold(
        cls,
        train: TrainingSet,
        *,
        weights: npt.NDArray[np.float64],
        intercepts: npt.NDArray[np.float64],
        has_probabilities: bool,
    ) -> Self:
        """Weights for ``train.coordinates`` as weights for the features themselves."""
        if train.basis is not None:
            weights = weights @ train.basis.T
        weights = weights / train.scaler.scale
        intercepts = intercepts - weights @ train.scaler.mean
        return cls(weights, intercepts, has_probabilities)

    @property
    def parameters(self) -> int:
        return self.weights.size + self.intercepts.size

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        decisions = np.concatenate(
            [
                features[start : start + ROWS_PER_BLOCK] @ self.weights.T + self.intercepts
                for start in range(0, len(features), ROWS_PER_BLOCK)
            ]
        )
        if decisions.shape[1] == 1:
            both = np.hstack([-decisions, decisions])
            return np.asarray(expit(both) if self.has_probabilities else both)
        return np.asarray(softmax(decisions, axis=1) if self.has_probabilities else decisions)


class LinearHead:
    """What linear heads share; a subclass yields its fitted estimators."""

    name: str
    has_probabilities: bool
    default_input: Input = "pooled"

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
            for param, value, estimator in self.path(train.coordinates, train.labels):
                classifier = LinearClassifier.fold(
                    train,
                    weights=np.atleast_2d(estimator.coef_),  # RidgeClassifier: (D,) of two classes
                    intercepts=np.atleast_1d(estimator.intercept_),
                    has_probabilities=self.has_probabilities,
                )
                iterations = getattr(estimator, "n_iter_", None)
                yield Candidate(
                    spec=HeadSpec(self.name, {param: value}),
                    classifier=classifier,
                    converged=iterations is None or np.max(iterations) < estimator.max_iter,
                )

    def path(
        self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> Iterator[tuple[str, float, Any]]:
        """Yield the setting's name, its value and the fitted estimator, strongest penalty first."""
        raise NotImplementedError


class Logistic(LinearHead):
    """L2-regularised logistic regression; each C starts from the weights of the one before."""

    name = "logistic"
    has_probabilities = True
    grid = tuple(10.0**exponent for exponent in range(-2, 5))  # C
    # probabilities within 2e-5 of the exact ones; scikit-learn's own 1e-4 stops at iteration 0
    tolerance = 1e-8

    def path(
        self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> Iterator[tuple[str, float, Any]]:
        estimator = LogisticRegression(warm_start=True, tol=self.tolerance, max_iter=10_000)
        for penalty in self.grid:
            yield "C", penalty, estimator.set_params(C=penalty).fit(rows, labels)


class LinearSvm(LinearHead):
    """Linear support vector machine, squared hinge loss; the primal solver draws nothing."""

    name = "linear_svm"
    has_probabilities = False
    grid = tuple(10.0**exponent for exponent in range(-3, 3))  # C
    tolerance = 1e-6

    def path(
        self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> Iterator[tuple[str, float, Any]]:
        for penalty in self.grid:
            estimator = LinearSVC(C=penalty, dual=False, tol=self.tolerance, max_iter=10_000)
            yield "C", penalty, estimator.fit(rows, labels)


class Ridge(LinearHead):
    """Least squares on labels of -1 and 1 with an L2 penalty."""

    name = "ridge"
    has_probabilities = False
    grid = tuple(10.0**exponent for exponent in range(2, -5, -1))  # alpha

    def path(
        self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> Iterator[tuple[str, float, Any]]:
        for alpha in self.grid:
            yield "alpha", alpha, RidgeClassifier(alpha=alpha).fit(rows, labels)
