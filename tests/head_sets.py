"""Drawn rows to fit heads on."""

import numpy as np
from feature_sets import draw_features

from pipeline.evaluation.rows import LabelledRows


def draw_train(
    size: tuple[int, int],
    class_count: int = 2,
    *,
    rare: int | None = None,
    signal: float = 0.3,
    seed: int = 0,
) -> LabelledRows:
    """``size`` rows and features far from 0, the fourth of which never changes.

    The classes take turns; with ``rare``, every rare-th row is of another class than the first.
    """
    count, width = size
    rows = np.arange(count)
    labels = rows % class_count
    if rare is not None:
        labels = np.where(rows % rare == 0, 1 + rows // rare % (class_count - 1), 0)
    features = draw_features(labels, (width,), signal=signal, seed=seed) * 50 + 7
    features[:, 3] = 5.0
    return LabelledRows(features, labels)
