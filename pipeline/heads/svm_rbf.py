"""Support vector machine with a radial basis function kernel."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC

from pipeline.errors import BadDataError
from pipeline.heads.blocks import in_blocks
from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec
from pipeline.heads.training import LabelledRows, Scaler, TrainingSet

# Rows are scaled to a mean squared distance of 2, so 0.25 is the usual 1 / (2 · median): one grid
# suits all bases. Wider and narrower ones, and C = 0.1, do worse on cats and dogs.
GAMMAS = (0.1, 0.25, 0.6)
PENALTIES = (1.0, 10.0, 100.0)  # C
MOST_ROWS = 10_000  # all pairs' distances and one Gram matrix: 1.6 GB
MOST_ITERATIONS = 1_000_000

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SvmRbfClassifier:
    """Decision values ``exp(-gamma · ‖row - support‖²) @ coefficients.T + intercepts``.

    support (S, D), coefficients (K, S) and intercepts (K,) float64, one class against the rest; of
    two classes, one row decides: (1, S) and (1,).
    """

    scaler: Scaler
    support: Array
    coefficients: Array
    intercepts: Array
    gamma: float
    has_probabilities: bool = False

    @property
    def parameters(self) -> int:
        return self.support.size + self.coefficients.size + self.intercepts.size

    def scores(self, features: Floats) -> Array:
        decisions = in_blocks(self._decisions, features)
        return np.hstack([-decisions, decisions]) if decisions.shape[1] == 1 else decisions

    def _decisions(self, features: Floats) -> Array:
        kernel = np.exp(-self.gamma * squared_distances(self.scaler(features), self.support))
        return np.asarray(kernel @ self.coefficients.T + self.intercepts)


class SvmRbf(Head):
    """Support vector machine with an RBF kernel on scaled features, one class against the rest.

    ``gamma`` is that of the scaled features. The distances are computed once, a Gram matrix once
    for all C. It has no probabilities of its own.
    """

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        if len(train) > MOST_ROWS:
            raise BadDataError(
                f"compares all pairs of training images, at most {MOST_ROWS:,}; "
                f"received {len(train):,}"
            )
        distances = squared_distances(train.scaled, train.scaled)
        wanted = [
            (gamma, C)
            for gamma, C in product(GAMMAS, PENALTIES)
            if options.wants({"gamma": gamma, "C": C})
        ]
        gram, gram_gamma = distances, None
        for gamma, C in wanted:
            if gamma != gram_gamma:
                gram, gram_gamma = np.exp(-gamma * distances), gamma
            classifier, converged = _fit(train, gram, gamma=gamma, C=C)
            yield Candidate(
                spec=HeadSpec("svm_rbf", {"gamma": gamma, "C": C}),
                classifier=classifier,
                seed=options.seeds[0],
                converged=converged,
            )


def squared_distances(rows: Array, others: Array) -> Array:
    """‖row - other‖² of all pairs: (N, D), (M, D) -> (N, M)."""
    distances = rows @ others.T
    distances *= -2
    distances += (rows**2).sum(axis=1)[:, None]
    distances += (others**2).sum(axis=1)
    return np.maximum(distances, 0, out=distances)


def _fit(
    train: TrainingSet, gram: Array, *, gamma: float, C: float
) -> tuple[SvmRbfClassifier, bool]:
    """Fit one setting; also tells whether the solver reached its tolerance."""
    binary = train.class_count == 2
    positives = (1,) if binary else range(train.class_count)
    coefficients = np.zeros((len(positives), len(train)))
    intercepts = np.empty(len(positives))
    converged = True
    for place, label in enumerate(positives):
        model = SVC(kernel="precomputed", C=C, max_iter=MOST_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
            model.fit(gram, train.labels == label, sample_weight=train.row_weights)
        coefficients[place, model.support_] = model.dual_coef_[0]
        intercepts[place] = model.intercept_[0]
        converged = converged and model.fit_status_ == 0
    support = np.flatnonzero(coefficients.any(axis=0))
    classifier = SvmRbfClassifier(
        scaler=train.scaler,
        support=train.scaled[support],
        coefficients=coefficients[:, support],
        intercepts=intercepts,
        gamma=gamma,
    )
    return classifier, converged
