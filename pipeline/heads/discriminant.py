"""Linear discriminant analysis with a shrunken covariance."""

from collections.abc import Iterator

import numpy as np

from pipeline.heads.head import Candidate, FitOptions, Head, HeadSpec
from pipeline.heads.linear import LinearClassifier
from pipeline.heads.training import LabelledRows, TrainingSet

SHRINKAGES = (0.99, 0.9, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001)
TINY = 1e-12  # of features whose total variance is scaled to 1


class Lda(Head):
    """Gaussian classes of one common covariance, shrunken towards its mean variance.

    As scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)``, but with one
    eigendecomposition for all shrinkages, where scikit-learn solves (D, D) anew for each. Balanced,
    the classes are equally probable beforehand and count equally in the common covariance.
    """

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        rows, labels = train.coordinates, train.labels
        classes = range(train.class_count)
        means = np.stack([rows[labels == label].mean(axis=0) for label in classes])
        within = rows - means[labels]  # (N, R)
        covariance = within.T @ (within * train.row_weights[:, None]) / len(rows)
        variances, directions = np.linalg.eigh(covariance)
        # the mean over all D features: those outside the basis have no variance
        mean_variance = np.trace(covariance) / train.features.shape[1]
        projected = means @ directions  # (K, R)
        for shrinkage in SHRINKAGES:
            params = {"shrinkage": shrinkage}
            if not options.wants(params):
                continue
            # constant features have no variance at all, and yet may tell the classes apart
            shrunken = TINY + (1 - shrinkage) * np.maximum(variances, 0) + shrinkage * mean_variance
            weights = (projected / shrunken) @ directions.T
            intercepts = np.log(train.shares) - 0.5 * (means * weights).sum(axis=1)
            if train.class_count == 2:
                weights, intercepts = weights[1:] - weights[:1], intercepts[1:] - intercepts[:1]
            yield Candidate(
                spec=HeadSpec("lda", params),
                classifier=LinearClassifier.fold(
                    train, weights=weights, intercepts=intercepts, has_probabilities=True
                ),
                seed=options.seeds[0],
            )
