"""What a head is: a family of classifiers that is fitted with several settings, one of them chosen.

A head yields one fitted candidate per setting, the most regularised first; the caller chooses on
validation. A new head is a subclass of `Head` with `fit_candidates`, and one line in
`pipeline.heads.registry`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet

Floats = npt.NDArray[np.floating[Any]]
Input = Literal["flat", "pooled"]
Params = Mapping[str, float | int | str]


@dataclass(frozen=True)
class HeadSpec:
    """Which classifier with which settings, e.g. ``HeadSpec("logistic", {"C": 0.1})``."""

    name: str
    params: Params = field(default_factory=dict)

    @property
    def params_text(self) -> str:
        """The settings on one line: ``C=0.1``; empty if there are none."""
        return " ".join(
            f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"
            for name, value in self.params.items()
        )


class Classifier(Protocol):
    """A fitted head. It takes features as they are cached: scaling is its own business."""

    @property
    def has_probabilities(self) -> bool:
        """Whether the scores are probabilities that sum to 1."""
        ...

    @property
    def parameters(self) -> int:
        """How many numbers were learned."""
        ...

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        """(N, D) float32 -> (N, K) float64, the highest for the class that is predicted."""
        ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One fitted setting of a head.

    Attributes
    ----------
    seed : of `FitOptions.seeds`, the one it was drawn with; the first for heads that draw nothing.
    converged : False if the solver stopped before it reached its tolerance.
    history : what was recorded by epoch: loss, accuracy, val_loss, val_accuracy.
    """

    spec: HeadSpec
    classifier: Classifier
    seed: int = 0
    converged: bool = True
    history: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What a run sets for all heads.

    Attributes
    ----------
    seeds : a head that draws at random is fitted once with each; the others once.
    dense : the settings that the dense head is fitted with, all in one pass over the data.
    wanted : fit only this setting, which was chosen before; None for all of them.
    """

    seeds: tuple[int, ...] = (0,)
    dense: tuple[DenseSettings, ...] = (DenseSettings(),)
    wanted: Params | None = None

    def wants(self, params: Params) -> bool:
        """Whether a head should fit this setting."""
        return self.wanted is None or dict(self.wanted) == dict(params)


class Head(ABC):
    """A family of classifiers.

    Attributes
    ----------
    default_input : what it learns from unless told otherwise.
    draws : whether another seed gives another fit.
    uses_all_cores : it keeps all cores busy by itself, so nothing else runs beside it.
    """

    default_input: ClassVar[Input] = "pooled"
    draws: ClassVar[bool] = False
    uses_all_cores: ClassVar[bool] = False

    @abstractmethod
    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        """Fit every setting that ``options.wants`` on ``train``, the most regularised first.

        ``validation`` is there to be watched by epoch; nothing is learned from it.
        """


@dataclass(frozen=True)
class EstimatorClassifier:
    """A fitted scikit-learn estimator with ``predict_proba``."""

    estimator: Any
    parameters: int
    has_probabilities: bool = True

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        probabilities = np.asarray(self.estimator.predict_proba(features), np.float64)
        # some miss 1 by more than rounding in float64
        return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))
