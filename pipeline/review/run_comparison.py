"""What differs between two runs of the same images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.images.scan import TEST
from pipeline.review.review import Review
from pipeline.text import counted, printable

SAME_ROW = ("head", "input", "layer", "fingerprint")


@dataclass(frozen=True, kw_only=True)
class RowChange:
    """A head's rows of results.json in the old and the new run; None if it is in one run only."""

    head: str
    input: str
    layer: str
    fingerprint: str
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class ImageChange:
    """An image whose label, prediction or correctness differs.

    Classes are names; None for no prediction, or for the label of an image that is not in the run.

    Attributes
    ----------
    row : in the old review's table, for its picture.
    was_correct, is_correct : by the label of each run; None without prediction.
    """

    row: int
    path: bytes
    digest: bytes
    old_label: str | None
    new_label: str | None
    old_predicted: str | None
    new_predicted: str | None
    was_correct: bool | None
    is_correct: bool | None


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Two runs side by side.

    Attributes
    ----------
    rows : in the order of the new table, then those of the old one only.
    images : of the old run, in the order of its table; the recommended heads' predictions.
    tested : number of images that both recommended heads are tested on.
    old_accuracy, new_accuracy : of these images, with the new labels; NaN for none.
    notices : one line each.
    """

    rows: tuple[RowChange, ...]
    images: tuple[ImageChange, ...]
    tested: int
    old_accuracy: float
    new_accuracy: float
    notices: tuple[str, ...] = ()


def compare_runs(old: Review, new: Review) -> RunComparison:
    """Compare the rows of two runs, and their recommended heads image by image.

    An image is found by its digest and path.
    """
    columns = new.table.columns
    keys = zip(columns.digests, columns.paths, strict=True)
    row_of = {(digest.tobytes(), bytes(path)): row for row, (digest, path) in enumerate(keys)}
    images, common = [], []
    columns = old.table.columns
    for row, (digest, path) in enumerate(zip(columns.digests, columns.paths, strict=True)):
        key = digest.tobytes(), bytes(path)
        other = row_of.get(key)
        before = _classes_at(old, row)
        after = (None, None) if other is None else _classes_at(new, other)
        if other is not None and None not in (before[1], after[1]):
            common.append((row, other))
        elif other is not None and before[0] == after[0]:
            continue  # only one of the runs has a prediction
        if before != after:
            change = ImageChange(
                row=row,
                path=key[1],
                digest=key[0],
                old_label=before[0],
                new_label=after[0],
                old_predicted=before[1],
                new_predicted=after[1],
                was_correct=None if before[1] is None else before[0] == before[1],
                is_correct=None if after[1] is None else after[0] == after[1],
            )
            images.append(change)
    tests = [(i, j) for i, j in common if old.splits[i] == new.splits[j] == TEST]
    labels = [new.classes[new.table.columns.labels[j]] for _, j in tests]
    return RunComparison(
        rows=tuple(_compare_rows(old, new)),
        images=tuple(images),
        tested=len(tests),
        old_accuracy=_share_of([old.classes[old.predicted[i]] for i, _ in tests], labels),
        new_accuracy=_share_of([new.classes[new.predicted[j]] for _, j in tests], labels),
        notices=(*old.notices, *new.notices, *_notices(old, tests)),
    )


def _classes_at(review: Review, row: int) -> tuple[str, str | None]:
    """Return the label and the predicted class of a row."""
    predicted = int(review.predicted[row])
    label = review.classes[review.table.columns.labels[row]]
    return label, None if predicted < 0 else review.classes[predicted]


def _share_of(predicted: list[str], labels: list[str]) -> float:
    return float(np.mean(np.array(predicted) == labels)) if labels else float("nan")


def _notices(old: Review, tests: list[tuple[int, int]]) -> list[str]:
    count = np.count_nonzero((old.splits == TEST) & (old.predicted >= 0))
    if len(tests) == count:
        return []
    return [
        f"the runs share {counted(len(tests), 'test image')} of {count:,} in {printable(old.run)}"
    ]


def _compare_rows(old: Review, new: Review) -> list[RowChange]:
    before, after = (
        {tuple(str(row[name]) for name in SAME_ROW): row for row in review.rows}
        for review in (old, new)
    )
    return [
        RowChange(**dict(zip(SAME_ROW, key, strict=True)), old=before.get(key), new=after.get(key))
        for key in [*after, *(key for key in before if key not in after)]
    ]
