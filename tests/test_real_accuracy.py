"""The whole road on the book's photographs: the accuracies that the README promises. Slow."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import compare_heads, extract_features

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def test_dense_and_logistic_reach_95_percent_on_vgg16_features(assets: Path) -> None:
    done = extract_features(assets / "data" / "cats_and_dogs")
    assert done.table.layers == {"block5_pool": (4, 4, 512)}
    assert len(done.table) == 2000
    accuracies: dict[str, list[float]] = {"dense": [], "logistic": []}
    for seed in range(5):
        for outcome in compare_heads(done.table.path, heads="dense,logistic", seed=seed).outcomes:
            accuracies[outcome.result.head].append(outcome.result.test_accuracy)
            if outcome.result.head == "dense":
                assert outcome.result.parameters == 2_097_665
    for head, found in accuracies.items():
        assert np.mean(found) >= 0.95, (head, found)


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
