"""Fits within memory: in blocks, on a stated sample, or left out with what would do."""

import errno
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from pipeline.errors import BadDataError, StorageError
from pipeline.evaluation.fit_plan import plan_fit, stratified_sample
from pipeline.evaluation.lazy_features import LazyFeatures
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import search
from pipeline.heads.config import DenseConfig
from pipeline.heads.many_neighbors import fit_shared, shares_search, without_search
from pipeline.heads.registry import HEADS, load_head
from pipeline.heads.scaler import CommonScaler
from pipeline.memory import _container_limits, memory_budget
from tests.feature_sets import draw_features

LABELS = np.arange(1200) % 3
MEGABYTE = 10**6


def draw(width: int = 12) -> LabelledRows:
    return LabelledRows(draw_features(LABELS, (width,), signal=0.7), LABELS)


def stored(rows: LabelledRows) -> LabelledRows:
    """The same rows with features in a temporary file."""
    parts = np.array_split(np.arange(len(rows)), 7)
    blocks = ((part, np.asarray(rows.features[part])) for part in parts)
    return replace(rows, features=LazyFeatures.write(blocks, rows.shape))


def test_rows_in_a_temporary_file_are_the_same_rows_and_the_file_is_deleted() -> None:
    rows = draw()
    lazy = stored(rows)
    assert isinstance(lazy.features, LazyFeatures)
    path = lazy.features.source
    numbers = np.array([5, 900, 2])
    np.testing.assert_array_equal(lazy.take(numbers).features[:], rows.features[numbers])
    np.testing.assert_array_equal(
        np.concatenate([block for _, block in lazy.blocks()]), rows.features
    )
    joined = lazy.joined(lazy.take(numbers))
    np.testing.assert_array_equal(joined.in_memory().features[-3:], rows.features[numbers])
    assert isinstance(path, Path)
    assert path.exists()
    del lazy, joined
    assert not path.exists()


def test_heads_that_change_their_rows_do_not_change_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.evaluation.search.MANY_ROWS", 1000)
    features = 8 * draw().features[:]  # kNN of many rows scales them in place
    rows, before = LabelledRows(LazyFeatures.of(features), LABELS), features.copy()
    search(load_head("knn"), rows, rows, class_count=3, seed=0)
    np.testing.assert_array_equal(features, before)


def test_a_full_temporary_folder_is_an_error_that_names_its_cure() -> None:
    with pytest.raises(StorageError, match="TMPDIR"):
        LazyFeatures.write([], (10**9, 10**9))


@pytest.mark.skipif(sys.platform != "linux", reason="files without a name")
def test_a_killed_process_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lazy = stored(draw())
    assert lazy.features[:1].any()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="os.posix_fallocate")
def test_a_disk_that_fills_before_the_file_is_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fallocate(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fallocate)
    with pytest.raises(StorageError, match="TMPDIR"):
        stored(draw())


@pytest.mark.parametrize("name", ["ridge", "logistic", "knn", "naive_bayes"])
def test_heads_of_stored_rows_predict_as_those_of_rows_in_memory(name: str) -> None:
    rows, head = draw(), load_head(name)
    fits = [
        search(head, each, each, class_count=3, seed=0, memory=memory)
        for each, memory in ((rows, np.inf), (stored(rows), 200 * MEGABYTE))
    ]
    first, second = (fit.validation_scores for fit in fits if fit is not None)
    assert np.mean(first.argmax(axis=1) == second.argmax(axis=1)) > 0.99


@pytest.mark.slow
def test_the_dense_head_learns_from_a_file_that_memory_cannot_hold() -> None:
    rows = draw()
    head = load_head("dense", [DenseConfig(epochs=6, units=16, learning_rate=1e-2)])
    lazy = stored(rows)
    plan = plan_fit(head, lazy, 3, 1)
    assert plan.in_blocks
    fit = search(head, lazy, lazy, class_count=3, seed=0, memory=1)
    in_memory = search(head, rows, rows, class_count=3, seed=0)
    assert fit is not None
    assert in_memory is not None
    assert fit.validation_accuracy == pytest.approx(in_memory.validation_accuracy, abs=0.05)


