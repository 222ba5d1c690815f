"""Checksums find every flipped bit and name the rows that it belongs to."""

import io
import subprocess
from pathlib import Path
from shutil import which

import h5py
import numpy as np
import pytest
from caches import flip, publish_random

from pipeline.cache.checksums import (
    InvalidChecksumsError,
    find_damage,
    read_checksums,
    write_checksums,
    write_repaired,
)
from pipeline.cache.maintenance import verify_cache


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    publish_random(tmp_path / "pets.h5")
    return tmp_path / "pets.h5"


def test_whole_file_has_no_damage(whole: Path) -> None:
    assert find_damage(whole) == []
    assert verify_cache(whole) == []


def test_every_flipped_bit_is_found(whole: Path) -> None:
    content = whole.read_bytes()
    positions = np.random.default_rng(0).choice(8 * len(content), 100, replace=False)
    for position in map(int, positions):
        flip(whole, position // 8, position % 8)
        assert find_damage(whole), f"bit {position} of {8 * len(content)}"
        whole.write_bytes(content)


def test_flipped_bit_in_features_names_layer_and_rows(whole: Path) -> None:
    with h5py.File(whole) as file:
        chunk = file["features/maps"].id.get_chunk_info(1)
    flip(whole, chunk.byte_offset + 5)
    (damage,) = find_damage(whole)
    assert damage.what == "features/maps, rows 64 to 127"


def test_flipped_bit_in_a_column_names_column_and_row(whole: Path) -> None:
    content = whole.read_bytes()
    for name in ("labels", "splits", "paths", "digests", "views"):
        with h5py.File(whole) as file:
            position = file[name].id.get_offset() + 17 * file[name].dtype.itemsize
        flip(whole, position)
        assert [damage.what for damage in find_damage(whole)] == [f"{name}, row 17"]
        whole.write_bytes(content)


def test_flipped_bit_in_hdf5s_own_structures_is_metadata(whole: Path) -> None:
    for position in (0, 200):
        flip(whole, position)
        (damage,) = find_damage(whole)
        assert damage.what == f"metadata of the file, byte {position}"
        flip(whole, position)


def test_file_without_complete_checksums_is_an_error(whole: Path) -> None:
    content = whole.read_bytes()
    cut_off = [content[:-length] for length in (1, 20, 100, 2000)]
    for data in (*cut_off, b"", b"x" * 30, b"text" * 100):
        whole.write_bytes(data)
        assert find_damage(whole)
        with pytest.raises(InvalidChecksumsError):
            read_checksums(whole)


def test_metadata_is_restored_from_the_backup_copy(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    checksums = read_checksums(whole)
    for offset, backup in checksums.metadata():
        flip(whole, offset + len(backup) // 2)
    assert find_damage(whole)
    with (tmp_path / "repaired.h5").open("wb") as target:
        write_repaired(whole, target)
    assert (tmp_path / "repaired.h5").read_bytes() == content


def test_checksums_cover_every_byte_once(whole: Path) -> None:
    checksums = read_checksums(whole)
    ranges = [(chunk.offset, chunk.length) for chunk in checksums.chunks]
    ranges += [(offset, len(backup)) for offset, backup in checksums.metadata()]
    position = 0
    for offset, length in sorted(ranges):
        assert offset == position
        position += length
    assert position == checksums.end


@pytest.mark.skipif(which("h5ls") is None, reason="needs h5ls (Debian's hdf5-tools)")
def test_h5ls_reads_the_published_file(whole: Path) -> None:
    listed = subprocess.run(["h5ls", "-r", whole], capture_output=True, text=True, check=True)
    assert "/features/maps           Dataset {150, 2, 2, 3}" in listed.stdout
    assert listed.stderr == ""


def test_any_hdf5_file_takes_checksums() -> None:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["a/b"] = np.arange(5)
        file["text"] = "x"
    for _ in range(2):  # the second replaces the first
        write_checksums(stream)
        written = stream.getvalue()
        with h5py.File(stream, "a") as file:
            assert sorted(file) == ["a", "checksums", "text"]
            assert file["a/b"][()].tolist() == [0, 1, 2, 3, 4]
        assert stream.getvalue() == written  # opening and closing it cuts nothing off
