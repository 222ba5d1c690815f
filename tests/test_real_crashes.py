"""The command is killed at random, and reads thousands of damaged files. Slow."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import run_command
from synthetic_images import draw

from pipeline import extract_features, load_features
from pipeline.cache.checksums import find_damage

pytestmark = pytest.mark.slow

KILLS = 30


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.extract", *map(str, arguments)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)


@pytest.mark.real_data
def test_random_kills_lose_no_committed_rows(assets: Path) -> None:
    root = assets / "data" / "cats_and_dogs"
    options = ["--base", "mobilenet_v2", "--image-size", "96", "--limit-per-class", "120"]
    options += ["--weights", "random", "--engine", "tensorflow"]  # slow enough to kill
    undisturbed = Path("undisturbed.h5")
    run_command("extract", root, *options, "--out", undisturbed)
    rng = random.Random(0)
    out = Path("killed/cache.h5")
    started = time.monotonic()
    probe = start(root, *options, "--out", "probe/cache.h5")
    probe.wait()
    run_seconds = time.monotonic() - started
    committed: set[str] = set()
    for _ in range(KILLS):
        process = start(root, *options, "--out", out)
        time.sleep(rng.uniform(0.1, 0.9) * run_seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shards = {path.name for path in out.with_suffix(".parts").glob("*.h5")}
        assert out.exists() or committed <= shards, "a committed shard is missing"
        committed = shards
        for name in shards:
            assert find_damage(out.with_suffix(".parts") / name) == []
        if out.exists():
            assert find_damage(out) == []
            if rng.random() < 0.5:  # start again with an empty cache
                out.unlink()
                committed = set()
    run_command("extract", root, *options, "--out", out)
    table, expected = load_features(out), load_features(undisturbed)
    assert table.columns.equals(expected.columns)
    for layer in expected.layers:
        np.testing.assert_array_equal(table.features(layer), expected.features(layer))


def resident_megabytes(*arguments: str | Path) -> float:
    """Return the peak of a command's resident memory in MB."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, capture_output=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    command = [sys.executable, "-m", "pipeline.extract", *map(str, arguments)]
    finished = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    return int(finished.stdout) / 1000


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """500 and 20,000 synthetic images; without a network, whose memory is constant."""
    pictures = [draw(seed, stripes=seed % 2 == 1) for seed in range(100)]
    peaks = []
    for count in (500, 20_000):
        root = tmp_path / f"set{count}"
        for name in ("plain", "striped"):
            (root / name).mkdir(parents=True)
        for number in range(count):
            picture = pictures[number % len(pictures)].copy()
            picture.putpixel((0, 0), (number % 256, number // 256, 7))
            name = "striped" if number % 2 else "plain"
            picture.save(root / name / f"{number}.png", compress_level=1)
        peaks.append(resident_megabytes(root, "--base", "pixels"))
    print(f"peak memory: {peaks[0]:.0f} MB for 500 images, {peaks[1]:.0f} MB for 20,000")
    assert peaks[1] < 1200
    assert peaks[1] - peaks[0] < 100


def test_thousands_of_damaged_files_are_cached_or_skipped(tmp_path: Path) -> None:
    """Cut and changed files of every format, among valid ones."""
    rng = np.random.default_rng(3)
    root = tmp_path / "odd"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    count = 0
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO"):
        for seed in range(40):
            path = root / "ab"[seed % 2] / f"{format}{seed}.{format.lower()}"
            draw(seed, stripes=True, size=(64, 48)).save(path, format)
            content = path.read_bytes()
            count += 1
            for number in range(6):
                damaged = bytearray(content)
                for _ in range(rng.integers(1, 20)):
                    damaged[rng.integers(len(damaged))] = rng.integers(256)
                if number % 3 == 0:
                    damaged = damaged[: rng.integers(len(damaged))]
                (path.parent / f"{path.name}.{number}").write_bytes(damaged)
                count += 1
    # valid ones, so that at most half of the set is damaged
    for number in range(count):
        draw(10_000 + number, stripes=False).save(root / "a" / f"valid{number}.png")
    done = extract_features(root, base="pixels")
    assert len(done.table) + len(done.skipped) == 2 * count
    assert all(item.reason for item in done.skipped)
    print(f"{len(done.table):,} cached, {len(done.skipped):,} skipped of {2 * count:,}")


@pytest.mark.real_data
def test_odd_images_are_cached_or_skipped_without_growth(assets: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("odd", "plain"):
        (root / name).mkdir(parents=True)
    files = sorted((assets / "data" / "odd_images").iterdir())
    for path in files:
        (root / "odd" / path.name).write_bytes(path.read_bytes())
    for number in range(30):
        draw(number, stripes=False).save(root / "plain" / f"{number}.png")
    done = extract_features(root, base="pixels")
    assert len(done.table) + len(done.skipped) == len(files) + 30
    quiet = tmp_path / "quiet"
    for name in ("a", "b"):
        (quiet / name).mkdir(parents=True)
        for number in range(30):
            draw(number, stripes=name == "a").save(quiet / name / f"{number}.png")
    plain = resident_megabytes(quiet, "--base", "pixels")
    odd = resident_megabytes(root, "--base", "pixels", "--out", "again.h5")
    print(f"peak memory: {plain:.0f} MB without, {odd:.0f} MB with odd images")
    assert odd - plain < 300
