"""A base in a .onnx file, through every command."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from command import assert_one_line, modules_loaded_by, run_command
from onnx_files import SIZE, write_onnx_file

FILE = Path("models/net.onnx")
EXTRACT = ("--base", FILE, "--mean-std", "half", "--json")


@pytest.fixture
def extracted(synthetic_set: Path) -> Path:
    """The cache of a base in a file; 32 pixels, layer ``pool``."""
    FILE.parent.mkdir()
    write_onnx_file(FILE)
    finished = run_command("extract", synthetic_set, *EXTRACT)
    assert "layer pool, the last map or tokens" in finished.stderr
    return Path(json.loads(finished.stdout)["cache"])


@pytest.mark.slow
def test_cache_is_classified_predicted_and_exported(extracted: Path, synthetic_set: Path) -> None:
    run_command("classify", extracted, "--heads", "logistic,dense,knn", "--no-audit")
    (run,) = Path("results").iterdir()
    arguments = ("predict", synthetic_set / "test/plain", "--model", run, "--json")
    cached, computed = (
        json.loads(run_command(*arguments, *option).stdout) for option in ((), ("--no-cache",))
    )
    assert cached["model"]["base"] == "net"
    for one, other in zip(cached["images"], computed["images"], strict=True):
        assert one["label"] == other["label"]
    for head in ("logistic", "dense", "knn"):
        exported = run_command("export", run, "--format", "onnx", "--head", head)
        assert f"{head} predicts as in the comparison" in exported.stdout
    refused = run_command("export", run, "--format", "keras", check=2)
    assert "is a .onnx file, which keras cannot contain" in assert_one_line(refused)


@pytest.mark.slow
def test_file_with_a_fixed_batch_is_exported(synthetic_set: Path) -> None:
    FILE.parent.mkdir()
    write_onnx_file(FILE, shape=(3, 3, SIZE, SIZE))
    run_command("extract", synthetic_set, *EXTRACT, "--pooling", "max")
    run_command("classify", "--heads", "logistic", "--no-audit")
    exported = run_command("export", "--format", "onnx")
    assert "logistic predicts as in the comparison" in exported.stdout


@pytest.mark.slow
def test_moved_file_is_named_with_an_option(extracted: Path, synthetic_set: Path) -> None:
    run_command("classify", extracted, "--heads", "logistic", "--no-audit")
    moved = Path(shutil.move(FILE, "other.onnx"))
    arguments = ("predict", synthetic_set / "test/plain", "--no-cache")
    refused = run_command(*arguments, check=66)
    assert "pass their new path with --weights FILE" in assert_one_line(refused)
    run_command(*arguments, "--weights", moved)
    other = Path("wrong.onnx")
    write_onnx_file(other, shape=("other", 3, SIZE, SIZE))
    wrong = run_command(*arguments, "--weights", other, check=65)
    assert "pass those of the training with --weights FILE" in assert_one_line(wrong)
    again = run_command("extract", synthetic_set, "--base", moved, *EXTRACT[2:])
    assert json.loads(again.stdout)["computed"] == 0  # its content decides


@pytest.mark.slow
def test_cache_is_verified_and_repaired(extracted: Path) -> None:
    with h5py.File(extracted) as file:
        before = file["features/pool"][()]
        place = file["features/pool"].id.get_chunk_info(0).byte_offset
    with extracted.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"damaged")
    assert "damaged" in run_command("cache", "verify", extracted, check=65).stdout
    moved = Path(shutil.move(FILE, "other.onnx"))
    refused = run_command("cache", "repair", extracted, check=66)
    assert "pass its new path with --weights FILE" in assert_one_line(refused)
    run_command("cache", "repair", extracted, "--weights", moved)
    with h5py.File(extracted) as file:
        assert np.array_equal(file["features/pool"][()], before)


@pytest.mark.slow
def test_other_preprocessing_has_another_cache(extracted: Path, synthetic_set: Path) -> None:
    other = (*EXTRACT[:3], "unit", "--json")
    changed = json.loads(run_command("extract", synthetic_set, *other).stdout)
    assert Path(changed["cache"]) != extracted
    assert changed["computed"] > 0


def test_finetune_refuses_a_file_in_one_line(synthetic_set: Path) -> None:
    refused = run_command("finetune", synthetic_set, "--base", "net.onnx", check=2)
    assert "--base net.onnx cannot be fine-tuned" in assert_one_line(refused)


@pytest.mark.slow
def test_tensorflow_is_not_loaded(extracted: Path, synthetic_set: Path) -> None:
    shutil.rmtree("cache")
    arguments = ("extract", synthetic_set, *EXTRACT)
    assert not {"tensorflow", "keras", "onnx"} & modules_loaded_by(*arguments)
