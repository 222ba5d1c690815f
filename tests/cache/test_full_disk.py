"""A full disk, and a limit on the size of files: one line, nothing lost, and room lets it go on."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import assert_one_line, run_command
from synthetic_images import draw

from pipeline.api import extract_features
from pipeline.cache import compute
from pipeline.cache.checksums import find_damage
from pipeline.cache.file import read_table, rows_per_chunk
from pipeline.errors import StorageError

resource = pytest.importorskip("resource", reason="limits are set as Unix does")

DISK_BYTES = 5 * 2**20
IMAGES = 200
IMAGE_SIZE = 128
ROWS_PER_SHARD = rows_per_chunk((IMAGE_SIZE, IMAGE_SIZE, 3), "float32")  # about 3 MB of noise


@pytest.fixture
def noise_set(tmp_path: Path) -> Path:
    """Images of noise in two classes, 15 MB as features."""
    for number in range(IMAGES):
        folder = tmp_path / "noise" / ("plain", "striped")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = draw(number, stripes=bool(number % 2), size=(IMAGE_SIZE, IMAGE_SIZE))
        picture.save(folder / f"{number:03d}.bmp")
    return tmp_path / "noise"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 5 MB; needs the right to mount one."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    try:
        mounted = mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
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


def assert_uninterrupted(path: Path, root: Path, tmp_path: Path) -> None:
    """The file holds what a run that met no obstacle writes."""
    whole = read_table(Path(extract(root, tmp_path / "roomy").stdout.splitlines()[-1]))
    table = read_table(path)
    np.testing.assert_array_equal(table.features("pixels"), whole.features("pixels"))
    assert table.columns.equals(whole.columns)
    assert not find_damage(path)


def assert_says_bytes(line: str) -> None:
    """Bytes needed and free are in the message."""
    assert re.search(r"\d (bytes|kB|MB) needed, [\d.]+ (bytes|kB|MB|GB|TB) free", line), line


def test_full_disk_is_one_line_and_loses_no_committed_batch(
    noise_set: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = assert_one_line(extract(noise_set, small_disk, code=74))
    assert_says_bytes(line)
    assert "too little room" in line
    assert not list(small_disk.glob("*.parts/*"))  # told before the work

    # and where another process takes the room meanwhile
    with monkeypatch.context() as patch:
        patch.setattr(compute, "check_disk_space", lambda *_: None)
        with pytest.raises(StorageError, match=r"full.* needed, .* free"):
            extract_features(noise_set, base="pixels", image_size=IMAGE_SIZE, cache_dir=small_disk)
    committed = sorted(small_disk.glob("*.parts/*.h5"))
    assert committed
    assert [find_damage(path) for path in committed] == [[]] * len(committed)
    assert not list(small_disk.rglob("*.tmp"))

    again = assert_one_line(extract(noise_set, small_disk, code=74))  # it is as small
    assert_says_bytes(again)
    assert sorted(small_disk.glob("*.parts/*.h5")) == committed

    assert mount("-o", "remount,size=1g", small_disk).returncode == 0
    finished = extract(noise_set, small_disk)
    assert f"({IMAGES - ROWS_PER_SHARD * len(committed)} computed)" in finished.stdout
    assert_uninterrupted(Path(finished.stdout.splitlines()[-1]), noise_set, tmp_path)


def test_limit_on_the_size_of_files_is_one_line_and_loses_nothing(
    noise_set: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    # the shards fit, the file that they make together does not
    finished = limited_extract(noise_set, cache, limit=6 * 2**20)
    assert finished.returncode == 74, finished.stderr
    line = assert_one_line(finished)
    assert_says_bytes(line)
    assert "too large for this file system or limit" in line
    shards = sorted(cache.glob("*.parts/*.h5"))
    assert len(shards) == math.ceil(IMAGES / ROWS_PER_SHARD)
    assert [find_damage(path) for path in shards] == [[]] * len(shards)
    assert not list(cache.glob("*.h5"))
    assert not list(cache.rglob("*.tmp"))

    finished = extract(noise_set, cache)
    assert "all from the cache" in finished.stdout
    assert_uninterrupted(Path(finished.stdout.splitlines()[-1]), noise_set, tmp_path)


def test_limit_below_one_batch_is_one_line(noise_set: Path, tmp_path: Path) -> None:
    finished = limited_extract(noise_set, tmp_path / "cache", limit=2**20)
    assert finished.returncode == 74, finished.stderr
    assert_says_bytes(assert_one_line(finished))


def limited_extract(root: Path, cache: Path, *, limit: int) -> subprocess.CompletedProcess[str]:
    """The real command where no file may grow beyond a limit, as after ``ulimit -f``."""
    command = [sys.executable, "-m", "pipeline.extract", root, "--base", "pixels"]
    return subprocess.run(
        [*command, "--image-size", str(IMAGE_SIZE), "--cache-dir", cache],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
