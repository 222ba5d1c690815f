"""The choice of a setting: on validation, of equals the first."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from pipeline.evaluation.choose import choose
from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec
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
class ToldHead(Head):
    wrong: tuple[float, ...]

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
    (choice,) = choose(ToldHead(wrong), TRAIN, VALIDATION, FitOptions())
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
    class SureHead(Head):
        def fit_candidates(self, *args: object) -> Iterator[Candidate]:
            for sure in (0.6, 0.9, 0.8):
                yield Candidate(spec=HeadSpec("sure", {"p": sure}), classifier=Sure(sure))

    (choice,) = choose(SureHead(), TRAIN, VALIDATION, FitOptions())
    assert choice.candidate.spec.params == {"p": 0.9}
    assert choice.validation_accuracy == 1.0


def test_a_head_that_diverged_has_no_choice() -> None:
    assert choose(ToldHead((float("nan"),)), TRAIN, VALIDATION, FitOptions()) == []


@dataclass(frozen=True)
class Seeded(Head):
    """Setting 0 is right with seed 1 only, setting 1 with seed 2 only; notes what it fits."""

    fitted: list[tuple[int, int, int]]
    draws = True

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        for seed in options.seeds:
            for place in (0, 1):
                if options.wants({"place": place}):
                    self.fitted.append((len(train), seed, place))
                    told = Told(0 if place == seed - 1 else 1)
                    yield Candidate(
                        spec=HeadSpec("seeded", {"place": place}), classifier=told, seed=seed
                    )


def test_every_seed_chooses_for_itself_and_refits_on_both_parts() -> None:
    head = Seeded([])
    one, two = choose(head, TRAIN, VALIDATION, FitOptions(seeds=(1, 2)), refit=VALIDATION)
    assert (one.seed, one.candidate.spec.params) == (1, {"place": 0})
    assert (two.seed, two.candidate.spec.params) == (2, {"place": 1})
    assert head.fitted[:4] == [(10, 1, 0), (10, 1, 1), (10, 2, 0), (10, 2, 1)]
    assert head.fitted[4:] == [(20, 1, 0), (20, 2, 1)]
    assert [setting.chosen for setting in two.settings] == [False, True]


def test_scores_become_probabilities_that_decide_the_same() -> None:
    (choice,) = choose(ToldHead((1,)), TRAIN, VALIDATION, FitOptions())
    before, after = Told(1).scores(VALIDATION.features), choice.validation_scores
    assert choice.classifier.has_probabilities
    np.testing.assert_allclose(after.sum(axis=1), 1)
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_balanced_heads_are_chosen_by_balanced_accuracy() -> None:
    labels = np.array([0] * 8 + [1] * 2)

    @dataclass(frozen=True)
    class Fixed:
        predicted: tuple[int, ...]
        has_probabilities: bool = False
        parameters: int = 1

        def scores(self, features: Floats) -> np.ndarray:
            return np.eye(2)[list(self.predicted)]

    class Two(Head):
        def fit_candidates(self, *args: object) -> Iterator[Candidate]:
            common = Fixed((0,) * 10)  # 80 % right, 50 % balanced
            rare = Fixed((0,) * 4 + (1,) * 6)  # 60 % right, 75 % balanced
            for name, each in (("common", common), ("rare", rare)):
                yield Candidate(spec=HeadSpec("two", {"for": name}), classifier=each)

    rows = np.zeros((10, 1), np.float32)
    for balanced, expected in ((False, "common"), (True, "rare")):
        train = TrainingSet(rows, labels, 2, balanced)
        (choice,) = choose(Two(), train, LabelledRows(rows, labels), FitOptions())
        assert choice.candidate.spec.params == {"for": expected}
