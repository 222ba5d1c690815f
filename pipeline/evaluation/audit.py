"""Audit the data with cached features: duplicates, likely label errors, the learning curve."""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.cache.file import FeatureTable
from pipeline.evaluation.abstention import LeftOutClass
from pipeline.evaluation.duplicates import (
    MAX_PAIRS,
    DuplicatePair,
    duplicate_sets,
    find_duplicates,
)
from pipeline.evaluation.groups import Rows
from pipeline.evaluation.learning_curve import LearningCurve, learning_curve
from pipeline.evaluation.probe import (
    FeatureRows,
    Floats,
    OutlierLimit,
    fit_components,
    row_blocks,
    sample_rows,
)
from pipeline.evaluation.rows import input_of, read_input
from pipeline.evaluation.splits import TEST, TRAIN, Splits
from pipeline.evaluation.suspects import Suspect, find_suspects
from pipeline.heads.inputs import PIXELS_PER_SIDE, feature_count, shrink_images
from pipeline.spec import CLASSES
from pipeline.text import counted, error_text

MAX_BYTES = 512 << 20  # of features in memory
COMPONENTS = 256  # of more features: no step uses more
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
    memory : budget of the process in bytes, see `open_features`.
    """

    table: FeatureTable
    layer: str
    splits: Splits
    folds: Sequence[Rows] = ()
    seed: int = 0
    leave_out: Callable[[], Sequence[LeftOutClass] | str] | None = None
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
            features = open_features(table, self.layer, rows, self.memory)
            with step("duplicates", "the search for duplicates"):
                pairs = find_duplicates(
                    features,
                    table.columns.digests[rows],
                    split,
                    folds=fold[rows] if self.folds else None,
                    note=notes.append,
                )
            if table.task == CLASSES:
                groups = duplicate_sets(pairs, len(rows))
                with step("suspects", "the search for label errors"):
                    suspects = find_suspects(
                        features, labels, groups, class_count, seed, note=notes.append
                    )
                with step("learning", "the learning curve"):
                    curve = learning_curve(
                        features, labels, split, class_count=class_count, seed=seed
                    )
                with step("rejection", "the test of classes that are left out"):
                    left_out = self.leave_out() if self.leave_out else ()
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


def open_features(
    table: FeatureTable, layer: str, rows: Rows, memory: float = math.inf
) -> FeatureRows:
    """Read the features to audit (n, D) if they take a quarter of ``memory`` and 512 MiB at most.

    Otherwise write their 256 principal components to a temporary file, in blocks.
    """
    width = _width(table, layer)
    if 4 * len(rows) * width <= min(memory / 4, MAX_BYTES):
        return audit_input(table, layer, rows)
    sample = audit_input(table, layer, rows[sample_rows(len(rows))])
    limit = OutlierLimit(sample)
    components = fit_components(limit(sample), COMPONENTS)
    stored = StoredFeatures((len(rows), components[-1].n_components_))
    for block in row_blocks(len(rows), width):
        stored.write(block, components.transform(limit(audit_input(table, layer, rows[block]))))
    return stored


class StoredFeatures:
    """Features (N, D) float32 in a temporary file, which is deleted with this object."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._folder = tempfile.TemporaryDirectory(prefix="audit-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name) / "features.f32"
        with self._path.open("wb") as file:
            file.truncate(4 * math.prod(shape))

    def __getitem__(self, rows: slice | Rows) -> Floats:
        # mapped for this read only: pages of the file do not stay in this process's memory
        return np.array(np.memmap(self._path, np.float32, "r", shape=self.shape)[rows])

    def write(self, rows: slice, features: Floats) -> None:
        np.memmap(self._path, np.float32, "r+", shape=self.shape)[rows] = features


def _width(table: FeatureTable, layer: str) -> int:
    """Return the number of columns of `audit_input`."""
    shape = table.layers[layer]
    if table.spec.base == "pixels" and len(shape) == 3:
        return math.prod(min(side, PIXELS_PER_SIDE) for side in shape[:2]) * shape[2]
    return feature_count(shape, input_of(table, layer, requested=None, default="pooled"))


def audit_input(table: FeatureTable, layer: str, rows: Rows) -> Floats:
    """Return the features to audit (n, D): pooled maps, or 16 × 16 pixels."""
    input = input_of(table, layer, requested=None, default="pooled")
    features = read_input(table, layer, rows, input)
    shape = table.layers[layer]
    if table.spec.base != "pixels" or len(shape) != 3:
        return features
    return shrink_images(features.reshape(len(rows), *shape), PIXELS_PER_SIDE)


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
        yield f"only the {MAX_PAIRS:,} closest near duplicates are listed"


def _count_leaked(pairs: Sequence[DuplicatePair], split: npt.NDArray[np.uint8]) -> int:
    """Return how many test images have a duplicate in train."""
    sets = duplicate_sets(pairs, len(split))
    return int(np.isin(sets[split == TEST], sets[split == TRAIN]).sum())
