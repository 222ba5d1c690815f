"""The floor: what is reached without looking at the image."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec
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


class Majority(Head):
    """Always the most frequent training class; the first where classes count equally."""

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        yield Candidate(
            spec=HeadSpec("majority"),
            classifier=MajorityClassifier(train.shares),
            seed=options.seeds[0],
        )
