"""A comparison keeps the classifier that it measured, or one fitted on all images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import alternating_labels, folder_splits, write_cache

from pipeline.cache.file import read_table
from pipeline.evaluation.caches import open_caches
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.fitting import fit_heads
from pipeline.evaluation.refit import fit_on_all
from pipeline.evaluation.result import Comparison, Fit, Outcome
from pipeline.evaluation.rows import LabelledRows, TrialRows, read_input
from pipeline.evaluation.search import fit_grid
from pipeline.heads.calibration import TemperatureScaling, class_scores
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import HEADS, load_head
from pipeline.models.bundle import load_bundle, save_bundle

QUICK_DENSE = DenseConfig(epochs=3, learning_rate=1e-3, units=8)
COUNT = 100


@pytest.fixture(scope="module")
def sorted_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(
        tmp_path_factory.mktemp("cache") / "s.h5",
        labels=alternating_labels(COUNT, 3),
        classes=("cats", "dogs", "frogs"),
        splits=folder_splits(COUNT),
        signal=0.3,
    )


def compare(path: Path, **options: object) -> Comparison:
    return compare_heads(path, dense=QUICK_DENSE, audit=False, **options)  # type: ignore[arg-type]


def saved_scores(outcome: Outcome, path: Path, rows: np.ndarray) -> np.ndarray:
    assert outcome.bundle is not None
    bundle = outcome.bundle
    features = read_input(read_table(path), bundle.layer, rows, bundle.input)
    return class_scores(bundle.estimator, features, len(bundle.classes))


@pytest.mark.parametrize(
    ("heads", "options", "fitted_on"),
    [
        ("dense,random_forest,ridge,knn", {"refit": True}, "train and validation"),
        ("trees:head", {"repeats": 3}, "train"),
    ],
)
def test_after_one_split_the_evaluated_classifier_is_kept(
    tmp_path: Path, sorted_cache: Path, heads: str, options: dict[str, object], fitted_on: str
) -> None:
    (tmp_path / "trees.py").write_text("from sklearn.tree import ExtraTreeClassifier as head\n")
    comparison = compare(sorted_cache, heads=heads, **options)
    assert len(comparison.outcomes) == len(heads.split(","))
    for outcome in comparison.outcomes:
        scores = saved_scores(outcome, sorted_cache, outcome.test.rows)
        np.testing.assert_array_equal(scores, outcome.test.scores)  # of the first seed
        assert outcome.bundle is not None
        assert outcome.bundle.document["fitted_on"] == fitted_on


def test_a_bundle_records_the_source_of_its_features(sorted_cache: Path) -> None:
    (outcome,) = compare(sorted_cache, heads="logistic").outcomes
    bundle, table = outcome.bundle, read_table(sorted_cache)
    assert bundle is not None
    assert (bundle.head, bundle.params) == ("logistic", outcome.result.params)
    assert (bundle.layer, bundle.input, bundle.shape) == ("block5_pool", "pooled", (2, 2, 8))
    assert (bundle.classes, bundle.spec) == (table.classes, table.spec)
    expected = {
        "cache": str(sorted_cache.resolve()),
        "set": "synthetic",
        "root": "nowhere",
        "weights_from": "imagenet",
        "engine": {"name": "none"},
    }
    assert expected.items() <= bundle.document.items()


@pytest.mark.parametrize("name", ["ridge", "knn"])
def test_after_folds_the_most_frequent_setting_is_fitted_on_all_images(
    sorted_cache: Path, name: str
) -> None:
    (outcome,) = compare(sorted_cache, heads=name, cv=5).outcomes
    bundle = outcome.bundle
    assert bundle is not None
    assert bundle.document["fitted_on"] == "all images, after 5 folds without them in turn"
    assert bundle.params == outcome.result.params.partition(" (")[0]
    assert bundle.params  # one setting, of however many folds
    table, rows = read_table(sorted_cache), np.arange(COUNT)
    features = read_input(table, bundle.layer, rows, bundle.input)
    train = LabelledRows(features, table.columns.labels)
    parameter, _, value = bundle.params.partition("=")
    (name_of_parameter,) = (key for key in HEADS[name].grid if key.endswith(f"__{parameter}"))  # type: ignore[union-attr]
    params = {name_of_parameter: int(value) if name == "knn" else float(value)}
    ((_, expected),) = fit_grid(HEADS[name], train, train, class_count=3, seed=0, settings=[params])
    estimator, method = bundle.estimator, "predict_proba"
    if name == "ridge":
        assert isinstance(estimator, TemperatureScaling)
        estimator, method = estimator.estimator, "decision_function"
    np.testing.assert_allclose(
        getattr(estimator, method)(features), getattr(expected, method)(features), atol=1e-6
    )


def folds_of(
    path: Path, name: str
) -> tuple[dict[HeadRequest, Any], dict[HeadRequest, list[list[Fit]]], TrialRows, ClassifyConfig]:
    """A head and its fits on three folds, as a comparison has them."""
    config = ClassifyConfig(cv=3)
    (cache,) = open_caches([path], config)
    trials = cache.trial_plan.trials
    data = TrialRows.read(cache.views, "block5_pool", "pooled", trials, refit=False)
    heads = {HeadRequest(name): load_head(name)}
    return heads, fit_heads(heads, data, config), data, config  # type: ignore[return-value]


def test_the_kept_classifier_has_the_mean_temperature_of_its_folds(sorted_cache: Path) -> None:
    heads, fits, data, config = folds_of(sorted_cache, "ridge")
    ((request, fits_of_ridge),) = fits.items()
    first = fits_of_ridge[0][0]
    odd = replace(first, params={"ridgeclassifier__alpha": 7.0}, temperature=1e6)
    twice = [replace(first, temperature=temperature) for temperature in (2.0, 8.0)]
    (fit,) = fit_on_all(heads, {request: [[odd], [twice[0]], [twice[1]]]}, data, config).values()
    assert isinstance(fit, Fit)
    assert fit.params == first.params
    assert fit.estimator.temperature == pytest.approx(4.0)


SLOW_ON_ALL = f"""
import time
from sklearn.dummy import DummyClassifier