def test_a_head_past_its_limit_is_fitted_on_a_stated_sample_with_every_class() -> None:
    rows = draw()
    head = replace(HEADS["svm_rbf"], max_rows=300)
    plan = plan_fit(head, rows, 3, np.inf)
    assert plan.note == "fitted on 300 of 1,200 images"
    assert plan.rows is not None
    assert np.bincount(LABELS[plan.rows]).tolist() == [100, 100, 100]
    np.testing.assert_array_equal(plan.rows, stratified_sample(rows, 300))
    fit = search(head, rows, rows, class_count=3, seed=0)
    assert fit is not None
    assert fit.note == plan.note


@pytest.mark.parametrize("name", ["knn", "svm_rbf", "random_forest"])
def test_few_rows_that_memory_cannot_hold_are_no_sample_of_all_of_them(name: str) -> None:
    with pytest.raises(BadDataError, match=r"raise --memory by 0\.\d GB"):
        plan_fit(load_head(name), draw().take(np.arange(900)), 3, 1000)


def test_a_head_past_its_limit_needs_memory_for_its_limit_only() -> None:
    with pytest.raises(BadDataError, match="fitted on 300 rows of 12 features"):
        plan_fit(replace(HEADS["svm_rbf"], max_rows=300), draw(), 3, 1000)


def test_the_note_of_a_sample_counts_augmented_views() -> None:
    rows = replace(draw(), images=np.arange(1200) // 4)
    plan = plan_fit(replace(HEADS["svm_rbf"], max_rows=300), rows, 3, np.inf)
    assert plan.note == "fitted on 300 of 1,200 images and views"


def test_a_sample_contains_the_rarest_class() -> None:
    labels = np.zeros(1000, np.int64)
    labels[7] = 1
    rows = LabelledRows(np.zeros((1000, 2), np.float32), labels)
    assert 7 in stratified_sample(rows, 10)


def test_a_head_that_cannot_be_fitted_says_what_it_needs() -> None:
    head = load_head("kornblith")
    with pytest.raises(BadDataError, match=r"needs 0\.\d GB .*: raise --memory"):
        plan_fit(head, draw(), 3, 1000)


def test_a_forest_uses_as_many_rows_as_memory_holds() -> None:
    plan = plan_fit(load_head("random_forest"), draw(), 3, 25 * MEGABYTE)
    assert plan.rows is not None
    assert 1000 <= len(plan.rows) < 1200
    assert plan.needed <= 25 * MEGABYTE


def test_one_search_for_all_numbers_of_neighbors_finds_those_of_scikit_learn() -> None:
    features = draw(40).features[:]
    features[3] = 0  # such as of a black image, after a ReLU
    head = load_head("knn")
    template = head.build(40, 3)
    settings = [{"kneighborsclassifier__n_neighbors": k} for k in (25, 5, 1)]
    for params, shared in fit_shared(template, settings, features.copy(), LABELS):
        queries = draw_features(LABELS[:90], (40,), signal=0.7)
        expected = template.set_params(**params).fit(features, LABELS)
        np.testing.assert_allclose(
            shared.predict_proba(queries), expected.predict_proba(queries), atol=1e-9
        )
        plain = without_search(shared)
        assert type(plain[-1]).__name__ == "KNeighborsClassifier"
        np.testing.assert_allclose(
            plain.predict_proba(queries), expected.predict_proba(queries), atol=1e-9
        )


def test_scikit_learn_searches_centered_rows_and_those_of_nearly_one_direction() -> None:
    knn, rows = KNeighborsClassifier(metric="cosine"), draw().features
    template = make_pipeline(CommonScaler(with_mean=False), knn)
    assert shares_search(template, rows)
    assert not shares_search(make_pipeline(CommonScaler(), knn), rows)
    assert not shares_search(template, rows[:] + np.float32(1e4))


def test_the_limit_of_a_container_bounds_the_memory(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text("3:memory:/docker/inner\n1:cpu:/\n0::/slice/app\n")
    for folder, name, text in (
        ("memory/docker", "memory.limit_in_bytes", "3000"),
        ("memory/docker/inner", "memory.limit_in_bytes", "9000"),
        ("slice", "memory.max", "2000"),
        ("slice/app", "memory.max", "max"),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    assert sorted(_container_limits(tmp_path, groups)) == [2000, 3000, 9000]
    assert memory_budget(1.5) == 1_500_000_000
    assert memory_budget() > 100 * MEGABYTE
