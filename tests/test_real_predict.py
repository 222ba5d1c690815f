"""Real weights and photographs: files get the probabilities of the comparison."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run_command

from pipeline.api import extract_features, predict_images
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import Outcome
from pipeline.heads.config import DenseConfig
from pipeline.models.image_predictions import Prediction
from pipeline.report.run_folder import write_run

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

HEADS = ("dense", "logistic", "linear_svm", "ridge", "lda")
TOLERANCE = 1e-4  # of a probability
PER_CLASS = 20


@pytest.mark.parametrize("base", ["vgg16", "mobilenet_v2"])
def test_photographs_get_the_probabilities_of_the_comparison(base: str, assets: Path) -> None:
    photographs = assets / "data" / "cats_and_dogs"
    Path("copy").mkdir()
    for name in ("cats", "dogs"):  # before training, under other names
        for number, file in enumerate(sorted((photographs / "test" / name).iterdir())[:PER_CLASS]):
            shutil.copyfile(file, f"copy/{number}-{name}.jpg")
    options: dict[str, Any] = {}
    if base == "mobilenet_v2":
        weights = assets / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"
        options = {"image_size": 160, "pooling": "avg", "weights": weights}
    table = extract_features(photographs, base=base, limit_per_class=PER_CLASS, **options).table
    compared = compare_heads(
        table.path, heads=",".join(HEADS), audit=False, dense=DenseConfig(epochs=5)
    )
    run = write_run(compared, Path("results"))
    assert {outcome.result.head for outcome in compared.outcomes} == set(HEADS)
    for outcome in compared.outcomes:
        expected = measured(outcome)
        for item in predict_images("copy", model=run, head=outcome.result.head, use_cache=False):
            assert isinstance(item, Prediction)
            scores = expected.pop(digest_of(item.path.decode()))
            assert np.abs(item.probabilities - scores).max() <= TOLERANCE
            assert item.probabilities.argmax() == scores.argmax()
        assert not expected
    finished = run_command("predict", "copy", "--model", run, "--head", "dense", "--json")
    document = json.loads(finished.stdout)
    assert document["cached"] == len(document["images"]) == 2 * PER_CLASS
    (dense,) = (outcome for outcome in compared.outcomes if outcome.result.head == "dense")
    expected = measured(dense)
    for image in document["images"]:
        scores = expected[digest_of(image["path"])]
        assert image["label"] == compared.classes[int(scores.argmax())]
        assert abs(image["probability"] - scores.max()) <= TOLERANCE


def measured(outcome: Outcome) -> dict[bytes, np.ndarray]:
    """Return the head's probabilities of the test images in the comparison, by digest."""
    assert outcome.test is not None
    keys = [key.tobytes() for key in outcome.test.keys]
    return dict(zip(keys, outcome.test.scores, strict=True))


def digest_of(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()


def test_broken_images_are_reported_one_by_one(assets: Path) -> None:
    photographs = assets / "data" / "cats_and_dogs"
    table = extract_features(photographs, base="pixels", limit_per_class=20).table
    write_run(compare_heads(table.path, heads="logistic", audit=False), Path("results"))
    odd = assets / "data" / "odd_images"
    finished = run_command("predict", odd, "--json")
    document = json.loads(finished.stdout)
    files = {str(path) for path in odd.iterdir()}
    predicted = {image["path"] for image in document["images"]}
    skipped = {item["path"] for item in document["skipped"]}
    assert predicted | skipped == files
    assert not predicted & skipped
    assert {Path(path).name for path in skipped} >= {"text.jpg", "zero_bytes.jpg", "truncated.jpg"}
