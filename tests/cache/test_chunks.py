"""HDF5 reads and checks the chunks that this project packs."""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.cache import chunks
from pipeline.cache.chunks import fletcher32, write_chunk
from pipeline.cache.file import create_features

RANDOM = np.random.default_rng(0)
DENSE = RANDOM.normal(size=(150, 3, 3, 20)).astype("f4")
SPARSE = np.maximum(RANDOM.normal(-1, 1, DENSE.shape), 0).astype("f4")
NAMES = {"dense": DENSE, "sparse": SPARSE, "zeros": np.zeros_like(DENSE), "few": SPARSE[:5]}


def write_rows(rows: npt.NDArray[Any]) -> io.BytesIO:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        dataset = create_features(file, "x", rows.shape[1:], len(rows), str(rows.dtype))
        for start in range(0, len(rows), dataset.chunks[0]):
            write_chunk(dataset, start, rows[start : start + dataset.chunks[0]])
    return buffer


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_hdf5_reads_written_chunks(name: str, dtype: str) -> None:
    rows = NAMES[name].astype(dtype)
    with h5py.File(write_rows(rows), "r") as file:
        dataset = file["features/x"]
        assert (dataset.compression, dataset.fletcher32) == ("gzip", True)
        np.testing.assert_array_equal(dataset[()], rows)


def test_incompressible_chunk_is_stored_uncompressed() -> None:
    sizes = {}
    for name in ("dense", "sparse"):
        with h5py.File(write_rows(NAMES[name]), "r") as file:
            dataset = file["features/x"]
            first = dataset.id.get_chunk_info(0)
            sizes[name] = first.size / (64 * DENSE[0].nbytes)
            assert first.filter_mask == (name == "dense")
    assert sizes["sparse"] < 0.4
    assert 1 < sizes["dense"] < 1.001


@pytest.mark.parametrize("size", [1, 2, 3, 360, 65_535, 65_536, 65_537, 400_001])
def test_checksum_equals_hdf5s(size: int) -> None:
    assert fletcher32(b"") == 0
    for data in (
        RANDOM.integers(0, 256, size).astype(np.uint8),
        np.full(size, 255, np.uint8),
        np.zeros(size, np.uint8),
    ):
        with h5py.File(io.BytesIO(), "w") as file:
            dataset = file.create_dataset("x", data=data, chunks=data.shape, fletcher32=True)
            _, stored = dataset.id.read_direct_chunk((0,))
        assert stored[:-4] == data.tobytes()
        assert int.from_bytes(stored[-4:], "little") == fletcher32(data.data)


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_hdf5_finds_a_flipped_bit(name: str) -> None:
    buffer = write_rows(NAMES[name])
    with h5py.File(buffer, "r") as file:
        position = file["features/x"].id.get_chunk_info(0).byte_offset + 1000
    content = bytearray(buffer.getvalue())
    content[position] ^= 1
    with h5py.File(io.BytesIO(content), "r") as file, pytest.raises(OSError, match="filter"):
        file["features/x"][0]


def test_few_dense_rows_among_zeros_are_compressed() -> None:
    rows = np.zeros_like(DENSE[:64])
    rows[:4] = DENSE[:4]
    with h5py.File(write_rows(rows), "r") as file:
        assert file["features/x"].id.get_chunk_info(0).filter_mask == 0
        np.testing.assert_array_equal(file["features/x"][()], rows)


def test_rows_that_are_not_a_chunk_are_refused() -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        dataset = create_features(file, "x", (3,), 150, "float16")
        for start, rows in ((3, DENSE[:5, 0, 0, :3]), (0, DENSE[:65, 0, 0, :3]), (0, DENSE[:5])):
            with pytest.raises(ValueError, match="are not a chunk"):
                write_chunk(dataset, start, rows)
        write_chunk(dataset, 0, DENSE[:64, 0, 0, :3])  # converted to the dtype of the dataset
    with h5py.File(buffer, "r") as file:
        expected = DENSE[:64, 0, 0, :3].astype("f2")
        np.testing.assert_array_equal(file["features/x"][:64], expected)


def test_without_the_fast_library_the_format_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "compress", zlib.compress)
    with h5py.File(write_rows(SPARSE), "r") as file:
        np.testing.assert_array_equal(file["features/x"][()], SPARSE)


def test_threads_write_chunks_at_the_same_time() -> None:
    """HDF5 is not thread-safe, and h5py before 3.16 does not lock these calls."""
    expected = write_rows(SPARSE).getvalue()
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda _: write_rows(SPARSE).getvalue(), range(400)))
    assert set(written) == {expected}
