"""The choice of a setting: on validation, of equals the first."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.evaluation.choose import choose
from pipeline.heads.head import Candidate, FitOptions, Floats, HeadSpec, Input
from pipeline.heads.training import LabelledRows, TrainingSet

LABELS = np.arange(10) % 2
TRAIN = TrainingSet(np.zeros((10, 1), np.float32), LABELS, 2)
VALIDATION = LabelledRows(np.zeros((10, 1), np.float32), LABELS)


@dataclass(frozen=True)
class Told:
    """A classifier that is wrong as often as it is told."""

    wrong: float
    has_probabilities: bool = False
    parameters: int = 1

    def scores(self, features: Floats) -> np.ndarray:
        scores = np.eye(2)[LABELS]
        return scores * np.nan if np.isnan(self.wrong) else np.roll(scores, int(self.wrong), axis=0)


@dataclass(frozen=True)
class ToldHead:
    wrong: tuple[float, ...]
    default_input: Input = "flat"

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        for place, wrong in enumerate(self.wrong):
            yield Candidate(spec=HeadSpec("told", {"place": place}), classifier=Told(wrong))


@pytest.mark.parametrize(
    ("wrong", "chosen"),
    [((1, 0, 1), 1), ((0, 0, 0), 0), ((1, 0, 2), 1), ((float("nan"), 1, 0), 2)],
)
def test_the_highest_accuracy_wins_and_of_equals_the_first(
    wrong: tuple[float, ...], chosen: int
) -> None:
    choice = choose(ToldHead(wrong), TRAIN, VALIDATION, FitOptions())
    assert choice is not None
    assert choice.candidate.spec.params == {"place": chosen}


@dataclass(frozen=True)
class Sure:
    """A classifier that is right everywhere, with a probability that it is told."""

    probability: float
    has_probabilities: bool = True
    parameters: int = 1

    def scores(self, features: Floats) -> np.ndarray:
        right = np.eye(2)[LABELS]
        return right * self.probability + (1 - right) * (1 - self.probability)


def test_of_equally_accurate_ones_the_surer_wins() -> None:
    class SureHead:
        default_input: Input = "flat"

        def fit_candidates(self, *args: object) -> Iterator[Candidate]:
            for sure in (0.6, 0.9, 0.8):
                yield Candidate(spec=HeadSpec("sure", {"p": sure}), classifier=Sure(sure))

    choice = choose(SureHead(), TRAIN, VALIDATION, FitOptions())
    assert choice is not None
    assert choice.candidate.spec.params == {"p": 0.9}
    assert choice.validation_accuracy == 1.0


def test_a_head_that_diverged_has_no_choice() -> None:
    assert choose(ToldHead((float("nan"),)), TRAIN, VALIDATION, FitOptions()) is None
