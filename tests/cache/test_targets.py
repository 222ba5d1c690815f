"""Caches whose images have numbers instead of a class."""

from pathlib import Path

import numpy as np
import pytest
from feature_sets import draw_columns, write_cache

from pipeline.cache.file import make_columns, read_table
from pipeline.errors import BadDataError

TARGETS = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]


def _write(path: Path, targets: list[list[float]], task: str) -> Path:
    classes = ["sun", "sea"][: len(targets[0])]
    labels = [0] * len(targets)
    columns = draw_columns(labels, targets=targets)
    return write_cache(path, labels=labels, classes=classes, columns=columns, task=task)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_targets_are_read_as_written(tmp_path: Path, task: str) -> None:
    table = read_table(_write(tmp_path / "a.h5", TARGETS, task))
    assert table.task == task
    assert np.array_equal(table.columns.targets, TARGETS)


def test_a_set_with_classes_has_no_targets(tmp_path: Path) -> None:
    table = read_table(write_cache(tmp_path / "a.h5", labels=[0, 1]))
    assert table.task == "classes"
    assert table.columns.targets.shape == (2, 0)
    assert not table.columns.groups.any()


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        ([[0.0, 2.0]], "multilabel"),
        ([[0.0, np.nan]], "regression"),
        ([[0.0, 1.0]], "unlabelled"),
        ([[0.0, 1.0]], "clustering"),
    ],
)
def test_impossible_targets_are_refused(
    tmp_path: Path, targets: list[list[float]], task: str
) -> None:
    with pytest.raises(BadDataError, match=r"is refused: its (targets|task)"):
        read_table(_write(tmp_path / "a.h5", targets, task))


def test_rows_of_gone_images_have_no_number() -> None:
    columns = make_columns(
        labels=[0, -1],
        splits=[0, 0],
        paths=[b"a", b"b"],
        digests=[bytes(32), bytes(32)],
        views=[0, 0],
        targets=[(1.5,), ()],
        groups=[b"a", b""],
    )
    assert columns.targets[0] == 1.5
    assert np.isnan(columns.targets[1])
    assert columns.equals(columns.take(np.array([0, 1])))
