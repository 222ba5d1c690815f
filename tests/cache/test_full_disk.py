"""A full disk or a limit on file sizes ends a run with one line; the next run loses nothing."""

import contextlib
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import file_size_limit
from command import assert_one_line, run_command
from synthetic_images import draw

from pipeline.api import extract_features
from pipeline.cache.checksums import find_damage
from pipeline.cache.file import FeatureTable, read_table, rows_per_chunk
from pipeline.errors import StorageError

pytest.importorskip("resource", reason="limits need Unix")

IMAGES = 100
IMAGE_SIZE = 128
ROWS_PER_SHARD = rows_per_chunk((IMAGE_SIZE, IMAGE_SIZE, 3), "float32")  # about 3 MB of noise
SHARDS = math.ceil(IMAGES / ROWS_PER_SHARD)


@pytest.fixture(scope="module")
def noise_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise in two classes, 7 MB as features."""
    root = tmp_path_factory.mktemp("images") / "noise"
    for number in range(IMAGES):
        folder = root / ("plain", "striped")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = draw(number, stripes=bool(number % 2), size=(IMAGE_SIZE, IMAGE_SIZE))
        picture.save(folder / f"{number:03d}.bmp")
    return root


@pytest.fixture(scope="module")
def uninterrupted(noise_set: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureTable:
    cache = tmp_path_factory.mktemp("uninterrupted")
    return extract_features(noise_set, base="pixels", image_size=IMAGE_SIZE, cache_dir=cache).table


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 5 MB; skips the test without the right to mount one."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    try:
        mounted = mount("-t", "tmpfs", "-o", "size=5m", "tmpfs", folder)
    except FileNotFoundError:
        pytest.skip("needs the command mount")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def mount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


def extract(root: Path, cache: Path, *, code: int = 0) -> subprocess.CompletedProcess[str]:
    return run_command(
        "extract", root, "--base", "pixels", "--image-size", str(IMAGE_SIZE),
        "--cache-dir", cache, check=code,
    )  # fmt: skip


def assert_same_rows(path: Path, expected: FeatureTable) -> None:
    table = read_table(path)
    np.testing.assert_array_equal(table.features("pixels"), expected.features("pixels"))
    assert table.columns.equals(expected.columns)
    assert not find_damage(path)


def assert_names_bytes(line: str) -> None:
    """The message contains the bytes needed and free."""
    assert re.search(r"\d (bytes|kB|MB) needed, [\d.]+ (bytes|kB|MB|GB|TB) free", line), line


def whole_shards(cache: Path) -> list[Path]:
    """The committed shards; AssertionError for a damaged one or a temporary file."""
    assert not list(cache.rglob("*.tmp"))
    shards = sorted(cache.glob("*.parts/*.h5"))
    assert [find_damage(path) for path in shards] == [[]] * len(shards)
    return shards


def test_full_disk_is_one_line_and_loses_no_committed_row(
    noise_set: Path, small_disk: Path, uninterrupted: FeatureTable
) -> None:
    line = assert_one_line(extract(noise_set, small_disk, code=74))
    assert_names_bytes(line)
    assert "too little space" in line
    assert "free some, or use --pooling avg or --dtype float16" in line  # it has no views
    assert not whole_shards(small_disk)  # refused before the work

    assert mount("-o", "remount,size=40m", small_disk).returncode == 0
    ballast = small_disk / "of another process"

    def fill_disk(done: int, total: int) -> None:
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while list(small_disk.rglob("*.h5")):  # once a row is committed
                file.write(bytes(2**16))

    with pytest.raises(StorageError, match=r"full.* needed, .* free"):
        extract_features(
            noise_set, base="pixels", image_size=IMAGE_SIZE, cache_dir=small_disk,
            progress=fill_disk,
        )  # fmt: skip
    committed = whole_shards(small_disk)
    assert 0 < len(committed) <= SHARDS
    committed_rows = 0
    for shard in committed:
        with h5py.File(shard) as file:
            committed_rows += len(file["digests"])

    ballast.unlink()
    finished = extract(noise_set, small_disk)
    computed = IMAGES - committed_rows
    assert (f"({computed} computed)" if computed else "all from the cache") in finished.stdout
    assert_same_rows(Path(finished.stdout.splitlines()[-1]), uninterrupted)


def test_limit_on_file_sizes_is_one_line_and_loses_no_committed_row(
    noise_set: Path, tmp_path: Path, uninterrupted: FeatureTable
) -> None:
    cache = tmp_path / "cache"
    for limit, shard_count in (
        (2**20, 0),  # below one shard
        (6 * 2**20, SHARDS),  # above one shard, below the file that they make
    ):
        with file_size_limit(limit):
            line = assert_one_line(extract(noise_set, cache, code=74))
        assert_names_bytes(line)
        assert "too large for this file system or limit" in line
        assert len(whole_shards(cache)) == shard_count
        assert not list(cache.glob("*.h5"))

    finished = extract(noise_set, cache)
    assert "all from the cache" in finished.stdout
    assert_same_rows(Path(finished.stdout.splitlines()[-1]), uninterrupted)
