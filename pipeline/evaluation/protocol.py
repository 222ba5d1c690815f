"""The rules of a comparison: how images are split, and which seeds heads are fitted with."""

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
    DEFAULT_FOLDS,
    IMAGES,
    MIN_FOLDS,
    TEST,
    TRAIN,
    VALIDATION,
    Shares,
    Splits,
    Trial,
    make_folds,
    make_splits,
    max_folds,
)
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION, check_seed
from pipeline.text import counted

FEW_IMAGES = 2000  # with fewer, a fifth as test set has a 95 % interval of over 4 points

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class TrialPlan:
    """All trials of a cache, and one sentence on how they were made.

    ``folds`` is the number of trials that together test every image once; 0 for one split.
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
    folds : None means `DEFAULT_FOLDS` for fewer than `FEW_IMAGES` images without split folders,
        else one split.
    split : shares of images without split folders, ``60/20/20``.
    group : see `parse_group_rule`.
    seed, repeats : stochastic heads are fitted with seed, seed + 1, …; each repeat of the folds
        draws other folds.
    has_normal : splits need images of the first class, the normal one, but no others.

    Raises UsageError, NoInputError or BadDataError for invalid rules.
    """

    folds: int | None = None
    split: str | None = None
    group: str | None = None
    split_seed: int = 0
    seed: int = 0
    repeats: int = 1
    has_normal: bool = False

    def __post_init__(self) -> None:
        if self.folds is not None and self.split is not None:
            raise UsageError("--cv and --split exclude each other; omit one")
        if self.folds is not None and self.folds < MIN_FOLDS:
            raise UsageError(
                f"--cv needs {MIN_FOLDS} folds or more, for train, validation and test; "
                f"received {self.folds}"
            )
        if self.repeats < 1:
            raise UsageError(f"--repeats: expected 1 or more; received {self.repeats}")
        for first, flag in ((self.seed, "--seed"), (self.split_seed, "--split-seed")):
            check_seed(first, flag)
            check_seed(first + self.repeats - 1, flag)
        self.shares, self.group_of  # noqa: B018 - raises for invalid rules

    @cached_property
    def shares(self) -> Shares | None:
        return None if self.split is None else Shares.parse(self.split)

    @cached_property
    def group_of(self) -> GroupOf | None:
        return None if self.group is None else parse_group_rule(self.group)

    def plan_trials(
        self, columns: Columns, classes: Sequence[str], task: str = CLASSES
    ) -> TrialPlan:
        """Return the trials of a set of images; raises BadDataError if it cannot be split."""
        identities = identities_of(columns, self.group_of, classes)
        has_groups = self.group_of is not None or bool(columns.groups.any())
        seeds = tuple(range(self.seed, self.seed + self.repeats))
        folds, required = self.folds, 1 if self.has_normal else None
        if folds is None and self.shares is None:
            needed = classes[:required] if task == CLASSES else IMAGES
            possible, _ = max_folds(columns, needed, identities)
            is_small = len(columns) < FEW_IMAGES and columns.splits.max(initial=0) <= TRAIN
            if is_small and possible >= MIN_FOLDS and (len(classes) > 1 or task != CLASSES):
                folds = min(DEFAULT_FOLDS, possible)
        if folds is None:
            self._check_unused_options(columns)
            splits = make_splits(
                columns,
                classes,
                shares=self.shares,
                seed=self.split_seed,
                identities=identities,
                task=task,
                required=required,
            )
            notices = tuple(_notice_divided_groups(splits, identities)) if has_groups else ()
            return TrialPlan((Trial(splits, seeds),), splits.source, notices=notices)
        trials = tuple(
            Trial(splits, (seed,))
            for split_seed, seed in enumerate(seeds, self.split_seed)
            for splits in make_folds(
                columns,
                classes,
                folds=folds,
                seed=split_seed,
                identities=identities,
                task=task,
                required=required,
            )
        )
        ignored = "; splits of the set are ignored" if columns.splits.max(initial=0) > TRAIN else ""
        grouped = ", groups kept together" if has_groups else ""
        repeated = f", {self.repeats} times" if self.repeats > 1 else ""
        strata = {MULTILABEL: "label", REGRESSION: "tenths of the numbers"}.get(task, "class")
        source = (
            f"cross-validated: {folds} folds stratified by {strata}{grouped}{repeated}{ignored}"
        )
        return TrialPlan(trials, source, folds)

    def _check_unused_options(self, columns: Columns) -> None:
        """Raise UsageError for shares, and warn of a seed, that complete split folders override."""
        complete = {TRAIN, VALIDATION, TEST} <= set(np.unique(columns.splits).tolist())
        if complete and self.shares is not None:
            raise UsageError(
                "--split: the images are in train, validation and test folders; omit --split, or "
                "cross-validate with --cv"
            )
        if complete and self.split_seed:
            log.warning("--split-seed has no effect: the set has splits")


def _notice_divided_groups(splits: Splits, identities: npt.NDArray[np.void]) -> Iterator[str]:
    """Yield a notice if split folders divide groups."""
    parts = [np.unique(identities[rows]) for rows in (splits.train, splits.validation, splits.test)]
    _, splits_of_group = np.unique(np.concatenate(parts), return_counts=True)
    if count := int((splits_of_group > 1).sum()):
        yield (
            f"the set's splits divide {counted(count, 'group')}, which inflates every accuracy; "
            f"--cv keeps groups together"
        )
