"""The promises of rejection hold on photographs, and a class that was left out is noticed. Slow."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from pipeline import compare_heads, extract_features
from pipeline.cache.file import FeatureTable
from pipeline.evaluation.abstention import conformity_of
from pipeline.heads.scaler import CommonScaler
from pipeline.models.neighbors import CachedNeighbors
from pipeline.models.rejection import CalibrationSet, label_sets

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

DIVISIONS, TRAIN, CALIBRATION = 200, 120, 179  # 0.05 · 180 is whole: 95 % can be kept exactly
ERROR = 0.05


@pytest.fixture(scope="module")
def table(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureTable:
    return extract_features(
        assets / "data" / "cats_and_dogs",
        base="mobilenet_v2",
        weights=str(assets / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"),
        image_size=96,
        pooling="avg",
        limit_per_class=100,
        cache_dir=tmp_path_factory.mktemp("cache"),
    ).table


def test_coverage_and_error_hold_over_200_random_divisions(table: FeatureTable) -> None:
    ((layer, _),) = table.layers.items()
    features, labels = table.features(layer), table.columns.labels
    cached = CachedNeighbors(table, layer)
    digests = [key.tobytes() for key in table.columns.digests]
    distances = cached.measure(cached.vectors, digests)
    random = np.random.default_rng(0)
    kept, missed, missed_by_class = [], [], []
    for _ in range(DIVISIONS):
        train, known, test = np.split(random.permutation(len(labels)), [TRAIN, TRAIN + CALIBRATION])
        scaler = CommonScaler().fit(features[train])
        head = LogisticRegression(C=0.01).fit(scaler.transform(features[train]), labels[train])
        known_scores, scores = (
            head.predict_proba(scaler.transform(features[rows])) for rows in (known, test)
        )
        calibration = CalibrationSet.of(labels[known], known_scores, distances[known])
        kept.append((conformity_of(calibration, scores, distances[test]) > ERROR).mean())
        every = np.arange(len(test))
        for per_class, found in ((False, missed), (True, missed_by_class)):
            possible = label_sets(calibration, scores, ERROR, per_class=per_class)
            found.append(1 - possible[every, labels[test]].mean())
    # thresholds vary, too: as if each division had fewer test images
    images = DIVISIONS * int(1 / (1 / len(test) + 1 / CALIBRATION))
    low, high = (binom.ppf(share, images, ERROR) / images for share in (0.0005, 0.9995))
    assert low <= 1 - np.mean(kept) <= high
    assert low <= np.mean(missed) <= high
    assert low - 2 / CALIBRATION <= np.mean(missed_by_class) <= high  # whole images of each class


def test_animals_that_the_head_has_not_seen_are_unlike_the_others(table: FeatureTable) -> None:
    findings = compare_heads(table.path, heads="logistic", keep=False).findings
    assert findings is not None
    for each in findings.left_out:
        assert each.distance > 0.7
