"""Real weights and photographs: exported models predict as in the comparison.

Slow: heads are exported and run without this project. MobileNetV2, whose files are small, has every
head; VGG16 only one of each kind.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pipeline import extract_features, load_features
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import Comparison
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import groups
from pipeline.models.bundle import save_bundle
from pipeline.models.export import export_bundle

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

HEADS = {
    ("mobilenet_v2", "keras"): ("dense", "logistic", "linear_svm", "ridge", "lda"),
    ("mobilenet_v2", "onnx"): groups()["all"],
    ("mobilenet_v2", "tflite"): ("dense",),
    ("vgg16", "keras"): ("dense", "logistic"),
    ("vgg16", "onnx"): ("dense", "logistic", "knn"),
    ("vgg16", "tflite"): ("dense",),
}
PER_CLASS = 15
BASES = {
    "vgg16": {"image_size": 150},
    "mobilenet_v2": {"image_size": 160, "weights": "mobilenet_v2_imagenet_notop.weights.h5"},
}

# Runs every predict.py in one process, because Keras takes seconds to load.
ALL_ELSEWHERE = """
import runpy, sys
import numpy as np
sys.modules["pipeline"] = None
try:
    import pipeline
except ImportError:
    paths = sys.stdin.read().splitlines()
    for folder in sys.argv[1:]:
        np.save(f"{folder}/found.npy", runpy.run_path(f"{folder}/predict.py")["predict"](paths))
"""


@pytest.fixture(scope="module")
def trained(
    assets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Comparison]]:
    """Return a function that trains heads on a base's features: a folder with ``cache/`` and
    ``copies/`` of the photographs, and the comparison."""
    folder = tmp_path_factory.mktemp("lab")
    root = assets / "data" / "cats_and_dogs"
    for split in ("train", "validation", "test"):
        for name in ("cats", "dogs"):
            (folder / "copies" / split / name).mkdir(parents=True)
            for path in sorted((root / split / name).iterdir())[:PER_CLASS]:
                shutil.copyfile(path, folder / "copies" / split / name / path.name)

    @cache
    def train(base: str) -> tuple[Path, Comparison]:
        options = dict(BASES[base])
        if "weights" in options:
            options["weights"] = assets / "weights" / str(options["weights"])
        done = extract_features(
            root, base=base, limit_per_class=PER_CLASS, cache_dir=folder / "cache", **options
        )
        quick = DenseConfig(epochs=5, learning_rate=1e-4)
        path = done.table.path
        return folder, compare_heads(path, heads=groups()["all"], dense=quick, audit=False)

    return train


@pytest.mark.parametrize(("base", "format"), HEADS)
def test_exported_heads_predict_copied_photographs_as_in_the_comparison(
    trained: Callable[[str], tuple[Path, Comparison]], base: str, format: str, tmp_path: Path
) -> None:
    folder, comparison = trained(base)
    heads = HEADS[base, format]
    outcomes = [outcome for outcome in comparison.outcomes if outcome.result.head in heads]
    assert len(outcomes) == len(heads)
    for outcome in outcomes:
        assert outcome.bundle
        bundle = tmp_path / f"{outcome.result.head}.skops"
        save_bundle(outcome.bundle, bundle)
        made = tmp_path / outcome.result.head
        done = export_bundle(
            bundle, format=format, out=made, cache_dir=folder / "cache", check_images=4
        )
        assert done.parity.agrees
    test = outcomes[0].test
    assert test
    assert len(test) == 2 * PER_CLASS
    (cache,) = (folder / "cache").glob(f"*-{base}-*.h5")
    paths = load_features(cache).columns.paths[test.rows]
    copies = [folder / "copies" / os.fsdecode(path) for path in paths]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-I", "-c", ALL_ELSEWHERE, *(str(tmp_path / head) for head in heads)],
        input="\n".join(map(str, copies)),
        text=True,
        cwd=elsewhere,
        check=True,
    )
    for outcome in outcomes:
        assert outcome.test
        np.testing.assert_array_equal(outcome.test.rows, test.rows)
        found = np.load(tmp_path / outcome.result.head / "found.npy", allow_pickle=False)
        difference = np.abs(found - outcome.test.scores).max()
        print(f"{base} {format} {outcome.result.head}: largest difference {difference:.1e}")
        assert difference <= 1e-4
        np.testing.assert_array_equal(found.argmax(axis=1), outcome.test.predicted)
