"""Linear support vector machine."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from pipeline.heads.linear import LinearFit, LinearHead
from pipeline.heads.training import TrainingSet

MOST_ITERATIONS = 10_000


class LinearSvm(LinearHead):
    """Linear support vector machine with squared hinge loss, one class against the rest."""

    name = "linear_svm"
    param = "C"
    grid = tuple(10.0**exponent for exponent in range(-3, 2))
    has_probabilities = False

    def path(self, train: TrainingSet, values: Sequence[float]) -> Iterator[LinearFit]:
        for C in values:
            # the primal solver: it draws nothing, and large C do not slow it down
            model = LinearSVC(C=C, dual=False, tol=1e-6, max_iter=MOST_ITERATIONS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
                model.fit(train.coordinates, train.labels, sample_weight=train.row_weights)
            converged = bool(np.max(model.n_iter_) < model.max_iter)
            yield LinearFit(model.coef_, model.intercept_, converged)