class Head(DummyClassifier):
    def fit(self, X, y):
        time.sleep(600 * (len(X) == {COUNT}))
        return super().fit(X, y)
"""


@pytest.mark.slow
def test_a_fit_on_all_images_that_takes_too_long_is_not_kept(
    tmp_path: Path, sorted_cache: Path
) -> None:
    (tmp_path / "endless.py").write_text(SLOW_ON_ALL)
    heads, fits, data, config = folds_of(sorted_cache, "endless:Head")
    (reason,) = fit_on_all(heads, fits, data, replace(config, timeout=0.1)).values()
    assert reason == "stopped after 0.1 s"


def test_a_classifier_that_is_not_kept_has_a_reason(sorted_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from sklearn.linear_model import LogisticRegression as make\nclass Mine(make):\n    pass\n"
    )
    comparison = compare(sorted_cache, heads="mine:make,mine:Mine,ridge")
    reasons = {each.result.head: each.not_saved for each in comparison.outcomes}
    assert reasons["mine:make"] == ""  # scikit-learn's own types can be saved
    assert "mine.Mine" in reasons["mine:Mine"]
    assert reasons["ridge"] == ""
    (outcome,) = compare(sorted_cache, heads="ridge", keep=False).outcomes
    assert outcome.bundle is None
    assert outcome.not_saved == "no classifier was kept"


def test_a_bundle_does_not_keep_the_bytes_of_its_estimator(
    sorted_cache: Path, tmp_path: Path
) -> None:
    """Those of kNN are as large as its training rows."""
    (outcome,) = compare(sorted_cache, heads="ridge").outcomes
    assert outcome.bundle is not None
    for name in ("first.skops", "second.skops"):
        save_bundle(outcome.bundle, tmp_path / name)
        loaded = load_bundle(tmp_path / name)
        assert replace(loaded, estimator=outcome.bundle.estimator) == outcome.bundle
    assert vars(outcome.bundle).keys() == vars(loaded).keys()


def test_a_head_past_its_maximum_is_fitted_on_a_sample_that_its_row_states(
    sorted_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEADS, "svm_rbf", replace(HEADS["svm_rbf"], max_rows=50))
    (outcome,) = compare(sorted_cache, heads="svm_rbf", cv=5).outcomes
    assert outcome.result.note.startswith("fitted on 50 of ")
    assert outcome.bundle is not None
    assert f"(fitted on 50 of {COUNT} images)" in outcome.bundle.document["fitted_on"]
