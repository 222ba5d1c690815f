"""``python -m pipeline.finetune``: rows and models of the frozen and the fine-tuned base."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_line, run_command

from pipeline.cache.file import read_table
from pipeline.finetuning.config import FinetuneConfig
from pipeline.models.bundle import load_bundle

SMALL = ["--image-size", "48", "--weights", "random", "--engine", "tensorflow"]
QUICK = ["--head-epochs", "3", "--epochs", "3", "--learning-rate", "1e-4", "--units", "16"]


def finetune(root: Path, *options: str) -> dict[str, Any]:
    finished = run_command("finetune", root, *SMALL, *QUICK, *options, "--json")
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


def rows_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["head"]: row for row in document["rows"]}


def bundles_of(document: dict[str, Any]) -> dict[str, Path]:
    folder = Path(document["run"]["folder"])
    return {row["head"]: folder / row["model"] for row in document["rows"] if row["model"]}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--base", "pixels"], 2, "pixels has no layers to train"),
        (["--base", "mobilenet_v2"], 2, "choose the first layer of mobilenet_v2 to train"),
        (["--method", "scratch"], 2, "unrecognized arguments: --method"),
        (["--learning-rate", "0"], 2, "above 0"),
        (["--epochs", "0"], 2, "from 1"),
        (["--rotation", "400"], 2, "--rotation is a number from 0 to 180"),
        (["--weights", "none.h5"], 66, "no such file"),
        (["--image-size", "20"], 2, "at least 32 pixels"),
    ],
)
def test_invalid_options_are_one_line_before_tensorflow_is_loaded(
    synthetic_set: Path, options: list[str], code: int, message: str
) -> None:
    finished = run_command("finetune", synthetic_set, *options, check=code)
    assert message in finished.stderr.splitlines()[-1]
    assert "loading TensorFlow" not in finished.stderr
    assert "Traceback" not in finished.stderr


def test_vgg_is_unfrozen_from_its_last_block() -> None:
    assert FinetuneConfig().first_unfrozen == "block5_conv1"


@pytest.mark.slow
def test_a_set_of_one_class_is_refused_before_features_are_extracted(synthetic_set: Path) -> None:
    for folder in [*synthetic_set.rglob("plain")]:
        shutil.rmtree(folder)
    line = assert_one_line(run_command("finetune", synthetic_set, *SMALL, check=65))
    assert "two classes or more; the set has one: striped" in line
    assert not list(Path("cache").glob("*.h5"))


@pytest.mark.slow
def test_error_for_a_layer_that_is_not_a_boundary_names_the_nearest(synthetic_set: Path) -> None:
    finished = run_command(
        "finetune", synthetic_set, "--base", "resnet50", *SMALL,
        "--unfreeze", "conv5_block3_2_conv", check=2,
    )  # fmt: skip
    assert "the nearest: conv5_block3_1_conv" in assert_one_line(finished)


@pytest.mark.slow
def test_run_writes_two_rows_their_models_and_curves(synthetic_set: Path) -> None:
    document = finetune(synthetic_set, "--views", "2")
    rows = rows_of(document)
    assert set(rows) == {"frozen_head", "fine_tuned"}
    tuned = rows["fine_tuned"]
    assert (tuned["layer"], tuned["params"]) == ("block4_pool", "unfreeze=block5_conv1 units=16")
    assert tuned["views"] == 2
    assert tuned["parameters"] == 3 * (9 * 512 * 512 + 512) + 512 * 16 + 16 + 16 + 1
    assert 0 <= tuned["test_low"] < tuned["test_accuracy"] <= tuned["test_high"] <= 1
    folder = Path(document["run"]["folder"])
    written = {path.name for path in folder.iterdir()}
    assert written >= {"results.csv", "results.md", "report.html", "curves.png"}
    table = read_table(Path(tuned["cache"]))
    assert set(table.layers) == {"block4_pool", "block5_pool"}
    assert not list(Path("cache/finetuning").glob("*"))  # checkpoints, once results are there
    for head, path in bundles_of(document).items():
        finished = run_command("predict", synthetic_set / "test", "--model", path, "--json")
        images = json.loads(finished.stdout)["images"]
        assert len(images) == 24, head
        right = sum(Path(each["path"]).parent.name == each["label"] for each in images)
        assert right / 24 == pytest.approx(rows[head]["test_accuracy"])


@pytest.mark.slow
def test_run_that_is_killed_in_each_stage_resumes_to_the_same_model(synthetic_set: Path) -> None:
    options = [*SMALL, *QUICK, "--views", "1", "--seed", "3"]
    options[options.index("--epochs") + 1] = options[options.index("--head-epochs") + 1] = "8"
    uninterrupted = json.loads(
        run_command(
            "finetune",
            synthetic_set,
            *options,
            "--json",
            "--cache-dir",
            "uninterrupted",
            "--out",
            "a",
        ).stdout
    )
    command = [sys.executable, "-m", "pipeline.finetune", str(synthetic_set), *options]
    command += ["--json", "--cache-dir", "killed", "--out", "b"]
    for stage in ("head", "fine-tuning"):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            deadline = time.monotonic() + 300
            while not list(Path("killed/finetuning").glob(f"*/*/{stage}.safetensors")):
                assert run.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.05)
            run.send_signal(signal.SIGKILL)
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    for stage in ("head", "fine-tuning"):
        assert f"{stage}: resumes after epoch" in finished.stderr
    resumed = json.loads(finished.stdout)
    for head, row in rows_of(uninterrupted).items():
        other = rows_of(resumed)[head]
        for measure in ("train_accuracy", "validation_accuracy", "test_accuracy", "log_loss"):
            assert other[measure] == row[measure], (head, measure)
    for head, path in bundles_of(uninterrupted).items():
        one, other = load_bundle(path).estimator, load_bundle(bundles_of(resumed)[head]).estimator
        block, other_block = getattr(one, "block", {}), getattr(other, "block", {})
        assert block.keys() == other_block.keys()
        for name, array in block.items():
            np.testing.assert_array_equal(array, other_block[name])
        heads = [getattr(each, "head", each).weights_ for each in (one, other)]
        for array, other_array in zip(*heads, strict=True):
            np.testing.assert_array_equal(array, other_array)
