"""Random labels give chance accuracy: no head and no protocol sees what it is tested on.

Every image stands twice in the set, each time with two augmented views, all with the features of
the first but for a little noise: whoever has one of them in training knows the label of the rest.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import draw_columns, write_cache
from scipy.stats import binom

from pipeline.cache.file import Columns, columns_of
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import Result
from pipeline.heads.config import DenseConfig
from pipeline.heads.registry import HEADS

IMAGES = 150
QUICK_DENSE = DenseConfig(epochs=8, units=16, learning_rate=1e-2, optimizer="adam")
PROTOCOLS = {
    "one division": {"split": "50/25/25"},
    "folds": {"cv": 3},
    "folds, refit": {"cv": 3, "refit": True},
    "folds of groups": {"cv": 3, "group": r"object\d+"},
    "repeated folds, balanced": {"cv": 3, "repeats": 2, "balance": True},
}


@pytest.fixture(scope="module")
def random_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(5)
    copies, views = 2, 3
    image = np.repeat(np.arange(IMAGES), copies * views)
    view = np.tile(np.arange(views), IMAGES * copies)
    copy = np.tile(np.repeat(np.arange(copies), views), IMAGES)
    labels = random.permutation(np.arange(IMAGES) % 2)[image]
    digests = draw_columns([0] * IMAGES).digests[image]
    columns = columns_of(
        labels=labels.tolist(),
        splits=[0] * len(image),
        paths=[
            b"%d/object%d/%d.jpg" % (label, number // 3, twin)
            for label, number, twin in zip(labels, image, copy, strict=True)
        ],
        digests=[digest.tobytes() for digest in digests],
        views=view.tolist(),
    )
    features = random.normal(size=(IMAGES, 24))[image]
    features += 0.05 * random.normal(size=features.shape)
    return write_cache(
        tmp_path_factory.mktemp("random") / "random.h5",
        labels=labels.tolist(),
        layers={"block5_pool:avg": features.astype(np.float32)},
        columns=columns,
    )


def is_chance(result: Result, images: int) -> bool:
    """Whether an accuracy lies in the 99.9 % interval of guessing on so many distinct images."""
    low, high = binom.interval(0.999, images, 0.5)
    return bool(low / images <= result.test_accuracy <= high / images)


SLOW = ("folds of groups", "folds, refit", "repeated folds, balanced")  # 10 to 20 s each


@pytest.mark.parametrize(
    "protocol",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PROTOCOLS],
)
def test_random_labels_give_chance_accuracy(random_labels: Path, protocol: str) -> None:
    options = PROTOCOLS[protocol]
    comparison = compare_heads(
        random_labels, heads="all", dense=QUICK_DENSE, audit=False, **options
    )
    images = IMAGES if "cv" in options else len(set(comparison.outcomes[0].test.keys.tolist()))
    assert {result.head for result in comparison.results} >= {"dense", "knn", "random_forest"}
    assert [result for result in comparison.results if not is_chance(result, images)] == []


def test_random_labels_give_chance_accuracy_by_kornblith(random_labels: Path) -> None:
    (result,) = compare_heads(random_labels, protocol="kornblith", cv=3, audit=False).results
    assert is_chance(result, IMAGES)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("options", [{"views": 8}, {"views": 8, "refit": True}, {"views": 0}])
def test_random_labels_give_chance_accuracy_with_eight_views(
    tmp_path: Path, options: dict[str, Any], tta: bool
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
    comparison = compare_heads(cache, dense=QUICK_DENSE, audit=False, tta=tta, **options)
    assert {result.views for result in comparison.results} == {options["views"]}
    assert [result for result in comparison.results if not is_chance(result, count // 3)] == []


@pytest.mark.parametrize("head", [name for name in HEADS if name in ("knn", "random_forest")])
def test_a_leaky_splitter_is_found_out(
    random_labels: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(columns: Columns, group_of: object = None) -> np.ndarray:
        """As if no two rows were of one image."""
        return draw_columns([0] * len(columns)).digests

    monkeypatch.setattr("pipeline.evaluation.protocol.identities_of", alone)
    (result,) = compare_heads(random_labels, heads=head, cv=3, audit=False).results
    assert not is_chance(result, IMAGES)
