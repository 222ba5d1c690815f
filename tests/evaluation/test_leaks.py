"""Random labels give chance accuracy: no head and no protocol sees the images it is tested on.

Each image is twice in the set, each time with two augmented views; all have the features of the
first with a little noise. A head that trains on one of them knows the label of the others.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import draw_columns, write_cache
from scipy.stats import binom

from pipeline.cache.file import make_columns
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import Result
from pipeline.heads.config import DenseConfig

IMAGES = 150
COPIES, VIEWS = 2, 3
QUICK_DENSE = DenseConfig(epochs=8, units=16, learning_rate=1e-2, optimizer="adam")
slow = pytest.mark.slow


def write_random_labels(path: Path, *, is_leaky: bool = False) -> Path:
    """Write the cache; in a leaky one, digests of copies differ, as of unrelated images."""
    random = np.random.default_rng(5)
    image = np.repeat(np.arange(IMAGES), COPIES * VIEWS)
    view = np.tile(np.arange(VIEWS), IMAGES * COPIES)
    copy = np.tile(np.repeat(np.arange(COPIES), VIEWS), IMAGES)
    labels = random.permutation(np.arange(IMAGES) % 2)[image]
    files = image * COPIES + copy if is_leaky else image
    digests = draw_columns([0] * IMAGES * COPIES).digests[files]
    columns = make_columns(
        labels=labels.tolist(),
        splits=[0] * len(image),
        paths=[
            b"%d/object%d/%d-%d.jpg" % (label, number // 3, number, twin)
            for label, number, twin in zip(labels, image, copy, strict=True)
        ],
        digests=[digest.tobytes() for digest in digests],
        views=view.tolist(),
    )
    features = random.normal(size=(IMAGES, 24))[image]
    features += 0.05 * random.normal(size=features.shape)
    return write_cache(
        path,
        labels=labels.tolist(),
        layers={"block5_pool:avg": features.astype(np.float32)},
        columns=columns,
    )


def is_chance(result: Result, images: int) -> bool:
    """Whether the accuracy is in the 99.9 % interval of guessing on that many different images."""
    low, high = binom.interval(0.999, images, 0.5)
    return bool(low / images <= result.test_accuracy <= high / images)


@pytest.mark.parametrize(
    "options",
    [
        {"heads": "fast", "cv": 3},
        {"protocol": "kornblith", "cv": 3},
        pytest.param({"heads": "all", "split": "50/25/25"}, marks=slow),
        pytest.param({"heads": "all", "cv": 3}, marks=slow),
        pytest.param({"heads": "all", "cv": 3, "refit": True, "group": r"object\d+"}, marks=slow),
        pytest.param(
            {"heads": "fast,random_forest", "cv": 3, "repeats": 2, "balance": True}, marks=slow
        ),
    ],
)
def test_random_labels_give_chance_accuracy(tmp_path: Path, options: dict[str, Any]) -> None:
    cache = write_random_labels(tmp_path / "random.h5")
    comparison = compare_heads(cache, dense=QUICK_DENSE, audit=False, **options)
    images = IMAGES if "cv" in options else len(set(comparison.outcomes[0].test.keys.tolist()))
    assert [result for result in comparison.results if not is_chance(result, images)] == []


@pytest.mark.parametrize(
    "options",
    [
        {"heads": "fast", "views": 8, "refit": True},
        pytest.param({"heads": "all", "views": 8}, marks=slow),
        pytest.param({"heads": "all", "views": 0}, marks=slow),
    ],
)
def test_random_labels_give_chance_accuracy_with_eight_views(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    random = np.random.default_rng(7)
    count = 240
    cache = write_cache(
        tmp_path / "random.h5",
        labels=random.permutation(np.arange(count) % 2).tolist(),
        splits=(np.arange(count) % 3 + 1).tolist(),
        layers={"block5_pool:avg": random.normal(size=(count, 24)).astype(np.float32)},
        views=8,
        tta=True,
    )
    comparison = compare_heads(cache, dense=QUICK_DENSE, audit=False, tta=True, **options)
    assert {result.views for result in comparison.results} == {options["views"]}
    assert [result for result in comparison.results if not is_chance(result, count // 3)] == []


def test_a_leak_is_detected(tmp_path: Path) -> None:
    cache = write_random_labels(tmp_path / "leaky.h5", is_leaky=True)
    (result,) = compare_heads(cache, heads="knn", cv=3, audit=False).results
    assert not is_chance(result, IMAGES)
