"""Look into the data with features that are cached anyway: duplicates and likely label errors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.cache.file import FeatureTable
from pipeline.evaluation.duplicates import (
    MOST_PAIRS,
    MOST_ROWS,
    DuplicatePair,
    find_duplicates,
    linked_rows,
)
from pipeline.evaluation.learning_curve import LearningCurve, learning_curve
from pipeline.evaluation.rows import input_of, read_input
from pipeline.evaluation.splits import TEST, TRAIN, Splits
from pipeline.evaluation.suspects import Suspect, find_suspects
from pipeline.text import counted

PIXELS_A_SIDE = 16  # images as features are averaged to this: a crop moves edges by less

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """Duplicates, likely label errors and the learning curve of one cached layer.

    Row numbers are of ``table``. Of ``duplicates`` those across splits come first, of ``suspects``
    the most suspicious; ``learning_curve`` is None where there are too few images.
    """

    table: FeatureTable
    layer: str
    duplicates: tuple[DuplicatePair, ...]
    suspects: tuple[Suspect, ...]
    learning_curve: LearningCurve | None


def audit_features(
    table: FeatureTable,
    layer: str,
    *,
    splits: Splits,
    folds: Sequence[Rows] = (),
    seed: int = 0,
) -> tuple[AuditResult, tuple[str, ...]]:
    """Find duplicates and likely label errors in the splits' rows, draw the learning curve.

    Returns the findings, and notices of a line each.

    Parameters
    ----------
    table : of images as they are, without augmented views, after label edits.
    folds : the test rows of each, where every row is tested once.
    """
    side = np.zeros(len(table), np.uint8)  # the split number of each row, 0 for rows in none
    for number, part in enumerate((splits.train, splits.validation, splits.test), TRAIN):
        side[part] = number
    rows = np.flatnonzero(side > 0)
    labels, side = table.columns.labels[rows], side[rows]
    class_count = len(table.classes)
    fold = np.zeros(len(table), np.int64)
    for number, tested in enumerate(folds):
        fold[tested] = number
    # One thread: the BLAS of NumPy and that of SciPy wait for each other's threads in busy loops.
    with threadpool_limits(limits=1, user_api="blas"):
        chosen = audit_input(table, layer, rows)
        pairs = find_duplicates(
            chosen, table.columns.digests[rows], side, folds=fold[rows] if folds else None
        )
        suspects = find_suspects(chosen, labels, linked_rows(pairs, len(rows)), class_count, seed)
        curve = learning_curve(chosen, labels, side, class_count=class_count, seed=seed)
    findings = AuditResult(
        table=table,
        layer=layer,
        duplicates=tuple(
            replace(pair, first=int(rows[pair.first]), second=int(rows[pair.second]))
            for pair in pairs
        ),
        suspects=tuple(replace(suspect, row=int(rows[suspect.row])) for suspect in suspects),
        learning_curve=curve,
    )
    return findings, tuple(_notices(pairs, side, in_folds=bool(folds)))


def audit_input(table: FeatureTable, layer: str, rows: Rows) -> Floats:
    """Features to look into (n, D); of images themselves, 16 × 16 pixels."""
    features = read_input(table, layer, rows, input_of(table, layer, wanted=None, default="pooled"))
    shape = table.layers[layer]
    if table.spec.base != "pixels" or len(shape) != 3 or max(shape[:2]) <= PIXELS_A_SIDE:
        return features
    images: npt.NDArray[Any] = features.reshape(len(rows), *shape)
    for axis in (1, 2):
        edges = np.linspace(0, images.shape[axis], PIXELS_A_SIDE + 1).round().astype(int)
        sums = np.add.reduceat(images, edges[:-1], axis=axis)
        widths = np.diff(edges).astype(np.float32)
        images = sums / np.expand_dims(widths, tuple({0, 1, 2, 3} - {axis}))
    return images.reshape(len(rows), -1)


def _notices(
    pairs: Sequence[DuplicatePair], side: npt.NDArray[np.uint8], *, in_folds: bool
) -> Iterator[str]:
    exact = [pair for pair in pairs if pair.exact]
    groups = [linked_rows(each, len(side)) for each in (exact, pairs)]
    of_files, leaked = (
        int(np.isin(each[side == TEST], each[side == TRAIN]).sum()) for each in groups
    )
    files_across, across = (sum(pair.across for pair in each) for each in (exact, pairs))
    found = ""
    if leaked and not in_folds:
        found = counted(leaked, "test image also stands", "test images also stand") + " in train"
        files, near = of_files, leaked - of_files
    elif across:
        found = counted(across, "pair of duplicates stands", "pairs of duplicates stand")
        found += " in two folds" if in_folds else " in two splits"
        files, near = files_across, across - files_across
    if found:
        # of near duplicates nothing is claimed: in small sets some are only alike
        inflates = "exact ones inflate every number; " if files and (leaked or in_folds) else ""
        yield f"{found} (exact: {files:,}, near: {near:,}): {inflates}look at them in report.html"
    if len(pairs) - len(exact) >= MOST_PAIRS:
        yield f"only the {MOST_PAIRS:,} closest near duplicates are listed"
    if len(side) > MOST_ROWS:
        yield f"of more than {MOST_ROWS:,} images, near duplicates are sought only of test images"
