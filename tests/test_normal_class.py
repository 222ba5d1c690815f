"""``classify --normal``: normal images against all others, and the head novelty."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_line, run_command
from feature_sets import draw_columns, write_cache
from PIL import Image

from pipeline import compare_heads

SIZE = 8
DEFECTS = {"spot": (255, 0, 0), "hole": (255, 255, 0)}


def draw(folder: Path, count: int, *, seed: int, defect: str = "") -> None:
    """Write images of blue noise; those of a class of defects have a square of its color."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers((0, 90, 160), (40, 130, 220), (SIZE, SIZE, 3)).astype(np.uint8)
        if defect:
            row, column = random.integers(SIZE - 1, size=2)
            pixels[row : row + 2, column : column + 2] = DEFECTS[defect]
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return class folders of normal images and of two kinds of defects."""
    draw(tmp_path / "parts" / "good", 60, seed=1)
    draw(tmp_path / "parts" / "spot", 12, seed=2, defect="spot")
    draw(tmp_path / "parts" / "hole", 12, seed=3, defect="hole")
    return tmp_path / "parts"


def inspection_set(root: Path) -> Path:
    """Move the images to train/good, test/good, test/spot and test/hole."""
    for name in ("good", *DEFECTS):
        (root / "test").mkdir(exist_ok=True)
        shutil.move(root / name, root / "test" / name)
    (root / "train/good").mkdir(parents=True)
    for path in sorted((root / "test/good").iterdir())[:40]:
        path.rename(root / "train/good" / path.name)
    return root


def extract(root: Path) -> str:
    words = ("extract", root, "--base", "pixels", "--image-size", str(SIZE))
    return run_command(*words).stderr


def rows_of(finished: Any) -> dict[str, Any]:
    return {row["head"]: row for row in json.loads(finished.stdout)["rows"]}


def test_all_heads_tell_normal_images_from_the_others_and_predict_does_so_too(root: Path) -> None:
    extract(root)
    words = ("--normal", "good", "--heads", "logistic,novelty", "--json", "--check", "--no-audit")
    finished = run_command("classify", *words)
    assert "not good" in finished.stderr
    document = json.loads(finished.stdout)
    assert document["run"]["classes"] == ["good", "not good"]
    assert document["run"]["normal"] == "good"
    rows = rows_of(finished)
    assert set(rows) == {"logistic", "novelty"}
    assert rows["novelty"]["input"] == "flat"
    assert rows["novelty"]["recall_at_5_percent_false_alarms"] == 1
    assert rows["novelty"]["roc_auc"] == 1
    assert rows["novelty"]["false_alarms"] < 0.15
    (run,) = Path("results").iterdir()
    for head in ("novelty", "logistic"):
        words = (root / "spot", root / "good", "--model", run, "--head", head, "--json")
        predicted = json.loads(run_command("predict", *words).stdout)
        images, summary = predicted["images"], predicted["summary"]
        assert summary["in_class_folders"] == {"good": 60, "not good": 12}
        labels = [image["label"] for image in images]
        assert labels.count("not good") >= 12
        assert {each["label"] for each in images[0]["top"]} == {"good", "not good"}
    refused = run_command("export", run, "--head", "novelty", "--format", "onnx", check=2)
    assert "novelty cannot be exported: it compares patches" in assert_one_line(refused)


def test_novelty_learns_where_only_the_test_set_has_other_images(root: Path) -> None:
    assert "to learn from good alone, classify --normal good" in extract(inspection_set(root))
    refused = run_command("classify", "--heads", "logistic", check=65)
    assert "or learn from good alone with --normal good" in assert_one_line(refused)
    refused = run_command("classify", "--normal", "spot", check=65)
    assert "train/ has no image of spot" in assert_one_line(refused)
    finished = run_command("classify", "--normal", "good", "--heads", "novelty,logistic,dense")
    lines = {line.split()[0]: line for line in finished.stdout.splitlines() if line}
    assert "needs training images of two classes" in lines["logistic"]
    assert "needs training images of two classes" in lines["dense"]
    header, row = (re.split(r" {2,}", lines[name].strip()) for name in ("head", "novelty"))
    assert header[3:5] == ["recall %", "false alarms %"]
    assert row[3] == "100.0"
    assert "recall: of images that are not normal" in finished.stdout
    assert "note: train has no image of not good: only novelty learns" in finished.stdout
    assert "failed" not in finished.stdout
    assert "Use novelty" in finished.stdout
    (run,) = Path("results").iterdir()
    report = (run / "report.html").read_text("utf-8")
    assert re.search("<th[^>]*>false alarms", report)


def test_a_set_of_normal_images_alone_measures_false_alarms(tmp_path: Path) -> None:
    draw(tmp_path / "parts/good", 60, seed=1)
    assert "good/ is the only class: to learn from it alone, classify --normal good" in extract(
        tmp_path / "parts"
    )
    refused = assert_one_line(run_command("classify", check=65))
    assert "to learn from it alone, classify --normal good" in refused
    words = ("--normal", "good", "--heads", "novelty,majority,logistic", "--json")
    finished = run_command("classify", *words)
    assert (
        "test has one class only: novelty" in json.loads(finished.stdout)["run"]["recommendation"]
    )
    rows = rows_of(finished)
    assert rows["novelty"]["recall_at_5_percent_false_alarms"] is None
    assert rows["novelty"]["roc_auc"] is None
    assert rows["novelty"]["false_alarms"] < 0.2
    assert all(row["status"] for head, row in rows.items() if head != "novelty")
    notices = json.loads(finished.stdout)["run"]["notices"]
    assert any("test has no image of not good: only false alarms" in each for each in notices)


def test_rare_defects_are_tested_together_over_folds(root: Path) -> None:
    for name in DEFECTS:
        for path in sorted((root / name).iterdir())[2:]:
            path.unlink()
    extract(root)
    words = ("--normal", "good", "--heads", "novelty", "--no-audit", "--save", "none", "--json")
    finished = run_command("classify", *words)
    row = rows_of(finished)["novelty"]
    assert row["fits"] == 5
    assert row["recall_at_5_percent_false_alarms"] == 1
    assert row["roc_auc"] == 1


def test_suspects_of_such_a_run_are_edited_and_applied(root: Path) -> None:
    extract(root)
    Path("labels.csv").write_text(
        "path,new_label,drop\ngood/000.png,not good,\nspot/000.png,good,\n"
        "good/001.png,hole,\nhole/000.png,,yes\n"
    )
    words = ("--normal", "good", "--heads", "majority", "--no-audit", "--json")
    finished = run_command("classify", *words, "--labels", "labels.csv")
    (cache,) = json.loads(finished.stdout)["run"]["caches"]
    counts = [split.values() for split in cache["split_counts"].values()]
    assert [sum(of_class) for of_class in zip(*counts, strict=True)] == [59, 24]
    with Path("labels.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--heads novelty", "learns from one class, that of normal images: name it with --normal"),
        ("--heads novelty:pooled", "name it with --normal"),
        ("--normal=", "--normal: an empty name is not a class; the classes are good, hole, spot"),
        ("--normal god", "--normal: god is not a class; did you mean good?"),
        ("--normal ?", "--normal: ? is not a class; the classes are good, hole, spot"),
        ("--normal good --heads noveltie", "did you mean novelty?"),
        ("--normal good --task regression", "--normal is for classes"),
    ],
)
def test_a_wrong_normal_class_is_one_line_with_a_cure(words: str, message: str) -> None:
    labels = np.arange(30) % 3
    cache = write_cache(Path("parts.h5"), labels=labels, classes=("good", "hole", "spot"))
    finished = run_command("classify", cache, *words.split(), check=2)
    assert message in assert_one_line(finished)


def test_a_normal_class_of_numbers_is_refused() -> None:
    targets = [[number] for number in range(30)]
    columns = draw_columns([0] * 30, targets=targets)
    cache = write_cache(
        Path("ages.h5"), labels=[0] * 30, columns=columns, classes=("age",), task="regression"
    )
    finished = run_command("classify", cache, "--normal", "age", check=2)
    assert "--normal is for classes; the cache is of regression" in assert_one_line(finished)


@pytest.mark.slow
def test_refit_repeats_and_views_keep_the_false_alarms_low(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], [150, 30])
    cache = write_cache(tmp_path / "c.h5", labels=labels, shape=(3, 3, 8), signal=3, views=2)
    options = {"normal": "cats", "heads": "novelty", "audit": False, "split": "60/20/20"}
    for more in ({"refit": True}, {"repeats": 2}, {"cv": 3, "split": None}, {"timeout": 100.0}):
        result = compare_heads(cache, **options | more).shown.result
        assert result.views == 2
        assert result.false_alarms < 0.15
        assert result.recall_at_5_percent_false_alarms > 0.9
        assert result.test_accuracy > 0.85
