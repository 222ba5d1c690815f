"""Bundles of heads fitted on drawn rows."""

from functools import cache
from typing import Any

import numpy as np
from feature_sets import SPEC, alternating_labels, draw_features
from threadpoolctl import threadpool_limits

from pipeline.evaluation.choose import choose
from pipeline.heads.head import Classifier, FitOptions, Floats
from pipeline.heads.registry import load_head
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.models.bundle import Bundle

WIDTH = 12
QUICK = FitOptions(dense=(DenseSettings(epochs=2, learning_rate=1e-3, units=8),))


def draw_rows(class_count: int = 2) -> LabelledRows:
    """120 rows of WIDTH features."""
    labels = np.asarray(alternating_labels(120, class_count))
    return LabelledRows(draw_features(labels, (WIDTH,), signal=1.5), labels)


@cache
def fit_head(name: str, class_count: int = 2) -> Classifier:
    """The head as `choose` gives it: with probabilities."""
    rows = draw_rows(class_count)
    train = TrainingSet(rows.features, rows.labels, class_count)
    with threadpool_limits(1, user_api="blas"):  # as `compare_heads` has it
        return choose(load_head(name), train, rows, QUICK)[0].classifier


def bundle_of(classifier: Classifier, class_count: int = 2, **changed: Any) -> Bundle:
    """A bundle of drawn rows; ``changed`` replaces any of its fields."""
    fields: dict[str, Any] = {
        "head": "drawn",
        "params": "C=1",
        "classifier": classifier,
        "spec": SPEC,
        "layer": "block5_pool:avg",
        "input": "pooled",
        "shape": (WIDTH,),
        "classes": tuple(f"klasse {number}" for number in range(class_count)),
        "document": {
            "cache": "cache/drawn.h5",
            "set": "drawn",
            "root": "nowhere\udcff",
            "weights_from": "imagenet",
        },
    }
    return Bundle(**fields | changed)


def scores_of(bundle: Bundle) -> Floats:
    """What the bundle says of the drawn rows."""
    return bundle.classifier.scores(draw_rows(len(bundle.classes)).features)
