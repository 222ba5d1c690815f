"""A comparison reads caches, chooses on validation, scores on test."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import SPEC, alternating_labels, draw_features, folder_splits, write_cache
from sklearn.linear_model import LogisticRegression

from pipeline.cache.file import read_table
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import Comparison
from pipeline.evaluation.rows import ROWS_PER_BLOCK, read_input
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import parse_heads

FAST = "logistic,linear_svm,ridge,lda,knn,naive_bayes,majority"
LABELS = alternating_labels(200)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "synthetic.h5"
    return write_cache(path, labels=LABELS, splits=folder_splits(200), signal=0.3)


def compare_all(cache: Path) -> Comparison:
    dense = DenseConfig(epochs=2, units=8, learning_rate=1e-3)
    return compare_heads(cache, dense=dense, seed=4, audit=False)


@pytest.fixture(scope="module")
def comparison(cache: Path) -> Comparison:
    """All heads on one split."""
    return compare_all(cache)


def test_every_head_has_a_row_and_validation_sorts_them(comparison: Comparison) -> None:
    results = comparison.results
    assert {result.head for result in results} == {each.name for each in parse_heads("all")}
    validation = [result.validation_accuracy for result in results]
    assert validation == sorted(validation, reverse=True)
    for result in results:
        assert 0 <= result.test_low <= result.test_accuracy <= result.test_high <= 1
        assert result.input == ("flat" if result.head == "dense" else "pooled")
        assert result.fingerprint == SPEC.fingerprint
    for outcome in comparison.outcomes:
        assert outcome.test is not None
        assert len(outcome.test) == 40
        assert outcome.result.test_accuracy == pytest.approx(outcome.test.correct.mean())
        assert (outcome.history is not None) == (outcome.result.head == "dense")
    majority = next(result for result in results if result.head == "majority")
    assert majority.test_accuracy == pytest.approx(0.5)


def test_a_row_equals_scikit_learn_by_hand(cache: Path) -> None:
    (result,) = compare_heads(cache, heads="logistic").results
    table = read_table(cache)
    pooled = table.features("block5_pool").mean(axis=(1, 2)).astype(np.float64)
    labels, splits = table.columns.labels, table.columns.splits
    train = pooled[splits == 1]
    pooled = (pooled - train.mean(axis=0)) / np.sqrt(train.var(axis=0).sum())
    name, _, value = result.params.partition("=")
    model = LogisticRegression(**{name: float(value)}, tol=1e-10, max_iter=10_000)
    model.fit(pooled[splits == 1], labels[splits == 1])
    for split, found in (
        (1, result.train_accuracy),
        (2, result.validation_accuracy),
        (3, result.test_accuracy),
    ):
        score = model.score(pooled[splits == split], labels[splits == split])
        assert found == pytest.approx(score)


def without_times(comparison: Comparison) -> list[dict[str, object]]:
    return [
        result.row() | {"fit_seconds": None, "predict_ms": None} for result in comparison.results
    ]


def test_the_same_seed_repeats_the_table(cache: Path, comparison: Comparison) -> None:
    assert without_times(compare_all(cache)) == without_times(comparison)


def test_test_labels_change_no_choice(tmp_path: Path, cache: Path) -> None:
    table = read_table(cache)
    labels = table.columns.labels.copy()
    rows = np.flatnonzero(table.columns.splits == 3)
    labels[rows] = np.random.default_rng(0).permutation(labels[rows])
    shuffled = write_cache(
        tmp_path / "shuffled.h5",
        labels=labels.tolist(),
        splits=table.columns.splits.tolist(),
        layers={"block5_pool": table.features("block5_pool")},
    )
    chosen = (
        "head",
        "input",
        "params",
        "train_accuracy",
        "validation_accuracy",
        "parameters",
    )
    honest, blind = (compare_heads(path, heads=FAST, audit=False) for path in (cache, shuffled))
    assert [[result.row()[name] for name in chosen] for result in honest.results] == [
        [result.row()[name] for name in chosen] for result in blind.results
    ]
    assert [result.test_accuracy for result in honest.results] != [
        result.test_accuracy for result in blind.results
    ]


def test_flat_and_pooled_are_chosen_per_head(cache: Path) -> None:
    heads = "logistic,logistic:flat,naive_bayes:flat"
    results = compare_heads(cache, heads=heads, audit=False).results
    found = {(result.head, result.input): result.parameters for result in results}
    assert found == {
        ("logistic", "pooled"): 8 + 1,
        ("logistic", "flat"): 2 * 2 * 8 + 1,
        ("naive_bayes", "flat"): 2 * 2 * 32 + 2,
    }


def test_vectors_are_pooled_and_pixels_flat(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = write_cache(
        tmp_path / "v.h5",
        labels=LABELS,
        layers={"block5_pool:avg": random.random((200, 6), np.float32)},
    )
    pixels = write_cache(
        tmp_path / "p.h5",
        labels=LABELS,
        layers={"pixels": random.random((200, 4, 4, 3), np.float32)},
        spec=replace(SPEC, base="pixels", image_size=4),
    )
    results = compare_heads([vectors, pixels], heads="ridge,ridge:flat", audit=False).results
    found = {(result.base, result.layer, result.input, result.parameters) for result in results}
    assert found == {("vgg16", "block5_pool:avg", "pooled", 7), ("pixels", "pixels", "flat", 49)}
    assert len(results) == 2


def test_large_maps_are_pooled_unless_flat_is_asked_for(tmp_path: Path) -> None:
    path = write_cache(
        tmp_path / "a.h5", labels=[0, 1] * 10, splits=folder_splits(20), shape=(8, 8, 400)
    )
    heads = "prototype,prototype:flat,dense"
    dense = DenseConfig(epochs=1)
    results = compare_heads(path, heads=heads, dense=dense, audit=False, keep=False).results
    inputs = {(result.head, result.input) for result in results}
    assert inputs == {("prototype", "pooled"), ("prototype", "flat"), ("dense", "pooled")}


def test_pooled_maps_are_their_means_in_the_order_of_the_rows(tmp_path: Path) -> None:
    count = ROWS_PER_BLOCK + 200
    table = read_table(write_cache(tmp_path / "c.h5", labels=alternating_labels(count)))
    rows = np.random.default_rng(0).permutation(count)[: ROWS_PER_BLOCK + 50]
    maps = table.features("block5_pool")[rows]
    np.testing.assert_allclose(
        read_input(table, "block5_pool", rows, "pooled"), maps.mean(axis=(1, 2)), rtol=1e-6
    )
    np.testing.assert_array_equal(
        read_input(table, "block5_pool", rows, "flat"), maps.reshape(len(rows), -1)
    )


def test_layers_are_compared_and_can_be_chosen(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    layers = {
        name: random.random((200, 5), np.float32) for name in ("a:avg", "a:max", "b", "c:avg")
    }
    cache = write_cache(tmp_path / "layers.h5", labels=LABELS, layers=layers)

    def compared(*names: str) -> set[str]:
        comparison = compare_heads(cache, heads="majority", layers=names, audit=False)
        return {result.layer for result in comparison.results}

    assert compared() == set(layers)
    assert compared("a") == {"a:avg", "a:max"}
    assert compared("a:max", "b") == {"a:max", "b"}
    with pytest.raises(UsageError, match="contains d; choose from a:avg, a:max, b, c:avg"):
        compared("d")


def test_the_log_and_the_document_state_the_splits(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pipeline"):
        comparison = compare_heads(cache, heads="majority", audit=False)
    assert "split as in the set" in caplog.text
    assert "60 cats, 60 dogs" in caplog.text
    (described,) = comparison.run["caches"]
    assert described["split_counts"]["test"] == {"cats": 20, "dogs": 20}
    assert described["fingerprint"] == SPEC.fingerprint


def test_caches_of_other_classes_are_refused(tmp_path: Path, cache: Path) -> None:
    other = write_cache(tmp_path / "other.h5", labels=LABELS, classes=("cats", "frogs"))
    with pytest.raises(
        BadDataError, match=r"other\.h5 has the classes cats, frogs, .* cats, dogs;"
    ):
        compare_heads([cache, other], heads="majority")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    features = np.ones((200, 4), np.float32)
    features[17, 2] = np.inf
    cache = write_cache(tmp_path / "inf.h5", labels=LABELS, layers={"a": features})
    with pytest.raises(BadDataError, match=r"not finite.*--dtype float32"):
        compare_heads(cache, heads="ridge")


def test_values_that_vanish_in_float16_are_refused(tmp_path: Path) -> None:
    features = draw_features(np.asarray(LABELS), (4,)).astype(np.float16) * np.float16(1e-6)
    spec = replace(SPEC, dtype="float16")
    cache = write_cache(tmp_path / "tiny.h5", labels=LABELS, layers={"a": features}, spec=spec)
    with pytest.raises(BadDataError, match=r"too small for float16.*--dtype float32"):
        compare_heads(cache, heads="ridge")


def test_a_diverged_head_says_so_in_its_row(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    dense = DenseConfig(epochs=3, units=8, learning_rate=1e38, optimizer="sgd")
    comparison = compare_heads(cache, heads="dense,majority", dense=dense, audit=False)
    majority, diverged = comparison.results
    assert (majority.head, majority.status, majority.recommended) == ("majority", "", True)
    assert (diverged.head, diverged.status, diverged.recommended) == ("dense", "diverged", False)
    assert np.isnan(diverged.test_accuracy)
    assert "dense on flat block5_pool diverged; try a lower --learning-rate" in caplog.text
    with pytest.raises(BadDataError, match="no head could be fitted: dense diverged"):
        compare_heads(cache, heads="dense", dense=dense)


def test_no_cache_and_a_missing_cache_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no cache to compare"):
        compare_heads([])
    with pytest.raises(NoInputError, match="does not exist"):
        compare_heads(tmp_path / "nothing.h5")


def test_more_than_five_classes_have_a_top_5(tmp_path: Path) -> None:
    cache = write_cache(
        tmp_path / "seven.h5",
        labels=alternating_labels(210, 7),
        classes=[f"class {number}" for number in range(7)],
    )
    for result in compare_heads(cache, heads="knn,ridge", split="60/20/20", audit=False).results:
        assert result.top5_accuracy >= result.test_accuracy
