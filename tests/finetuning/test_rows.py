"""Rows on the disk: what is read is what was written, nothing is left behind."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drawing import draw_set

from pipeline.errors import StorageError
from pipeline.finetuning import rows as module
from pipeline.finetuning.rows import Rows, row_order, scratch_images, scratch_maps
from pipeline.images.decode import decode
from pipeline.images.hashes import hash_files
from pipeline.images.scan import scan_folder

MAPS = np.random.default_rng(1).random((50, 3, 3, 4), np.float32)


def test_maps_on_the_disk_are_those_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 7 * MAPS[0].nbytes)
    wanted = np.arange(1, 50, 2)
    read_at_once = []

    def read(rows: np.ndarray) -> np.ndarray:
        read_at_once.append(len(rows))
        return MAPS[rows]

    with scratch_maps(read, wanted, row_shape=(3, 3, 4), folder=tmp_path) as maps:
        np.testing.assert_array_equal(maps, MAPS[wanted])
        assert not maps.flags.writeable
    assert read_at_once == [7, 7, 7, 4]
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=MAPS.nbytes - 1))
    scratch = scratch_maps(
        partial(pytest.fail, "read"), np.arange(50), row_shape=(3, 3, 4), folder=tmp_path
    )
    with pytest.raises(StorageError, match=r"7.2 kB needed, 7.2 kB free"), scratch:
        pass


def test_batches_hold_every_row_once_in_the_order_of_the_seed() -> None:
    rows = Rows(MAPS, np.arange(50))
    order = row_order(50, seed=3, epoch=2)
    batches = list(rows.batches(order, size=20))
    assert [len(labels) for _, labels in batches] == [20, 20, 10]
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in batches]), MAPS[order])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), order)
    assert sorted(order) == list(range(50))
    assert not np.array_equal(order, row_order(50, seed=3, epoch=1))
    assert not np.array_equal(order, row_order(50, seed=4, epoch=2))


def test_every_epoch_draws_its_own_view_of_each_row() -> None:
    rows = Rows(MAPS, np.arange(50), draw=lambda each, row, epoch: each * 0 + 1000 * epoch + row)
    ((inputs, _),) = rows.batches(np.array([7, 3]), size=20, epoch=2)
    assert inputs[:, 0, 0, 0].tolist() == [2007, 2003]


def test_images_are_decoded_once_and_unreadable_ones_skipped(tmp_path: Path) -> None:
    root = draw_set(tmp_path / "drawn", per_class=3)
    (root / "plain" / "001.png").write_bytes(b"no image")
    found = scan_folder(root)
    digests, _ = hash_files(root, found.paths)
    scratch = scratch_images(root, digests, image_size=24, resize="squash", folder=tmp_path)
    with scratch as (pixels, kept, skipped):
        assert [item.path for item in skipped] == [b"plain/001.png"]
        assert len(pixels) == len(kept) == 5
        data = (root / "striped" / "002.png").read_bytes()
        np.testing.assert_array_equal(pixels[4], decode(data, image_size=24, resize="squash"))
