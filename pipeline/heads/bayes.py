"""Naive Bayes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from pipeline.heads.blocks import in_blocks
from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec
from pipeline.heads.training import LabelledRows, TrainingSet

SMOOTHINGS = tuple(10.0**exponent for exponent in range(0, -10, -1))


@dataclass(frozen=True)
class NaiveBayesClassifier:
    """Means and variances (K, D) of every class and the classes' prior probabilities (K,)."""

    means: npt.NDArray[np.float64]
    variances: npt.NDArray[np.float64]
    priors: npt.NDArray[np.float64]
    has_probabilities: bool = True

    @property
    def parameters(self) -> int:
        return self.means.size + self.variances.size + self.priors.size

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        return in_blocks(self._probabilities, features)

    def _probabilities(self, features: Floats) -> npt.NDArray[np.float64]:
        centre = self.means.mean(axis=0)  # near all values, so that their squares cancel little
        rows, means = features - centre, self.means - centre
        # Σ (x - mean)² / variance, multiplied out: three products instead of K passes over (N, D)
        distances = (
            rows**2 @ (1 / self.variances).T
            - 2 * rows @ (means / self.variances).T
            + (means**2 / self.variances).sum(axis=1)
        )
        norms = np.log(self.variances).sum(axis=1)
        return np.asarray(softmax(np.log(self.priors) - (norms + distances) / 2, axis=1))


class NaiveBayes(Head):
    """Each feature an independent Gaussian per class, its variance raised by ``smoothing`` times
    the largest one. Balanced, the classes are equally probable beforehand."""

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        groups = [train.features[train.labels == label] for label in range(train.class_count)]
        means = np.stack([rows.mean(axis=0, dtype=np.float64) for rows in groups])
        variances = np.stack([rows.var(axis=0, dtype=np.float64) for rows in groups])
        largest = train.features.var(axis=0, dtype=np.float64).max() or 1.0  # if nothing varies
        for smoothing in SMOOTHINGS:
            params = {"smoothing": smoothing}
            if options.wants(params):
                yield Candidate(
                    spec=HeadSpec("naive_bayes", params),
                    classifier=NaiveBayesClassifier(
                        means, variances + smoothing * largest, train.shares
                    ),
                    seed=options.seeds[0],
                )
