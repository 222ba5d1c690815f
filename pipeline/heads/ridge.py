"""Ridge classification."""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.linear_model import RidgeClassifier

from pipeline.heads.linear import LinearFit, LinearHead
from pipeline.heads.training import TrainingSet


class Ridge(LinearHead):
    """Least squares on labels of -1 and 1 with an L2 penalty."""

    name = "ridge"
    param = "alpha"
    grid = tuple(10.0**exponent for exponent in range(2, -5, -1))
    has_probabilities = False

    def path(self, train: TrainingSet, values: Sequence[float]) -> Iterator[LinearFit]:
        for alpha in values:
            model = RidgeClassifier(alpha=alpha)
            model.fit(train.coordinates, train.labels, sample_weight=train.row_weights)
            # of two classes its weights are (D,)
            yield LinearFit(np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_))
