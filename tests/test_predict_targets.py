"""``predict``, ``export`` and ``load_model`` with heads of labels and numbers."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from command import assert_one_line, run_command
from PIL import Image
from target_sets import LABELS, write_targets_of

from pipeline import extract_features, load_model
from pipeline.errors import UsageError
from pipeline.spec import MULTILABEL, REGRESSION

BOTH = pytest.mark.parametrize("task", [MULTILABEL, REGRESSION])


@pytest.fixture
def run(synthetic_set: Path, task: str) -> Path:
    """Return a run of ridge on pixels, after a check of the saved head on image files."""
    table = extract_features(synthetic_set, base="pixels", pooling="avg").table
    cache = write_targets_of(table, Path("targets.h5"), task)
    finished = run_command("classify", cache, "--heads", "ridge", "--no-audit", "--check")
    assert "checked 24 of 24 test images, from their files" in finished.stdout
    (folder,) = Path("results").iterdir()
    return folder


@BOTH
def test_labels_and_numbers_are_printed(run: Path, task: str) -> None:
    words = ("predict", "synthetic/test/plain", "--model", run)
    text, table, document = (
        run_command(*words, *option, "--sheet", "sheet.png").stdout
        for option in ((), ("--csv",), ("--json",))
    )
    title, first, *_ = text.splitlines()
    records = json.loads(document)
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len(rows) == len(records["images"]) == 12
    assert records["model"]["task"] == task
    assert Image.open("sheet.png").width > 100
    if task == REGRESSION:
        assert title.split() == ["path", "year"]
        assert first.split()[1] == f"{records['images'][0]['number']:.6g}"
        assert records["images"][0]["name"] == "year"
        assert [float(row["year"]) for row in rows] == [
            image["number"] for image in records["images"]
        ]
        assert "year: lowest " in text
        assert records["summary"].keys() == {"lowest", "mean", "highest"}
        return
    assert title.split() == ["path", "labels"]
    assert list(rows[0]) == ["path", "labels", *LABELS]
    for image, row in zip(records["images"], rows, strict=True):
        above = {name for name, share in image["probabilities"].items() if share > 0.5}
        assert set(image["labels"]) == above == set(filter(None, row["labels"].split("|")))
    counts = records["summary"]["predicted"]
    assert sum(counts.values()) == sum(len(image["labels"]) for image in records["images"])
    assert "images by label: " in text


@BOTH
def test_what_is_for_classes_is_refused(run: Path, task: str) -> None:
    refused = run_command("predict", "synthetic", "--model", run, "--top", "2", check=2)
    assert "--top is for classes" in assert_one_line(refused)
    refused = run_command("export", run, "--format", "onnx", check=2)
    assert f"only classifiers are exported; this head is of {task}" in assert_one_line(refused)
    assert not (run / "exports").exists()


@BOTH
def test_a_loaded_model_predicts(run: Path, task: str) -> None:
    model = load_model(run)
    paths = sorted(Path("synthetic/test").glob("*/*"))[:5]
    predicted = model.predict(paths)
    if task == REGRESSION:
        assert predicted.shape == (5,)
        with pytest.raises(UsageError, match="a regression has no probabilities"):
            model.predict_proba(paths)
        return
    np.testing.assert_array_equal(predicted, model.predict_proba(paths) > 0.5)
    assert predicted.shape == (5, 3)
