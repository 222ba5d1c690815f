"""Make caches of multi-label and regression sets, whose targets depend on the features."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from feature_sets import draw_columns, write_cache

from pipeline.cache.file import FeatureTable
from pipeline.spec import MULTILABEL

LABELS = ("sky", "sea", "$5 bird")
WIDTH = 12


def draw_targets(features: np.ndarray, task: str, *, noise: float, seed: int = 0) -> np.ndarray:
    """Return numbers (N, 1) around 2000, or three labels (N, 3) that 30 % of the rows have.

    They are linear in pooled features (N, D), plus noise of this standard deviation.
    """
    random = np.random.default_rng(seed)
    values = features @ random.normal(size=(features.shape[1], len(LABELS)))
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
    values += noise * random.normal(size=values.shape)
    if task == MULTILABEL:
        return (values > np.quantile(values, 0.7, axis=0)).astype(np.float64)
    return 2000 + 10 * values[:, :1]


def write_targets(
    path: Path,
    task: str,
    *,
    count: int = 150,
    noise: float = 0.3,
    targets: np.ndarray | None = None,
    splits: Sequence[int] | None = None,
    views: int = 0,
    seed: int = 0,
) -> Path:
    """Write a cache of vectors (N, 12); ``targets`` replace those that depend on them."""
    features = np.random.default_rng(seed + 1).normal(size=(count, WIDTH)).astype(np.float32)
    if targets is None:
        targets = draw_targets(features, task, noise=noise, seed=seed)
    return write_cache(
        path,
        labels=[0] * count,
        columns=replace(draw_columns([0] * count, splits=splits), targets=targets),
        layers={"block5_pool:avg": features},
        classes=LABELS if task == MULTILABEL else ("year",),
        task=task,
        views=views,
        tta=views > 0,
    )


def write_targets_of(table: FeatureTable, path: Path, task: str) -> Path:
    """Write a cache of the images and features of another, with targets instead of classes."""
    ((layer, _),) = table.layers.items()
    features = table.features(layer)
    pooled = features.reshape(len(table), -1, features.shape[-1]).mean(axis=1)
    count = len(table)
    columns = replace(
        table.columns,
        labels=np.zeros(count, np.int64),
        targets=draw_targets(pooled, task, noise=0.0),
    )
    return write_cache(
        path,
        labels=[0] * count,
        columns=columns,
        layers={layer: features},
        classes=LABELS if task == MULTILABEL else ("year",),
        spec=table.spec,
        task=task,
        root=str(table.document["root"]),
    )
