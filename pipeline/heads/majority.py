"""The floor: what is reached without looking at the image."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.heads.head import Candidate, FitOptions, Floats, HeadSpec, Input
from pipeline.heads.training import LabelledRows, TrainingSet


@dataclass(frozen=True)
class MajorityClassifier:
    """The training shares of the classes (K,) as the probabilities of every row."""

    shares: npt.NDArray[np.float64]
    has_probabilities: bool = True

    @property
    def parameters(self) -> int:
        return self.shares.size

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        return np.tile(self.shares, (len(features), 1))


class Majority:
    """Always the most frequent training class."""

    default_input: Input = "pooled"

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        shares = np.bincount(train.labels, minlength=train.class_count) / len(train)
        yield Candidate(spec=HeadSpec("majority"), classifier=MajorityClassifier(shares))
