"""A published file is read back as written, also by plain h5py; other files are refused."""

import json
from collections.abc import Collection
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import file_size_limit, flip, publish_random
from feature_sets import SPEC

from pipeline.cache.file import (
    cache_file,
    read_all_rows,
    read_rows,
    read_table,
)
from pipeline.errors import BadDataError, BusyError, NoInputError, StorageError


def test_published_rows_are_read_back(tmp_path: Path) -> None:
    arrays = publish_random(tmp_path / "pets.h5")
    table = read_table(tmp_path / "pets.h5")
    assert table.classes == ("고양이", "dog")
    assert table.spec == SPEC
    assert table.layers == {"maps": (2, 2, 3), "maps:avg": (3,)}
    assert table.columns.paths[7] == b"a/7-\xff.jpg"
    assert table.columns.row_keys()[0].digest == bytes(32)
    for layer, values in arrays.items():
        np.testing.assert_array_equal(table.features(layer), values)


def test_plain_h5py_reads_the_documented_layout(tmp_path: Path) -> None:
    arrays = publish_random(tmp_path / "pets.h5")
    with h5py.File(tmp_path / "pets.h5") as file:
        features = file["features/maps"]
        assert (features.compression, features.compression_opts) == ("gzip", 1)
        assert features.fletcher32
        assert not features.shuffle
        assert features.chunks == (64, 2, 2, 3)
        np.testing.assert_array_equal(features[()], arrays["maps"])
        assert file["labels"].dtype == np.int64
        assert file["splits"].dtype == np.uint8
        assert file["views"].dtype == np.int16
        assert file["digests"].dtype == np.dtype("V32")
        assert file["classes"].asstr()[()].tolist() == ["고양이", "dog"]
        assert json.loads(file["spec"].asstr()[()])["spec"]["base"] == "vgg16"


def test_rows_are_read_in_the_requested_order(tmp_path: Path) -> None:
    arrays = publish_random(tmp_path / "pets.h5")
    rows = np.random.default_rng(0).permutation(150)[:40]
    table = read_table(tmp_path / "pets.h5")
    np.testing.assert_array_equal(table.features("maps", rows), arrays["maps"][rows])
    with h5py.File(tmp_path / "pets.h5") as file:
        assert read_rows(file["features/maps"], np.array([], int)).shape == (0, 2, 2, 3)


def test_rows_of_gone_images_are_hidden(tmp_path: Path) -> None:
    arrays = publish_random(tmp_path / "pets.h5", gone=10)
    table = read_table(tmp_path / "pets.h5")
    assert len(table) == 140
    np.testing.assert_array_equal(table.features("maps"), arrays["maps"][:140])
    assert len(read_all_rows(tmp_path / "pets.h5")) == 150


def test_missing_file_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"pipeline\.extract first"):
        read_table(tmp_path / "nowhere.h5")


def test_file_that_is_not_hdf5_is_refused_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    for content in (b"", b"plain text", b"\x89HDF\r\n\x1a\n" + bytes(90)):
        path.write_bytes(content)
        with pytest.raises(BadDataError, match="not a feature cache"):
            read_table(path)
        assert path.read_bytes() == content


def test_flipped_bit_in_a_chunk_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pets.h5"
    publish_random(path)
    with h5py.File(path) as file:
        chunk = file["features/maps"].id.get_chunk_info(1)
    flip(path, chunk.byte_offset + chunk.size // 2)
    table = read_table(path)
    with pytest.raises(BadDataError, match=r"is damaged.*: python -m"):
        table.features("maps")


def test_full_disk_while_publishing_leaves_nothing(tmp_path: Path) -> None:
    publish_random(tmp_path / "before.h5")
    limit = (tmp_path / "source.h5").stat().st_size  # the published file is larger
    with file_size_limit(limit), pytest.raises(StorageError, match=r"no space left .* needed"):
        publish_random(tmp_path / "pets.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before.h5", "source.h5"]


def file_of(folder: Path, root: Path, digests: Collection[bytes] = (bytes(32),)) -> Path:
    """The cache file of a set called pets that contains the first image of `publish_random`."""
    return cache_file(folder, set_name="pets", root=str(root), spec=SPEC, digests=digests)


def test_two_folders_of_one_name_never_share_a_file(tmp_path: Path) -> None:
    here, there = tmp_path / "a" / "pets", tmp_path / "b" / "pets"
    here.mkdir(parents=True)
    there.mkdir(parents=True)
    first = file_of(tmp_path, here, digests=set())
    publish_random(first, root=str(here))
    assert first.name == f"pets-vgg16-{SPEC.fingerprint}.h5"
    assert file_of(tmp_path, here) == first
    assert file_of(tmp_path, there) != first


def test_moved_folder_keeps_its_cache_but_another_of_its_name_does_not(tmp_path: Path) -> None:
    first = file_of(tmp_path, tmp_path / "old" / "pets")
    publish_random(first)  # its recorded root, /photos/pets, does not exist
    assert file_of(tmp_path, tmp_path / "pets") == first
    assert file_of(tmp_path, tmp_path, digests={b"x" * 32}) != first


def test_table_of_a_file_that_was_written_again_is_not_read(tmp_path: Path) -> None:
    publish_random(tmp_path / "pets.h5")
    table = read_table(tmp_path / "pets.h5")
    publish_random(tmp_path / "pets.h5", rows=149)
    with pytest.raises(BusyError, match="written again"):
        table.features("maps")
