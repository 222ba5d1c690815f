"""Make caches of synthetic features, for tests of the code that reads caches."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.cache.file import (
    FORMAT_VERSION,
    FORMAT_WITH_TARGETS,
    Columns,
    create_features,
    make_columns,
)
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.splits import Splits
from pipeline.images.views import POLICIES
from pipeline.spec import CLASSES, FeatureSpec

SPEC = FeatureSpec(
    base="vgg16",
    weights="random-0",
    preprocessing="native",
    image_size=150,
    resize="squash",
    pixels="none",
    dtype="float32",
)
AUGMENTATION = POLICIES["book"].to_dict()


def draw_columns(
    labels: Sequence[int],
    *,
    splits: Sequence[int] | None = None,
    salt: str = "",
    targets: Sequence[Sequence[float]] = (),
) -> Columns:
    """Return the columns of different images; another ``salt`` gives other images."""
    count = len(labels)
    return make_columns(
        labels=labels,
        splits=[0] * count if splits is None else splits,
        paths=[b"%d.jpg" % row for row in range(count)],
        digests=[hashlib.sha256(f"{salt}{row}".encode()).digest() for row in range(count)],
        views=[0] * count,
        targets=targets,
    )


def add_views(
    columns: Columns, views: int, *, to_all: bool = False
) -> tuple[Columns, npt.NDArray[np.int64]]:
    """Add views 1 … K after each training image (``to_all``: each image).

    Returns the new columns, and the old row of each new one.
    """
    counts = np.where(to_all | (columns.splits <= 1), 1 + views, 1)
    images = np.repeat(np.arange(len(columns)), counts)
    numbers = np.concatenate([np.arange(count) for count in counts])
    return replace(columns.take(images), views=numbers.astype(np.int16)), images


def draw_features(
    labels: npt.NDArray[np.int64], shape: tuple[int, ...], *, seed: int = 0, signal: float = 1.0
) -> npt.NDArray[np.float32]:
    """Return sparse maps, as after a ReLU: noise plus a pattern of the class times ``signal``."""
    random = np.random.default_rng(seed)
    patterns = random.normal(size=(int(labels.max()) + 1, *shape[-1:])) * signal
    noise = random.normal(size=(len(labels), *shape))
    middle = (slice(None), *(None,) * (len(shape) - 1))
    return np.maximum(noise + patterns[labels][middle], 0).astype(np.float32)


def draw_rows(
    count: int,
    class_count: int = 2,
    *,
    width: int = 12,
    signal: float = 1.5,
    rare: int | None = None,
    seed: int = 0,
) -> tuple[LabelledRows, LabelledRows]:
    """Return training and validation rows, far from 0; the fourth feature is constant.

    With ``rare``, all rows are of the first class except every rare-th one.
    """
    rows = np.arange(count)
    labels = rows % class_count
    if rare is not None:
        labels = np.where(rows % rare == 0, 1 + rows // rare % (class_count - 1), 0)
    both = np.tile(labels, 2)
    features = draw_features(both, (width,), signal=signal, seed=seed) * 50 + 7
    features[:, 3] = 5.0
    return LabelledRows(features[:count], labels), LabelledRows(features[count:], labels)


def write_cache(
    path: Path,
    *,
    labels: Sequence[int],
    splits: Sequence[int] | None = None,
    classes: Sequence[str] = ("cats", "dogs"),
    layers: Mapping[str, npt.NDArray[Any]] | None = None,
    shape: tuple[int, ...] = (2, 2, 8),
    signal: float = 1.0,
    spec: FeatureSpec = SPEC,
    columns: Columns | None = None,
    views: int = 0,
    tta: bool = False,
    task: str = CLASSES,
) -> Path:
    """Write a cache file with synthetic features, or with ``layers``.

    With ``views``, each training image (with ``tta``, each image) has this number of additional
    rows: its features with a little noise.
    """
    columns = columns or draw_columns(labels, splits=splits)
    if layers is None:
        layers = {"block5_pool": draw_features(np.asarray(labels), shape, signal=signal)}
    if views:
        columns, images = add_views(columns, views, to_all=tta)
        noise = np.random.default_rng(9).normal
        layers = {
            layer: rows[images]
            + 0.05 * noise(size=(len(images), *rows.shape[1:])).astype(rows.dtype)
            for layer, rows in layers.items()
        }
    document: dict[str, Any] = {
        "format": FORMAT_VERSION if task == CLASSES else FORMAT_WITH_TARGETS,
        **({} if task == CLASSES else {"task": task}),
        "spec": asdict(spec),
        "set": "synthetic",
        "root": "nowhere",
        "engine": {"name": "none"},
        "versions": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    if views:
        document |= {"views": views, "tta": tta, "augmentation": AUGMENTATION}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["spec"] = json.dumps(document)
        file.create_dataset("classes", data=list(classes), dtype=h5py.string_dtype())
        for name, values in columns.stored().items():
            file[name] = values
        for layer, features in layers.items():
            dataset = create_features(
                file, layer, features.shape[1:], len(features), str(features.dtype)
            )
            dataset[...] = features
    return path


def folder_splits(count: int) -> list[int]:
    """Return splits as from folders: 60 % train, 20 % validation, 20 % test, evenly spread."""
    return [(1, 1, 1, 2, 3)[row // 4 % 5] for row in range(count)]


def alternating_labels(count: int, class_count: int = 2) -> list[int]:
    """Return the labels 0, 1, … in turn."""
    return [row % class_count for row in range(count)]


def sides(splits: Splits, count: int) -> npt.NDArray[np.int64]:
    """Return the split of each row: 0 none, 1 train, 2 validation, 3 test; assert no overlap."""
    side = np.zeros(count, np.int64)
    for number, name in enumerate(("train", "validation", "test"), 1):
        rows = getattr(splits, name)
        assert not side[rows].any()
        side[rows] = number
    return side
