"""What linear heads share; each stands in a file of its own.

They learn on scaled features in a basis of the training rows (see `TrainingSet.basis`); the fitted
weights are folded back, so that predicting is one product with the features as cached.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from pipeline.heads.blocks import in_blocks
from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec
from pipeline.heads.training import LabelledRows, TrainingSet


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
        # a block at a time is upcast to float64
        decisions = in_blocks(lambda rows: rows @ self.weights.T + self.intercepts, features)
        if decisions.shape[1] == 1:
            both = np.hstack([-decisions, decisions])
            return np.asarray(expit(both) if self.has_probabilities else both)
        return np.asarray(softmax(decisions, axis=1) if self.has_probabilities else decisions)


@dataclass(frozen=True)
class LinearFit:
    """One fitted setting, on `TrainingSet.coordinates`; shapes as in `LinearClassifier`."""

    weights: npt.NDArray[np.float64]
    intercepts: npt.NDArray[np.float64]
    converged: bool = True


class LinearHead(Head):
    """What linear heads of one setting share.

    Attributes
    ----------
    name, param : of the head and of its setting.
    grid : its values, the strongest penalty first.
    has_probabilities : whether sigmoid or softmax of the decision values are probabilities.
    """

    name: ClassVar[str]
    param: ClassVar[str]
    grid: ClassVar[Sequence[float]]
    has_probabilities: ClassVar[bool]

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        values = [value for value in self.grid if options.wants({self.param: value})]
        for value, fit in zip(values, self.path(train, values), strict=True):
            yield Candidate(
                spec=HeadSpec(self.name, {self.param: value}),
                classifier=LinearClassifier.fold(
                    train,
                    weights=fit.weights,
                    intercepts=fit.intercepts,
                    has_probabilities=self.has_probabilities,
                ),
                seed=options.seeds[0],
                converged=fit.converged,
            )

    @abstractmethod
    def path(self, train: TrainingSet, values: Sequence[float]) -> Iterator[LinearFit]:
        """Fit each value in turn."""
