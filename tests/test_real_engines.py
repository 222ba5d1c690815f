"""Engines on real photographs: same numbers, no TensorFlow in warm runs, no network access."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import assert_one_line, modules_loaded_by, run_command

from pipeline.bases.config import RUNTIMES
from pipeline.cache.file import read_table
from pipeline.engines import relative_errors

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

ENGINES = ("tensorflow", *RUNTIMES)
BASE = ["--base", "mobilenet_v2", "--image-size", "160", "--pooling", "avg"]


@pytest.fixture(scope="module")
def extracted(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which each engine computed the photographs: ``<engine>.h5``."""
    folder = tmp_path_factory.mktemp("engines") / "cache"
    for engine in ENGINES:
        run_command("extract", *command(assets, folder, folder / f"{engine}.h5", engine))
    return folder


def command(assets: Path, folder: Path, out: Path, engine: str = "auto") -> list[str | Path]:
    (weights,) = (assets / "weights").glob("*mobilenet_v2*.h5")
    return [
        assets / "data/cats_and_dogs", *BASE, "--weights", weights, "--engine", engine,
        "--cache-dir", folder, "--out", out,
    ]  # fmt: skip


@pytest.mark.parametrize("engine", list(RUNTIMES))
def test_features_agree_with_tensorflow_on_every_photograph(extracted: Path, engine: str) -> None:
    expected, table = (read_table(extracted / f"{name}.h5") for name in ("tensorflow", engine))
    (layer,) = expected.layers
    errors = relative_errors(expected.features(layer), table.features(layer))
    assert 0 < errors.max() <= 1e-4
    recorded = table.document["engine"]
    assert recorded["name"] == engine
    assert 0 < max(recorded["error"].values()) <= 1e-4


@pytest.mark.parametrize("engine", list(RUNTIMES))
def test_accuracies_differ_by_at_most_one_test_image(extracted: Path, engine: str) -> None:
    accuracies = []
    for name in ("tensorflow", engine):
        finished = run_command(
            "classify", extracted / f"{name}.h5", "--heads", "logistic,linear_svm,knn,ridge",
            "--no-audit", "--json",
        )  # fmt: skip
        rows = json.loads(finished.stdout)["rows"]
        accuracies.append({row["head"]: row["test_accuracy"] for row in rows})
    assert accuracies[0].keys() == accuracies[1].keys()
    for head, accuracy in accuracies[0].items():
        assert abs(accuracies[1][head] - accuracy) <= 1.001 / 500, head


def test_warm_engine_computes_new_images_without_tensorflow(
    extracted: Path, assets: Path, tmp_path: Path
) -> None:
    for engine in RUNTIMES:
        options = command(assets, extracted, tmp_path / f"{engine}.h5", engine)
        loaded = modules_loaded_by("extract", *options, "--limit-per-class", "4")
        assert RUNTIMES[engine] in loaded
        assert not loaded & {"tensorflow", "keras", "requests"}


def test_cache_keeps_its_engine_and_its_features_bit_for_bit(
    extracted: Path, assets: Path, tmp_path: Path
) -> None:
    for engine in RUNTIMES:
        out = tmp_path / f"{engine}.h5"
        options = command(assets, extracted, out, engine)
        run_command("extract", *options, "--limit-per-class", "10")
        run_command("extract", *command(assets, extracted, out), "--limit-per-class", "25")
        table, complete = read_table(out), read_table(extracted / f"{engine}.h5")
        assert table.document["engine"]["name"] == engine
        assert "also" not in table.document["engine"]
        (layer,) = table.layers
        row_of = {path: row for row, path in enumerate(complete.columns.paths.tolist())}
        rows = np.array([row_of[path] for path in table.columns.paths.tolist()])
        np.testing.assert_array_equal(table.features(layer), complete.features(layer, rows))


def test_cache_refuses_another_engine(extracted: Path, assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixed.h5"
    run_command("extract", *command(assets, extracted, out, "onnx"), "--limit-per-class", "2")
    options = command(assets, extracted, out, "ncnn")
    finished = run_command("extract", *options, "--limit-per-class", "3", check=73)
    assert "choose another --out" in assert_one_line(finished)
    assert "onnx" in run_command("cache", "show", out).stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_goes_over_the_network(
    extracted: Path, assets: Path, tmp_path: Path, engine: str
) -> None:
    """In a network namespace without interfaces, trials, conversion and extraction work."""
    offline = ["unshare", "-r", "-n"]
    if not shutil.which("unshare") or subprocess.run([*offline, "true"], check=False).returncode:
        pytest.skip("needs the right to create a network namespace")
    options = command(assets, tmp_path / "cache", tmp_path / "offline.h5", engine)
    finished = subprocess.run(
        [*offline, sys.executable, "-m", "pipeline.extract", *options, "--limit-per-class", "4"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert finished.returncode == 0, finished.stderr
    table = read_table(tmp_path / "offline.h5")
    assert table.document["engine"]["name"] == engine
    assert len(table) == 24
