"""``predict --neighbors`` and ``--reject``: tables, CSV, JSON, missing caches and errors."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import assert_one_line, modules_loaded_by, run_command
from PIL import Image
from synthetic_images import make_image_folder
from target_sets import write_targets_of

from pipeline import PredictConfig, extract_features, predict_images
from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.spec import REGRESSION

MARKUP = '"><img src=x onerror=alert(1)>'.replace("/", "")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 40 images of each class, one with an awkward name, and a run."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_image_folder(Path("synthetic"), per_class=40)
        Path("synthetic/striped").rename(Path("synthetic", MARKUP))
        extract_features("synthetic", base="pixels", image_size=16)
        run_command("classify", "--heads", "logistic", "--no-audit")
        magenta = np.full((40, 40, 3), (255, 0, 255), np.uint8)
        Image.fromarray(magenta).save("magenta.png")
    return folder


@pytest.fixture
def run(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the run in a copy of the workplace."""
    shutil.copytree(workplace, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    (workplace / "cache").rename(workplace / "moved")  # the run names this file
    yield next(Path("results").iterdir())
    (workplace / "moved").rename(workplace / "cache")


def test_neighbors_and_reasons_are_in_every_format(run: Path) -> None:
    first, second = sorted(Path("synthetic/plain").iterdir())[:2]
    shutil.copy(second, "copy\x1b[31m.png")
    words = ("predict", first, "copy\x1b[31m.png", "magenta.png", "--neighbors", "2", "--reject")
    text = run_command(*words).stdout
    document = json.loads(run_command(*words, "--json").stdout)
    rows = list(csv.DictReader(io.StringIO(run_command(*words, "--csv").stdout)))
    title, *lines = text.splitlines()
    assert title.split()[:2] == ["path", "label"]
    cached, copied, magenta = document["images"]
    assert "\x1b" not in text
    # a cached image is not its own neighbor; identical files are computed once
    assert cached["neighbors"][0]["path"] != f"plain/{first.name}"
    assert len(copied["neighbors"]) == 2
    assert magenta["rejection"]["rejected"]
    assert magenta["rejection"]["reason"] == "unlike"
    assert magenta["rejection"]["distance"] > cached["rejection"]["distance"]
    assert "none of these" in lines[6]
    assert lines[6].endswith(f"unlike the cached images, else {magenta['label']}")
    for image, row, at in zip((cached, copied, magenta), rows, (0, 3, 6), strict=True):
        for rank, neighbor in enumerate(image["neighbors"], 1):
            line = lines[at + rank]
            assert line.startswith(f"    {neighbor['similarity']:.4f}  ")
            assert line.endswith(neighbor["path"])
            assert neighbor["label"] in line
            assert row[f"neighbor_{rank}"] == neighbor["path"]
            assert row[f"neighbor_{rank}_label"] == neighbor["label"]
            assert float(row[f"neighbor_{rank}_similarity"]) == neighbor["similarity"]
        assert row["rejected"] == str(image["rejection"]["rejected"])
        assert row["reason"] == image["rejection"]["reason"]
    assert document["summary"]["rejected"] == document["summary"]["unlike"] == 1
    assert "none of these: 1 of 3 images (0 unsure, 1 unlike the cached images)" in text


def test_accuracy_of_what_is_kept_is_stated(run: Path) -> None:
    finished = run_command("predict", "synthetic", "--max-error", "0.1", "--sheet", "sheet.png")
    document = json.loads(
        run_command("predict", "synthetic", "--max-error", "0.1", "--json").stdout
    )
    summary = document["summary"]
    kept = [each for each in document["images"] if not each["rejection"]["rejected"]]
    right = [each for each in kept if f"/{each['label']}/" in each["path"]]
    assert summary["kept_in_class_folders"] == len(kept) == 80 - summary["rejected"]
    assert summary["kept_accuracy"] == len(right) / len(kept)
    assert f"% of the {len(kept)} kept in class folders are right" in finished.stdout
    assert all(len(each["rejection"]["classes"]) == 1 for each in kept)


def test_without_the_cache_neighbors_are_an_error_and_rejection_uses_confidence(run: Path) -> None:
    shutil.move("cache", "elsewhere")
    refused = run_command("predict", "magenta.png", "--neighbors", "1", check=66)
    line = assert_one_line(refused)
    assert "--neighbors: the cache of the training, " in line
    assert "pass its folder with --cache-dir" in line
    finished = run_command("predict", "magenta.png", "--reject", "--json")
    assert "warning: --reject: the cache of the training, " in finished.stderr
    assert json.loads(finished.stdout)["images"][0]["rejection"]["distance"] is None
    moved = run_command(
        "predict",
        "magenta.png",
        "--neighbors",
        "1",
        "--reject",
        "--json",
        "--cache-dir",
        "elsewhere",
    )
    (image,) = json.loads(moved.stdout)["images"]
    assert image["rejection"]["reason"] == "unlike"
    assert len(image["neighbors"]) == 1


def test_refused_options_are_one_line(run: Path) -> None:
    for words, code, message in (
        ("--coverage 0.9 --max-error 0.1", 2, "--coverage and --max-error exclude each other"),
        ("--coverage 0", 2, "--coverage: expected a share above 0 and below 1; received 0"),
        ("--coverage 0.999", 2, "--coverage 0.999 needs 999 validation images; the model has 80"),
        ("--per-class --max-error 0.01", 2, "--max-error 0.01 needs 99 validation images of "),
        ("--neighbors 1001", 2, "--neighbors: expected 0 to 1,000; received 1,001"),
        ("--imagenet vgg16 --reject", 2, "--reject needs a head and its cache"),
        ("--imagenet vgg16 --per-class", 2, "--per-class needs a head and its cache"),
    ):
        refused = run_command("predict", "magenta.png", *words.split(), check=code)
        assert message in assert_one_line(refused)


def test_head_of_an_earlier_version_is_refused_in_one_line(run: Path) -> None:
    (path,) = (run / "models").iterdir()
    bundle = load_bundle(path)
    document = {key: bundle.document[key] for key in bundle.document if key != "calibration_set"}
    save_bundle(replace(bundle, document=document), Path("old.skops"))
    refused = run_command("predict", "magenta.png", "--model", "old.skops", "--reject", check=65)
    assert "classify again" in assert_one_line(refused)
    run_command("predict", "magenta.png", "--model", "old.skops", "--neighbors", "1")


def test_numbers_have_neighbors_but_are_not_rejected(synthetic_set: Path) -> None:
    table = extract_features(synthetic_set, base="pixels", pooling="avg").table
    cache = write_targets_of(table, Path("targets.h5"), REGRESSION)
    run_command("classify", cache, "--heads", "ridge", "--no-audit")
    words = ("predict", "synthetic/test/plain", "--neighbors", "1")
    lines = run_command(*words).stdout.splitlines()
    assert len(lines[2].split()) == 3
    float(lines[2].split()[1])  # the label is the number
    assert "neighbor_1_label" in run_command(*words, "--csv").stdout.splitlines()[0]
    refused = run_command(*words[:2], "--reject", check=2)
    assert "--reject is for classes; " in assert_one_line(refused)


def test_options_imply_reject_and_need_a_saved_head() -> None:
    for options in ({"coverage": 0.9}, {"max_error": 0.1}, {"per_class": True}):
        assert PredictConfig(**options).reject
    assert not PredictConfig(neighbors=3).reject
    Image.new("RGB", (8, 8)).save("black.png")
    with pytest.raises(UsageError, match="are of saved heads; a network is a network"):
        predict_images("black.png", model=SimpleNamespace(name="a network"), neighbors=1)


@pytest.mark.slow
def test_plain_predictions_load_no_library_for_rejection(run: Path) -> None:
    loaded = modules_loaded_by("predict", "synthetic/plain", "--reject")
    assert not loaded & {"crepes", "faiss", "tensorflow"}
