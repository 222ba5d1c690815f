"""Both stages on the book's photographs reach the accuracies of the README. Slow."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import compare_heads, extract_features
from pipeline.api import Extraction
from pipeline.engines import TENSORFLOW

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


@pytest.fixture(scope="module")
def cached(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    """VGG16's maps of all photographs, from the fastest engine of this machine."""
    folder = tmp_path_factory.mktemp("vgg16")
    return extract_features(assets / "data" / "cats_and_dogs", cache_dir=folder)


def test_dense_and_logistic_reach_95_percent_on_vgg16_features(cached: Extraction) -> None:
    assert cached.table.layers == {"block5_pool": (4, 4, 512)}
    assert len(cached.table) == 2000
    accuracies: dict[str, list[float]] = {"dense": [], "logistic": []}
    for seed in range(5):
        outcomes = compare_heads(cached.table.path, heads="dense,logistic", seed=seed).outcomes
        for outcome in outcomes:
            accuracies[outcome.result.head].append(outcome.result.test_accuracy)
            if outcome.result.head == "dense":
                assert outcome.result.parameters == 2_097_665
    for head, values in accuracies.items():
        assert np.mean(values) >= 0.95, (head, values)


def test_accuracies_do_not_depend_on_the_engine(cached: Extraction, assets: Path) -> None:
    engine = cached.table.document["engine"]["name"]
    reference = extract_features(
        assets / "data" / "cats_and_dogs",
        engine="onnx" if engine == TENSORFLOW else TENSORFLOW,
        cache_dir=cached.table.path.parent,
        out=cached.table.path.with_name("reference.h5"),
    )
    tables = [
        {
            result.head: result.test_accuracy
            for result in compare_heads(each.table.path, heads="all", audit=False).results
        }
        for each in (cached, reference)
    ]
    assert tables[0].keys() == tables[1].keys()
    assert "dense" in tables[0]
    for head, accuracy in tables[0].items():
        assert abs(accuracy - tables[1][head]) <= 1.001 / 500, head


def test_logistic_reaches_96_percent_on_mobilenet_v2_features(assets: Path) -> None:
    done = extract_features(
        assets / "data" / "cats_and_dogs",
        base="MobileNetV2",
        image_size=160,
        pooling="avg",
        weights=assets / "weights" / "mobilenet_v2_imagenet_notop.weights.h5",
    )
    (outcome,) = compare_heads(done.table.path, heads="logistic").outcomes
    assert outcome.result.test_accuracy >= 0.965
