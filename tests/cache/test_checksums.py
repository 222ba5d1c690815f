"""The seal finds every flipped bit and says what it belongs to."""

import io
import os
import subprocess
from pathlib import Path
from shutil import which

import h5py
import numpy as np
import pytest
from caches import publish_random

from pipeline.cache.checksums import (
    InvalidChecksumsError,
    find_damage,
    read_checksums,
    write_checksums,
    write_repaired,
)
from pipeline.cache.file import read_table
from pipeline.cache.maintenance import verify_cache


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    publish_random(tmp_path / "pets.h5")
    return tmp_path / "pets.h5"


def test_whole_file_has_no_damage(whole: Path) -> None:
    assert find_damage(whole) == []
    assert verify_cache(whole) == []


def test_each_of_500_flipped_bits_is_found(whole: Path) -> None:
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    places = rng.choice(8 * len(content), 500, replace=False)
    for place in places:
        flip(whole, int(place) // 8, int(place) % 8)
        assert find_damage(whole), f"bit {place} of {8 * len(content)}"
        whole.write_bytes(content)


def test_flipped_bit_in_features_names_layer_and_rows(whole: Path) -> None:
    with h5py.File(whole) as file:
        chunk = file["features/maps"].id.get_chunk_info(1)
    flip(whole, chunk.byte_offset + 5)
    (damage,) = find_damage(whole)
    assert damage.what == "features/maps, rows 64 to 127"


@pytest.mark.parametrize("name", ["labels", "splits", "paths", "digests", "views"])
def test_flipped_bit_in_a_column_names_column_and_row(whole: Path, name: str) -> None:
    with h5py.File(whole) as file:
        column = file[name]
        position = column.id.get_offset() + 17 * column.dtype.itemsize
    flip(whole, position)
    assert [damage.what for damage in find_damage(whole)] == [f"{name}, row 17"]


@pytest.mark.parametrize("position", [0, 8, 60, 200])
def test_flipped_bit_in_hdf5s_own_structures_is_metadata(whole: Path, position: int) -> None:
    flip(whole, position)
    (damage,) = find_damage(whole)
    assert damage.what == f"metadata of the file, byte {position}"


@pytest.mark.parametrize("cut", [1, 20, 100, 2000])
def test_cut_file_is_found(whole: Path, cut: int) -> None:
    os.truncate(whole, whole.stat().st_size - cut)
    assert find_damage(whole)
    with pytest.raises(InvalidChecksumsError):
        read_checksums(whole)


@pytest.mark.parametrize("content", [b"", b"x" * 30, b"text" * 100])
def test_file_without_a_seal_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(InvalidChecksumsError):
        read_checksums(tmp_path / "x.h5")


def test_metadata_is_mended_from_the_spare_copy(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    seal = read_checksums(whole)
    for offset, spare in seal.metadata():
        flip(whole, offset + len(spare) // 2)
    assert find_damage(whole)
    with (tmp_path / "mended.h5").open("wb") as target:
        write_repaired(whole, target)
    assert (tmp_path / "mended.h5").read_bytes() == content


def test_seal_covers_every_byte_once(whole: Path) -> None:
    seal = read_checksums(whole)
    stretches = [(chunk.offset, chunk.length) for chunk in seal.chunks]
    stretches += [(offset, len(spare)) for offset, spare in seal.metadata()]
    position = 0
    for offset, length in sorted(stretches):
        assert offset == position
        position += length
    assert position == seal.end


def test_seal_does_not_disturb_readers_of_hdf5(whole: Path) -> None:
    with h5py.File(whole) as file:
        assert file["features/maps"].shape == (150, 2, 2, 3)
    assert len(read_table(whole)) == 150


@pytest.mark.skipif(which("h5ls") is None, reason="needs h5ls (Debian's hdf5-tools)")
def test_h5ls_reads_the_published_file(whole: Path) -> None:
    listed = subprocess.run(["h5ls", "-r", whole], capture_output=True, text=True, check=True)
    assert "/features/maps           Dataset {150, 2, 2, 3}" in listed.stdout
    assert listed.stderr == ""


def test_any_hdf5_file_can_be_sealed() -> None:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["a/b"] = np.arange(5)
        file["text"] = "x"
    before = stream.getvalue()
    write_checksums(stream)
    assert stream.getvalue().startswith(before)
