"""How heads are judged: which rows train, choose and test, how often, with which seeds."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import Columns
from pipeline.errors import UsageError
from pipeline.evaluation.groups import GroupOf, identities_of, parse_group_rule
from pipeline.evaluation.splits import (
    FEWEST_FOLDS,
    TEST,
    TRAIN,
    VALIDATION,
    Shares,
    Splits,
    Trial,
    check_fold_count,
    make_folds,
    make_splits,
    most_folds,
)
from pipeline.spec import check_seed
from pipeline.text import counted

# Below it a single test set of a fifth gives an interval of over 4 points at 95 %.
FEW_IMAGES = 2000
USUAL_FOLDS = 5

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class TrialPlan:
    """All trials of a cache, and in one sentence where they come from.

    ``folds`` is how many trials together test every image once; 0 of a fixed test set.
    """

    trials: tuple[Trial, ...]
    source: str
    folds: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """The rules of a comparison.

    Attributes
    ----------
    folds : None for `USUAL_FOLDS` of fewer than `FEW_IMAGES` images without split folders, else
        one division.
    split : shares where there are no split folders, ``60/20/20``.
    group : as `parse_group_rule` reads it.
    seed, repeats : stochastic heads are fitted with seed, seed + 1, …; each repeat of the folds
        divides anew.

    Raises UsageError, NoInputError or BadDataError for rules that cannot be.
    """

    folds: int | None = None
    split: str | None = None
    group: str | None = None
    split_seed: int = 0
    seed: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.folds is not None and self.split is not None:
            raise UsageError("--cv and --split are two ways to divide a set; choose one")
        if self.folds is not None:
            check_fold_count(self.folds)
        if self.repeats < 1:
            raise UsageError(f"--repeats needs at least 1; received {self.repeats}")
        for first, flag in ((self.seed, "--seed"), (self.split_seed, "--split-seed")):
            check_seed(first, flag)
            check_seed(first + self.repeats - 1, flag)
        self.shares, self.group_of  # noqa: B018 - raise for what cannot be read

    @cached_property
    def shares(self) -> Shares | None:
        return None if self.split is None else Shares.parse(self.split)

    @cached_property
    def group_of(self) -> GroupOf | None:
        return None if self.group is None else parse_group_rule(self.group)

    def plan_trials(self, columns: Columns, classes: Sequence[str]) -> TrialPlan:
        """The trials of a set of images; raises BadDataError where it cannot be divided so."""
        identities = identities_of(columns, self.group_of)
        seeds = tuple(range(self.seed, self.seed + self.repeats))
        folds = self.folds
        if folds is None and self.shares is None:
            most, _ = most_folds(columns, classes, identities)
            few = len(columns) < FEW_IMAGES
            unsorted = set(np.unique(columns.splits).tolist()) <= {0, TRAIN}
            if few and unsorted and most >= FEWEST_FOLDS and len(classes) > 1:
                folds = min(USUAL_FOLDS, most)
        if folds is None:
            self._check_that_folders_leave_a_choice(columns)
            splits = make_splits(
                columns, classes, shares=self.shares, seed=self.split_seed, identities=identities
            )
            notices = tuple(_parted(splits, identities)) if self.group_of else ()
            return TrialPlan((Trial(splits, seeds),), splits.source, notices=notices)
        trials = tuple(
            Trial(splits, (seed,))
            for split_seed, seed in enumerate(seeds, self.split_seed)
            for splits in make_folds(
                columns, classes, folds=folds, seed=split_seed, identities=identities
            )
        )
        ignored = "; the split folders are ignored" if columns.splits.max(initial=0) > TRAIN else ""
        grouped = ", groups kept together" if self.group_of else ""
        again = f", {counted(self.repeats, 'time')}" if self.repeats > 1 else ""
        source = f"cross-validated: {folds} folds stratified by class{grouped}{again}{ignored}"
        return TrialPlan(trials, source, folds)

    def _check_that_folders_leave_a_choice(self, columns: Columns) -> None:
        """Refuse shares where the folders say it all, for they would do nothing."""
        complete = {TRAIN, VALIDATION, TEST} <= set(np.unique(columns.splits).tolist())
        if complete and self.shares is not None:
            raise UsageError(
                "--split: the set has train, validation and test folders, which decide; leave "
                "--split out, or cross-validate with --cv"
            )
        if complete and self.split_seed:
            log.warning(
                "--split-seed changes nothing: the folders say which image is in which split"
            )


def _parted(splits: Splits, identities: npt.NDArray[np.void]) -> Iterator[str]:
    """Say how many groups the folders part."""
    parts = [np.unique(identities[rows]) for rows in (splits.train, splits.validation, splits.test)]
    count = len(np.concatenate(parts)) - len(np.unique(np.concatenate(parts)))
    if count:
        yield (
            f"{counted(count, 'group stands', 'groups stand')} in two splits because the folders "
            f"say so, which inflates every number; --cv keeps groups together"
        )
