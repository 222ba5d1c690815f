"""The drawn cache is what stage one would have left."""

from pathlib import Path

import numpy as np

from pipeline import load_features
from pipeline.benchmark.drawn import LAYER, MAP_SHAPE, draw_cache, training_rows
from pipeline.cache.seal import find_damage
from pipeline.heads.head import FitOptions
from pipeline.heads.logistic import Logistic
from pipeline.heads.training import TrainingSet


def test_a_drawn_cache_is_whole_and_sparse_and_its_classes_can_be_learned() -> None:
    path = draw_cache(Path("drawn.h5"), divisor=20)
    assert find_damage(path) == []
    table = load_features(path)
    assert table.layers == {LAYER: MAP_SHAPE}
    assert np.bincount(table.columns.splits).tolist() == [0, 100, 50, 50]
    (maps, labels), (others, other_labels) = training_rows(table)
    assert len(maps) == len(labels) == 100
    assert len(others) == len(other_labels) == 50
    assert 0.80 < np.mean(maps == 0) < 0.88  # VGG16 on photographs: 0.84
    train = TrainingSet(maps.mean(axis=(1, 2)), labels, 2)
    fits = list(Logistic().fit_candidates(train, train, FitOptions()))
    found = fits[1].classifier.scores(others.mean(axis=(1, 2))).argmax(axis=1)
    assert np.mean(found == other_labels) > 0.7
