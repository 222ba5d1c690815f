"""Scratch arrays and batches."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StorageError
from pipeline.finetuning import rows as module
from pipeline.finetuning.rows import Rows, row_order, scratch_maps

MAPS = np.random.default_rng(1).random((50, 3, 3, 4), np.float32)


def test_maps_on_disk_equal_those_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 7 * MAPS[0].nbytes)
    rows = np.arange(1, 50, 2)
    read_at_once = []

    def read(rows: np.ndarray) -> np.ndarray:
        read_at_once.append(len(rows))
        return MAPS[rows]

    with scratch_maps(read, rows, row_shape=(3, 3, 4), folder=tmp_path) as maps:
        np.testing.assert_array_equal(maps, MAPS[rows])
        assert not maps.flags.writeable
    assert read_at_once == [7, 7, 7, 4]
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_space_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    read = partial(pytest.fail, "read")
    scratch = scratch_maps(read, np.arange(50), row_shape=(10**7, 10**7), folder=tmp_path)
    with pytest.raises(StorageError, match=r"training needs .* of disk space; found "), scratch:
        pass


def test_batches_contain_every_row_once_in_the_order_of_the_seed() -> None:
    rows = Rows(MAPS, np.arange(50))
    order = row_order(50, seed=3, epoch=2)
    batches = list(rows.batches(order, size=20))
    assert [len(labels) for _, labels in batches] == [20, 20, 10]
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in batches]), MAPS[order])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), order)
    assert sorted(order) == list(range(50))
    assert not np.array_equal(order, row_order(50, seed=3, epoch=1))
    assert not np.array_equal(order, row_order(50, seed=4, epoch=2))
