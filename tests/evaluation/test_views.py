"""Heads train on augmented views and, with --tta, predictions are averaged over them.

No head trains on a view of an image that it is evaluated on. The features are the numbers of the
image and the view, so that a head can recognise the images it was fitted on.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import (
    add_views,
    alternating_labels,
    draw_columns,
    draw_features,
    folder_splits,
    write_cache,
)
from sklearn.base import BaseEstimator, ClassifierMixin

from pipeline.cache.file import FeatureTable, read_table
from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.caches import open_caches
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.result import Comparison
from pipeline.evaluation.rows import CachedViews, TrialRows
from pipeline.heads.calibration import class_scores
from pipeline.heads.registry import HEADS, Head

COUNT, VIEWS = 80, 4
LABELS = alternating_labels(COUNT)
EVERYWHERE = {"split": "50/25/25"}, {"cv": 4}, {"cv": 4, "group": r"\d+(?=\d\.)"}
PROTOCOLS: list[dict[str, Any]] = [
    {},
    {"refit": True},
    {"protocol": "kornblith"},
    *EVERYWHERE,
    *({**options, "refit": True} for options in EVERYWHERE),
]


def cache_of(
    path: Path, *, splits: list[int] | None = None, tta: bool = False, mixed: bool = True
) -> Path:
    """A cache whose rows, in no order, are (image, view)."""
    columns, images = add_views(draw_columns(LABELS, splits=splits), VIEWS, to_all=tta)
    order = np.random.default_rng(2).permutation(len(columns)) if mixed else np.arange(len(columns))
    rows = np.stack([images, columns.views], axis=1).astype(np.float32)
    return write_cache(
        path, labels=LABELS, columns=columns.take(order), layers={"names:avg": rows[order]}
    )


class Memory(ClassifierMixin, BaseEstimator):
    """Records the (image, view) pairs it is fitted on, and recognises those images.

    Class 0 is an image that it was fitted on, class 1 another; odd views get half the probability.
    """

    fitted: list[Counter[tuple[int, int]]]

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Memory":
        np.testing.assert_array_equal(y, X[:, 0] % 2)
        self.fitted.append(Counter((int(image), int(view)) for image, view in X))
        self.classes_, self.seen_ = np.unique(y), np.unique(X[:, 0])
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        new = 1.0 - np.isin(X[:, 0], self.seen_)
        new[X[:, 1] % 2 == 1] /= 2
        return np.stack([1 - new, new], axis=1)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    """The memory replaces two heads."""
    monkeypatch.setattr(Memory, "fitted", [], raising=False)
    for name in ("majority", "kornblith"):
        monkeypatch.setitem(HEADS, name, Head(Memory))
    return Memory


def compare(path: Path, **options: Any) -> Comparison:
    if "protocol" not in options:
        options["heads"] = "majority"  # the memory, by another name
    return compare_heads(path, audit=False, **options)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("options", PROTOCOLS)
def test_no_view_of_an_evaluated_image_is_trained_on(
    tmp_path: Path, memory: type[Memory], options: dict[str, Any], tta: bool
) -> None:
    has_folders = not {"cv", "split"} & set(options)
    splits = folder_splits(COUNT) if has_folders else None
    (outcome,) = compare(
        cache_of(tmp_path / "c.h5", splits=splits, tta=tta), tta=tta, **options
    ).outcomes
    test, validation = outcome.test, outcome.validation
    assert test is not None
    assert validation is not None
    new = (1 + 0.5 + 1 + 0.5 + 1) / 5 if tta else 1.0  # the mean over views 0 … 4
    for predictions in (test, validation):
        np.testing.assert_allclose(predictions.scores[:, 1], new)
        assert len(set(predictions.keys.tolist())) == len(predictions)  # each image once
    assert len(test) == COUNT or "cv" not in options
    *_, last = memory.fitted
    for rows in memory.fitted if "cv" in options else memory.fitted[:1]:
        assert set(rows.values()) == {1}
        if not has_folders or rows is not last:  # a refit's validation images have no views there
            images = {image for image, _ in rows}
            assert set(rows) == {(image, view) for image in images for view in range(VIEWS + 1)}


def test_after_folds_the_kept_head_trains_on_all_views_of_all_images(
    tmp_path: Path, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluation.refit.check_savable", lambda bundle: None)
    compare(cache_of(tmp_path / "c.h5"), cv=4, views=2)
    everything = {(image, view) for image in range(COUNT) for view in range(3)}
    assert [set(rows) == everything for rows in memory.fitted] == [False] * 4 + [True]


@pytest.mark.parametrize("views", [0, 1, 4])
def test_the_number_of_training_views_can_be_chosen(
    tmp_path: Path, memory: type[Memory], views: int
) -> None:
    path = cache_of(tmp_path / "c.h5", splits=folder_splits(COUNT))
    (result,) = compare(path, views=views).results
    (rows,) = memory.fitted
    train = np.flatnonzero(np.array(folder_splits(COUNT)) == 1).tolist()
    assert set(rows) == {(image, view) for image in train for view in range(views + 1)}
    assert (result.views, result.tta) == (views, 0)
    assert result.train_accuracy == 0.5  # of the unaugmented images, half of which are class 0


def test_views_0_gives_the_results_of_a_cache_without_views(tmp_path: Path) -> None:
    columns, images = add_views(draw_columns(LABELS), VIEWS)
    features = draw_features(np.asarray(LABELS), (2, 2, 8), signal=0.2)
    plain = write_cache(tmp_path / "plain.h5", labels=LABELS, layers={"a": features})
    viewed = write_cache(
        tmp_path / "viewed.h5", labels=LABELS, columns=columns, layers={"a": features[images]}
    )
    for options in ({"cv": 4}, {"split": "60/20/20", "refit": True}):
        of_plain, of_viewed, of_images = (
            compare_heads(path, heads="ridge,knn", views=views, **options)
            for path, views in ((plain, None), (viewed, None), (viewed, 0))
        )
        assert {result.views for result in of_viewed.results} == {VIEWS}
        timeless = {"fit_seconds": None, "predict_ms": None, "cache": None}
        assert [each.row() | timeless for each in of_images.results] == [
            each.row() | timeless for each in of_plain.results
        ]
        assert of_plain.findings is not None
        for other in (of_images, of_viewed):  # the audit ignores views, used or not
            assert other.findings is not None
            for name in ("duplicates", "suspects"):
                assert getattr(other.findings, name) == getattr(of_plain.findings, name)


def test_each_needed_row_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_of(tmp_path / "c.h5", splits=folder_splits(COUNT), tta=True)
    read: list[tuple[int, int]] = []
    read_features = FeatureTable.features

    def record(table: FeatureTable, layer: str, rows: np.ndarray) -> np.ndarray:
        features = read_features(table, layer, rows)
        read.extend((int(image), int(view)) for image, view in features)
        return features

    monkeypatch.setattr(FeatureTable, "features", record)
    split = dict(enumerate(folder_splits(COUNT)))
    for views, tta in ((0, False), (2, False), (0, True), (4, True)):
        read.clear()
        (cache,) = open_caches([path], ClassifyConfig(views=views, tta=tta))
        trials = cache.trial_plan.trials
        data = TrialRows.read(cache.views, "names:avg", "pooled", trials, refit=False)
        most = {1: views, 2: VIEWS if tta else 0, 3: VIEWS if tta else 0}
        expected = [(image, view) for image in split for view in range(most[split[image]] + 1)]
        assert sorted(read) == expected
        train = data.training_rows(cache.splits.train)
        assert np.shares_memory(train.features, data.features)  # of one split, not copied


@pytest.mark.parametrize("name", ["ridge", "knn"])
def test_tta_is_the_mean_of_the_kept_heads_predictions_for_each_view(
    tmp_path: Path, name: str
) -> None:
    labels = alternating_labels(200)
    path = write_cache(
        tmp_path / "c.h5", labels=labels, splits=folder_splits(200), signal=0.2, views=3, tta=True
    )
    (outcome,) = compare_heads(path, heads=name, tta=True, views=2, audit=False).outcomes
    bundle, test, table = outcome.bundle, outcome.test, read_table(path)
    assert bundle is not None
    assert test is not None
    assert (bundle.document["views"], bundle.document["tta"]) == (2, 3)
    assert bundle.document["augmentation"] == table.document["augmentation"]
    columns = table.columns
    for key, scores in zip(test.keys, test.scores, strict=True):
        (rows,) = np.nonzero(columns.digests == key)
        assert columns.views[rows].tolist() == [0, 1, 2, 3]
        means = table.features("block5_pool", rows).mean(axis=(1, 2))
        np.testing.assert_allclose(
            class_scores(bundle.estimator, means, 2).mean(axis=0), scores, atol=1e-6
        )
    assert outcome.result.tta == 3
    assert outcome.result.test_accuracy == test.correct.mean()


def test_missing_views_are_refused(tmp_path: Path) -> None:
    folders = cache_of(tmp_path / "folders.h5", splits=folder_splits(COUNT))
    with pytest.raises(UsageError, match="contains 4 views of training images; choose 0 to 4, or"):
        compare(folders, views=5)
    with pytest.raises(UsageError, match="--views -1"):
        compare(folders, views=-1)
    with pytest.raises(UsageError, match=r"--tta: .*extract with --views and --tta"):
        compare(folders, tta=True)
    with pytest.raises(BadDataError, match=r"4 views of 48 of the 80 images.*--views 0"):
        compare(folders, cv=3)  # those in validation and test folders have none
    assert compare(folders, cv=3, views=0).results[0].views == 0


def test_rows_of_no_image_and_repeated_views_are_left_out(tmp_path: Path) -> None:
    table = read_table(cache_of(tmp_path / "c.h5"))
    columns = table.columns
    orphan = np.flatnonzero(columns.paths == b"7.jpg")[
        columns.views[columns.paths == b"7.jpg"] == 0
    ]
    rows = np.append(np.delete(np.arange(len(table)), orphan), [3, 3])
    odd = replace(table, columns=columns.take(rows), file_rows=table.file_rows[rows])
    cached = CachedViews.of(odd)
    assert len(cached.images) == COUNT - 1
    assert len(cached.table) == (COUNT - 1) * (VIEWS + 1)
    assert b"7.jpg" not in set(cached.images.columns.paths.tolist())


def test_views_of_a_replaced_file_are_left_out(tmp_path: Path) -> None:
    table = read_table(cache_of(tmp_path / "c.h5"))
    digests = table.columns.digests.copy()
    digests[(table.columns.paths == b"7.jpg") & (table.columns.views > 0)] = digests[0]
    cached = CachedViews.of(replace(table, columns=replace(table.columns, digests=digests)))
    assert len(cached.table) == COUNT * (VIEWS + 1) - VIEWS


@pytest.mark.parametrize("by", ["path", "digest"])
def test_an_edited_label_applies_to_every_view(tmp_path: Path, by: str) -> None:
    path = cache_of(tmp_path / "c.h5")
    table = read_table(path)
    digests = draw_columns(LABELS).digests
    first, second = (
        f"{row}.jpg" if by == "path" else digests[row].tobytes().hex() for row in (4, 6)
    )
    (tmp_path / "edits.csv").write_text(f"{by},new_label,drop\n{first},dogs,\n{second},,yes\n")
    (cache,) = open_caches([path], ClassifyConfig(cv=4, labels=tmp_path / "edits.csv"))
    assert len(cache.table) == COUNT - 1
    assert len(cache.views.table) == (COUNT - 1) * (VIEWS + 1)
    trials = cache.trial_plan.trials
    data = TrialRows.read(cache.views, "names:avg", "pooled", trials, refit=False)
    train = data.training_rows(np.arange(COUNT - 1))
    edited = train.features[:, 0] == 4
    assert edited.sum() == VIEWS + 1
    assert (train.labels[edited] == 1).all()
    assert not (train.features[:, 0] == 6).any()
    assert len(table) == COUNT * (VIEWS + 1)


def test_counts_are_of_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_cache(
        tmp_path / "c.h5", labels=LABELS, splits=folder_splits(COUNT), views=4, signal=0.3
    )
    with caplog.at_level("INFO", logger="pipeline"):
        comparison = compare_heads(path, heads="logistic")
    assert "c.h5: 80 images" in caplog.text
    assert "train       24 cats, 24 dogs × 5 views" in caplog.text
    assert "test        8 cats, 8 dogs\n" in caplog.text
    (described,) = comparison.run["caches"]
    assert described["split_counts"]["train"] == {"cats": 24, "dogs": 24}
    assert (described["cached_views"], described["views"], described["tta"]) == (4, 4, 0)
    assert comparison.findings is not None
    curve = comparison.findings.learning_curve
    assert curve is not None
    assert curve.sizes.tolist() == [24, 48]
