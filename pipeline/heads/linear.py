"""Linear heads: logistic regression, support vector machine, ridge.

They learn on scaled features in a basis of the training rows (see `TrainingSet.basis`); the fitted
weights are folded back, so that predicting is one product with the features as cached.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC

from pipeline.heads.head import Candidate, FitOptions, Floats, HeadSpec, Input
from pipeline.heads.training import LabelledRows, TrainingSet

ROWS_PER_BLOCK = 4096  # predicting upcasts a block to float64: 256 MiB at 8,192 features
MOST_ITERATIONS = 10_000


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


@dataclass(frozen=True)
class LinearFit:
    """One fitted setting, on `TrainingSet.coordinates`; shapes as in `LinearClassifier`."""

    param: str
    value: float
    weights: npt.NDArray[np.float64]
    intercepts: npt.NDArray[np.float64]
    converged: bool = True


class LinearHead:
    """What linear heads share; a subclass yields its fits."""

    name: str
    has_probabilities: bool
    default_input: Input = "pooled"

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        for fit in self.path(train.coordinates, train.labels):
            classifier = LinearClassifier.fold(
                train,
                weights=fit.weights,
                intercepts=fit.intercepts,
                has_probabilities=self.has_probabilities,
            )
            yield Candidate(
                spec=HeadSpec(self.name, {fit.param: fit.value}),
                classifier=classifier,
                converged=fit.converged,
            )

    def path(
        self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> Iterator[LinearFit]:
        """Fit every setting, the strongest penalty first."""
        raise NotImplementedError


class Logistic(LinearHead):
    """L2-regularised logistic regression; each C starts from the weights of the one before."""

    name = "logistic"
    has_probabilities = True
    grid = tuple(10.0**exponent for exponent in range(-2, 4))  # C
    # probabilities within 1e-4 of the exact ones; scikit-learn's own 1e-4 stops at iteration 0
    tolerance = 1e-7

    def path(
        self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> Iterator[LinearFit]:
        model = LogisticRegression(warm_start=True, tol=self.tolerance, max_iter=MOST_ITERATIONS)
        for C in self.grid:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
                model.set_params(C=C).fit(rows, labels)
            converged = bool(np.max(model.n_iter_) < model.max_iter)
            yield LinearFit("C", C, model.coef_, model.intercept_, converged)


class LinearSvm(LinearHead):
    """Linear support vector machine with squared hinge loss, one class against the rest."""

    name = "linear_svm"
    has_probabilities = False
    grid = tuple(10.0**exponent for exponent in range(-3, 2))  # C

    def path(
        self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> Iterator[LinearFit]:
        for C in self.grid:
            # the primal solver: it draws nothing, and large C do not slow it down
            model = LinearSVC(C=C, dual=False, tol=1e-6, max_iter=MOST_ITERATIONS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
                model.fit(rows, labels)
            converged = bool(np.max(model.n_iter_) < model.max_iter)
            yield LinearFit("C", C, model.coef_, model.intercept_, converged)


class Ridge(LinearHead):
    """Least squares on labels of -1 and 1 with an L2 penalty."""

    name = "ridge"
    has_probabilities = False
    grid = tuple(10.0**exponent for exponent in range(2, -5, -1))  # alpha

    def path(
        self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> Iterator[LinearFit]:
        for alpha in self.grid:
            model = RidgeClassifier(alpha=alpha).fit(rows, labels)
            # of two classes its weights are (D,)
            yield LinearFit(
                "alpha", alpha, np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
            )
