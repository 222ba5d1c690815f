"""What the disk does not take reads back whole, so that HDF5 never notices a full disk."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import file_size_limit

from pipeline.durable import DiskFile, write_durably
from pipeline.errors import StorageError

pytest.importorskip("resource", reason="limits need Unix")


@pytest.mark.parametrize("limit", [0, 7, 300])
def test_bytes_that_the_disk_does_not_take_are_read_back(tmp_path: Path, limit: int) -> None:
    rng = np.random.default_rng(limit)
    expected = bytearray()
    with file_size_limit(limit), DiskFile(tmp_path / "x") as file:
        for _ in range(200):
            offset, data = int(rng.integers(0, 400)), rng.bytes(int(rng.integers(1, 60)))
            file.seek(offset)
            assert file.write(data) == len(data)
            expected.extend(bytes(max(0, offset + len(data) - len(expected))))
            expected[offset : offset + len(data)] = data
            file.seek(0)
            assert file.read(10_000) == expected
        assert file.seek(0, os.SEEK_END) == len(expected)
        with pytest.raises(OSError, match="File too large"):
            file.sync()


def test_reading_beyond_the_end_gives_zeros(tmp_path: Path) -> None:
    with DiskFile(tmp_path / "x") as file:
        file.write(b"abc")
        file.seek(1)
        buffer = bytearray(b"\xff" * 6)
        assert file.readinto(memoryview(buffer)) == 2
        assert buffer == b"bc\0\0\0\0"


def test_hdf5_finishes_its_file_on_any_full_disk(tmp_path: Path) -> None:
    def write(stream: DiskFile) -> None:
        with h5py.File(stream, "w") as file:
            for number in range(20):
                file[f"group{number}/text"] = "text" * number
                file[f"group{number}/rows"] = np.arange(number)
                assert file[f"group{number}/text"].asstr()[()] == "text" * number
            rows = file.create_dataset("rows", (40, 5), chunks=(4, 5), compression="gzip")
            for start in range(0, 40, 4):
                rows[start : start + 4] = start
            np.testing.assert_array_equal(rows[:, 0], np.arange(40) // 4 * 4)

    for limit in range(0, 6000, 397):
        with file_size_limit(limit), pytest.raises(StorageError, match="no space left"):
            write_durably(tmp_path / "x.h5", write)
        assert list(tmp_path.iterdir()) == []


def test_late_write_never_reaches_another_file(tmp_path: Path) -> None:
    file = DiskFile(tmp_path / "first")
    with file:
        file.write(b"first")
    with DiskFile(tmp_path / "second") as second:  # gets the descriptor of the first
        file.write(b"late")
        second.write(b"second")
    assert (tmp_path / "second").read_bytes() == b"second"
