"""Audit the data with cached features: duplicates, likely label errors, the learning curve."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.cache.file import FeatureTable
from pipeline.evaluation.abstention import LeftOutClass
from pipeline.evaluation.audit_features import open_features
from pipeline.evaluation.duplicates import (
    MAX_COMPONENT_BYTES,
    MAX_PAIRS,
    DuplicatePair,
    duplicate_sets,
    find_duplicates,
)
from pipeline.evaluation.groups import Rows
from pipeline.evaluation.learning_curve import LearningCurve, learning_curve
from pipeline.evaluation.probe import FeatureRows, Floats
from pipeline.evaluation.splits import TEST, TRAIN, Splits
from pipeline.evaluation.suspects import MAX_PROBABILITY_BYTES, Suspect, find_suspects
from pipeline.spec import CLASSES
from pipeline.text import counted, error_text

SECTIONS = ("learning", "suspects", "duplicates")  # of the report, that show the audit

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """Duplicates, likely label errors and the learning curve of one cached layer.

    Row numbers refer to ``table``. Duplicates across splits come first, then the most similar;
    suspects start with the likeliest. ``learning_curve`` is None for too few images. ``left_out``
    is what `leave_classes_out` returns. ``notices`` are one line each; ``failures`` has a line for
    each section of the report whose step failed.
    """

    table: FeatureTable
    layer: str
    duplicates: tuple[DuplicatePair, ...]
    suspects: tuple[Suspect, ...]
    learning_curve: LearningCurve | None
    left_out: Sequence[LeftOutClass] | str = ()
    notices: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def left_out_auroc(self) -> float:
        """The mean area under the ROC curve of the classes that were left out; NaN for none."""
        areas = [each.joint for each in self.left_out if not isinstance(each, str)]
        return float(np.mean(areas)) if areas else math.nan


@contextmanager
def tolerate(what: str, report: Callable[[str], object]) -> Iterator[None]:
    """Report any exception in one line: nothing that examines the data may cost the table."""
    try:
        yield
    except Exception as error:  # MemoryError, too
        log.debug("%s failed", what, exc_info=True)
        report(f"{what} failed ({error_text(error)}); the table is complete")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit of one cached layer, computed when `findings` is first read.

    Attributes
    ----------
    table : of unaugmented images, after label edits.
    folds : the test rows of each fold; empty for one split.
    leave_out : see `leave_classes_out`; None to skip it.
    read : returns the features (N, D) of the table if they are in memory.
    memory : budget of the process in bytes, see `open_features`.
    """

    table: FeatureTable
    layer: str
    splits: Splits
    folds: Sequence[Rows] = ()
    seed: int = 0
    leave_out: Callable[..., Sequence[LeftOutClass] | str] | None = None
    read: Callable[[], Floats | None] = lambda: None
    memory: float = math.inf

    @cached_property
    def findings(self) -> AuditResult:
        """Duplicates in the splits and, of classes, likely label errors and the learning curve.

        A step that fails has no result, and its line is in ``failures`` and ``notices``.
        """
        table, seed = self.table, self.seed
        split = np.zeros(len(table), np.uint8)  # the split number of each row, 0 for none
        for number, part in enumerate(
            (self.splits.train, self.splits.validation, self.splits.test), TRAIN
        ):
            split[part] = number
        rows = np.flatnonzero(split > 0)
        labels, split = table.columns.labels[rows], split[rows]
        class_count = len(table.classes)
        fold = np.zeros(len(table), np.int64)
        for number, test in enumerate(self.folds):
            fold[test] = number
        pairs: list[DuplicatePair] = []
        suspects: list[Suspect] = []
        curve = None
        left_out: Sequence[LeftOutClass] | str = ()
        failures: dict[str, str] = {}
        notes: list[str] = []

        def step(section: str, what: str) -> AbstractContextManager[None]:
            log.info("audit: %s", what.removeprefix("the "))
            return tolerate(what, partial(failures.__setitem__, section))

        # One thread: the BLAS of NumPy and of SciPy wait for each other's threads in busy loops.
        with (
            threadpool_limits(limits=1, user_api="blas"),
            tolerate("the audit", lambda line: failures.update(dict.fromkeys(SECTIONS, line))),
        ):
            log.info("audit: reading features")
            features = self._read_features(rows)
            with step("duplicates", "the search for duplicates"):
                pairs = find_duplicates(
                    features,
                    table.columns.digests[rows],
                    split,
                    folds=fold[rows] if self.folds else None,
                    note=notes.append,
                    max_bytes=min(MAX_COMPONENT_BYTES, self.memory / 3),
                )
            if table.task == CLASSES:
                groups = duplicate_sets(pairs, len(rows))
                with step("suspects", "the search for label errors"):
                    suspects = find_suspects(
                        features,
                        labels,
                        groups,
                        class_count,
                        seed,
                        note=notes.append,
                        max_bytes=min(MAX_PROBABILITY_BYTES, self.memory / 3),
                    )
                with step("learning", "the learning curve"):
                    curve = learning_curve(
                        features, labels, split, class_count=class_count, seed=seed
                    )
                with step("rejection", "the test of classes that are left out"):
                    left_out = self.leave_out(note=notes.append) if self.leave_out else ()
        return AuditResult(
            table=table,
            layer=self.layer,
            duplicates=tuple(
                replace(pair, first=int(rows[pair.first]), second=int(rows[pair.second]))
                for pair in pairs
            ),
            suspects=tuple(replace(suspect, row=int(rows[suspect.row])) for suspect in suspects),
            learning_curve=curve,
            left_out=left_out,
            notices=(
                *dict.fromkeys(failures.values()),
                *_notices(pairs, split, in_folds=bool(self.folds)),
                *notes,
            ),
            failures=failures,
        )

    def _read_features(self, rows: Rows) -> FeatureRows:
        features = self.read()
        if features is None:
            return open_features(self.table, self.layer, rows, self.memory)
        return features if len(rows) == len(self.table) else features[rows]


def _notices(
    pairs: Sequence[DuplicatePair], split: npt.NDArray[np.uint8], *, in_folds: bool
) -> Iterator[str]:
    exact = [pair for pair in pairs if pair.exact]
    total = 0 if in_folds else _count_leaked(pairs, split)
    if total:
        files, is_serious = _count_leaked(exact, split), True
        problem = counted(total, "test image has a duplicate", "test images have duplicates")
        problem += " in train"
    else:
        total, files = (sum(pair.across for pair in each) for each in (pairs, exact))
        is_serious = in_folds
        problem = counted(total, "pair of duplicates is", "pairs of duplicates are")
        problem += " in two folds" if in_folds else " in two splits"
    if total:
        # near duplicates may be merely similar pictures, which inflate nothing
        inflates = "exact ones inflate every accuracy; " if files and is_serious else ""
        yield f"{problem} (exact: {files:,}, near: {total - files:,}): {inflates}see report.html"
    if len(pairs) - len(exact) >= MAX_PAIRS:
        yield f"only {MAX_PAIRS:,} near duplicates are listed, those across splits first"


def _count_leaked(pairs: Sequence[DuplicatePair], split: npt.NDArray[np.uint8]) -> int:
    """Return how many test images have a duplicate in train."""
    sets = duplicate_sets(pairs, len(split))
    return int(np.isin(sets[split == TEST], sets[split == TRAIN]).sum())
