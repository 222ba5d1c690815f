"""Make bundles of heads that are fitted on synthetic rows."""

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import skops.io
from feature_sets import SPEC, alternating_labels, draw_features
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid

from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import find_base
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import search
from pipeline.heads.calibration import Scores, class_scores
from pipeline.heads.config import DenseConfig
from pipeline.heads.registry import load_head
from pipeline.images.decode import pixels_digest
from pipeline.models.bundle import Bundle, add_description
from pipeline.models.top_block import HEAD_WEIGHTS
from pipeline.spec import FeatureSpec

WIDTH = 12
QUICK = DenseConfig(epochs=2, learning_rate=1e-3, units=8)


def draw_rows(class_count: int = 2) -> LabelledRows:
    """Return 120 rows of WIDTH features."""
    labels = np.asarray(alternating_labels(120, class_count))
    return LabelledRows(draw_features(labels, (WIDTH,), signal=1.5), labels)


@cache
def fit_head(name: str, class_count: int = 2) -> Any:
    """Return a fitted head, as the search returns it; it is cached: copy it before a change.

    For speed, the grid is reduced to its middle setting, and a forest to 5 trees.
    """
    rows, head = draw_rows(class_count), load_head(name, [QUICK])
    settings = list(ParameterGrid(head.grid or {}))
    grid = {key: [value] for key, value in settings[(len(settings) - 1) // 2].items()}
    if name == "random_forest":
        grid["randomforestclassifier__n_estimators"] = [5]
    fit = search(replace(head, grid=grid), rows, rows, class_count=class_count, seed=0)
    assert fit
    return fit.estimator


def linear_head(weights: np.ndarray, intercepts: np.ndarray) -> LogisticRegression:
    """Return a logistic regression with weights (K, D) or (1, D) and intercepts."""
    head = LogisticRegression()
    head.coef_, head.intercept_ = np.asarray(weights), np.asarray(intercepts)
    head.classes_ = np.arange(max(2, len(intercepts)))
    head.n_features_in_ = head.coef_.shape[1]
    return head


@cache
def fit_top_block(
    class_count: int = 2, base: str = "vgg16", first_unfrozen: str = "block5_conv3"
) -> Bundle:
    """Return a bundle of a base with random weights at 32 pixels and changed upper layers.

    VGG16 is built in a third of the time of smaller bases, which have more layers.
    """
    from pipeline.bases.boundary import find_boundary, upper_model
    from pipeline.bases.build import build_base
    from pipeline.heads.dense import build_dense
    from pipeline.models.top_block import top_block

    base_entry, size = find_base(base), 32
    config = BaseConfig(base=base, image_size=size, weights="random", seed=1)
    base_model, _ = build_base(config)
    boundary = find_boundary(base_model, base_entry, first_unfrozen)
    upper = upper_model(base_model, boundary)
    random = np.random.default_rng(5)
    tuned = {
        variable.path: variable.numpy() + 0.02 * random.random(variable.shape, np.float32)
        for layer in upper.layers
        for variable in layer.weights
    }
    network = DenseConfig(units=8)
    head = build_dense(upper.output_shape[1:], class_count, network, 0).get_weights()
    tuned |= {f"head/{name}": array for name, array in zip(HEAD_WEIGHTS, head, strict=True)}
    return bundle_of(
        top_block(base_model, base_entry, size, boundary, tuned, class_count, network),
        class_count,
        head="fine_tuned",
        params=f"unfreeze={first_unfrozen}",
        spec=FeatureSpec(
            base=base,
            weights="random-1",
            preprocessing="native",
            image_size=size,
            resize="squash",
            pixels=pixels_digest(size, "squash"),
            dtype="float32",
        ),
        layer=boundary.layer,
        input="flat",
        shape=boundary.shape,
    )


def bundle_of(estimator: Any, class_count: int = 2, **changed: Any) -> Bundle:
    """Return a bundle of an estimator; ``changed`` replaces any other field."""
    fields: dict[str, Any] = {
        "head": "synthetic",
        "params": "C=1",
        "estimator": estimator,
        "spec": SPEC,
        "layer": "block5_pool:avg",
        "input": "pooled",
        "shape": (WIDTH,),
        "classes": tuple(f"class {number}" for number in range(class_count)),
        "document": {
            "cache": "cache/synthetic.h5",
            "set": "synthetic",
            "root": "nowhere\udcff",
            "weights_from": "imagenet",
        },
    }
    return Bundle(**fields | changed)


def scores_of(bundle: Bundle) -> Scores:
    """Return the bundle's scores of the synthetic rows or, for a flat input, of random maps."""
    rows = draw_rows(len(bundle.classes)).features
    if bundle.input == "flat":
        maps = np.random.default_rng(6).normal(size=(5, math.prod(bundle.shape)))
        rows = maps.astype(np.float32)
    return class_scores(bundle.estimator, rows, len(bundle.classes))


def encode(description: Mapping[str, Any], estimator: Any) -> bytes:
    """Return the content of a bundle file, valid or not."""
    file = io.BytesIO()
    skops.io.dump(estimator, file)
    add_description(file, description)
    return file.getvalue()
