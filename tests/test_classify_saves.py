"""``python -m pipeline.classify`` saves its heads, and checks them on the image files."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from command import run_command
from feature_sets import alternating_labels, draw_features, write_cache
from synthetic_images import draw

from pipeline.api import extract_features
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import Comparison
from pipeline.models.bundle import load_bundle
from pipeline.models.runs import find_bundle
from pipeline.report.run_folder import Save, write_run


@pytest.fixture
def cache(synthetic_set: Path) -> Path:
    return extract_features(synthetic_set, base="pixels", image_size=8).table.path


@pytest.fixture
def comparison(cache: Path, tmp_path: Path) -> Comparison:
    (tmp_path / "mine.py").write_text(
        "from sklearn.naive_bayes import GaussianNB\nclass Mine(GaussianNB):\n    pass\n"
    )
    return compare_heads(cache, heads="ridge,ridge:pooled,mine:Mine", audit=False)


def test_rows_name_their_model_or_the_run_says_why_there_is_none(
    comparison: Comparison, tmp_path: Path
) -> None:
    for save in get_args(Save):
        folder = write_run(comparison, tmp_path / "results", save=save)
        document = json.loads((folder / "results.json").read_text("utf-8"))
        rows = document["rows"]
        with_model = [row for row in rows if row["model"]]
        for row in with_model:
            bundle = load_bundle(folder / row["model"])
            assert (bundle.head, bundle.input) == (row["head"], row["input"])
        reasons = {
            (row["head"], row["input"]): row["reason"] for row in document["run"]["not_saved"]
        }
        assert len(reasons) + len(with_model) == len(rows) == 3
        assert document["run"]["save"] == save
        if save == "all":
            models = [path.name for path in sorted((folder / "models").iterdir())]
            assert models == ["ridge-2.skops", "ridge.skops"]
            (reason,) = reasons.values()
            assert "mine.Mine" in reason
        elif save == "best":
            assert [row["recommended"] for row in with_model] == [True]
            assert find_bundle(folder) == folder / with_model[0]["model"]
            assert set(reasons.values()) == {"--save best"}
        else:
            assert not (folder / "models").exists()


def test_file_names_of_models_contain_their_layer(tmp_path: Path) -> None:
    labels = alternating_labels(100)
    features = draw_features(np.asarray(labels), (8,))
    layers = {"block5_pool:avg": features, "block4_pool:avg": features}
    cache = write_cache(tmp_path / "two.h5", labels=labels, layers=layers)
    comparison = compare_heads(cache, heads="majority", audit=False)
    folder = write_run(comparison, tmp_path / "results")
    names = sorted(path.name for path in (folder / "models").iterdir())
    assert names == [f"majority-block{number}_pool_avg.skops" for number in (4, 5)]


def test_check_reports_the_difference_of_every_saved_head(cache: Path) -> None:
    finished = run_command(
        "classify", cache, "--heads", "ridge,knn", "--no-audit", "--check", "--check-images", "9"
    )
    lines = finished.stdout.splitlines()[-3:]
    assert lines[0] == "checked 9 of 24 test images, from their files:"
    assert (
        lines[1] == "  knn: largest difference 0.0e+00 (at most 0.0001), no decision of 9 changed"
    )
    assert lines[2].startswith("  ridge: largest difference ")
    quiet = run_command("classify", cache, "--heads", "ridge", "--no-audit", "--check", "--json")
    assert json.loads(quiet.stdout)["run"]["save"] == "all"
    assert "  ridge: largest difference" in quiet.stderr


def test_check_fails_if_an_image_has_changed(cache: Path, synthetic_set: Path) -> None:
    draw(99, stripes=True).save(synthetic_set / "test" / "plain" / "003.png")
    finished = run_command(
        "classify", cache, "--heads", "majority", "--no-audit", "--check", check=65
    )
    assert "Traceback" not in finished.stderr
    assert "003.png is not the cached image" in finished.stderr.splitlines()[-1]


def test_check_finds_moved_images_by_content(cache: Path, synthetic_set: Path) -> None:
    synthetic_set.rename("moved")
    for path in sorted(Path("moved").rglob("*.png")):
        path.rename(path.with_name(f"new {path.name}"))
    command = ["classify", cache, "--heads", "ridge", "--no-audit", "--check"]
    assert (
        "name the folder that has its images now with --images"
        in run_command(*command, check=66).stderr
    )
    finished = run_command(*command, "--images", "moved")
    assert "checked 24 of 24 test images, from their files:" in finished.stdout


def test_heads_that_cannot_be_exported_are_named_when_they_are_saved(synthetic_set: Path) -> None:
    done = extract_features(synthetic_set, base="pixels", image_size=8, views=2, tta=True)
    command = ["classify", done.table.path, "--heads", "ridge,majority", "--no-audit"]
    assert "cannot be exported" not in run_command(*command).stderr
    finished = run_command(*command, "--tta")
    assert (
        "saved, but cannot be exported: ridge, majority (its probabilities are means over 3 views "
        "of an image: classify without --tta)"
    ) in finished.stderr
