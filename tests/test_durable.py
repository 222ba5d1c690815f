"""Files that a full disk does not take still read back whole, so that HDF5 never notices."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from pipeline import durable
from pipeline.durable import DiskFile, write_durably
from pipeline.errors import StorageError


def limit_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A disk that takes so many bytes, the last write perhaps by half."""

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = os.write(descriptor, data[:room])
        room -= taken
        return taken

    monkeypatch.setattr(durable, "os", SimpleNamespace(**{**vars(os), "write": write}))


@pytest.mark.parametrize("room", [0, 1, 7, 100, 1000])
def test_what_the_disk_did_not_take_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    limit_disk(monkeypatch, room)
    rng = np.random.default_rng(room)
    expected = bytearray()
    with DiskFile(tmp_path / "x") as file:
        for _ in range(200):
            offset, data = int(rng.integers(0, 400)), rng.bytes(int(rng.integers(1, 60)))
            file.seek(offset)
            assert file.write(data) == len(data)
            expected.extend(bytes(max(0, offset + len(data) - len(expected))))
            expected[offset : offset + len(data)] = data
            file.seek(0)
            assert file.read(10_000) == expected
        assert file.seek(0, os.SEEK_END) == len(expected)
        with pytest.raises(OSError, match="No space left"):
            file.sync()


def test_reading_beyond_the_end_gives_zeros_not_what_was_in_memory(tmp_path: Path) -> None:
    with DiskFile(tmp_path / "x") as file:
        file.write(b"abc")
        file.seek(1)
        buffer = bytearray(b"\xff" * 6)
        assert file.readinto(memoryview(buffer)) == 2
        assert buffer == b"bc\0\0\0\0"


@pytest.mark.parametrize("room", range(0, 6000, 97))
def test_hdf5_finishes_its_file_on_any_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    limit_disk(monkeypatch, room)

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

    with pytest.raises(StorageError, match="no space left"):
        write_durably(tmp_path / "x.h5", write)
    assert list(tmp_path.iterdir()) == []


def test_late_write_never_reaches_another_file(tmp_path: Path) -> None:
    file = DiskFile(tmp_path / "first")
    with file:
        file.write(b"first")
    with DiskFile(tmp_path / "second") as second:  # gets the number of the first
        file.write(b"late")
        second.write(b"second")
    assert (tmp_path / "second").read_bytes() == b"second"
