"""What leaves a comparison: the classifier that was measured, or one fitted on every image."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import alternating_labels, folder_splits, write_cache

from pipeline.cache.file import read_table
from pipeline.evaluation import fitting, refit
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
from pipeline.heads.names import HeadRequest, groups
from pipeline.heads.registry import HEADS, load_head

QUICK_DENSE = DenseConfig(epochs=3, learning_rate=1e-3, units=8)
COUNT = 100


@pytest.fixture
def sorted_cache(tmp_path: Path) -> Path:
    labels = alternating_labels(COUNT, 3)
    classes = ("cats", "dogs", "frogs")
    splits = folder_splits(COUNT)
    return write_cache(tmp_path / "s.h5", labels=labels, classes=classes, splits=splits, signal=0.3)


def compare(path: Path, **options: object) -> Comparison:
    return compare_heads(path, dense=QUICK_DENSE, audit=False, **options)  # type: ignore[arg-type]


def saved_scores(outcome: Outcome, path: Path, rows: np.ndarray) -> np.ndarray:
    assert outcome.bundle is not None
    bundle = outcome.bundle
    features = read_input(read_table(path), bundle.layer, rows, bundle.input)
    return class_scores(bundle.estimator, features, len(bundle.classes))


@pytest.mark.parametrize("options", [{}, {"refit": True}, {"repeats": 3}])
def test_of_one_division_it_is_exactly_what_was_measured(
    sorted_cache: Path, options: dict[str, object]
) -> None:
    comparison = compare(sorted_cache, **options)
    assert [each.bundle.head for each in comparison.outcomes if each.bundle]  # none is left out
    assert {each.result.head for each in comparison.outcomes if each.bundle} == set(groups()["all"])
    for outcome in comparison.outcomes:
        assert outcome.test is not None
        scores = saved_scores(outcome, sorted_cache, outcome.test.rows)
        np.testing.assert_array_equal(scores, outcome.test.scores)  # the first seed's
        assert outcome.bundle is not None
        fitted_on = "train and validation" if "refit" in options else "train"
        assert outcome.bundle.document["fitted_on"] == fitted_on


def test_a_bundle_says_where_its_features_come_from(sorted_cache: Path) -> None:
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


@pytest.mark.parametrize("name", ["logistic", "ridge", "knn"])
def test_after_folds_the_usual_setting_is_fitted_on_all_images(
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
    wanted = {name_of_parameter: int(value) if name == "knn" else float(value)}
    ((_, expected),) = fit_grid(HEADS[name], train, train, class_count=3, seed=0, settings=[wanted])
    found = bundle.estimator
    method = "predict_proba"
    if name == "ridge":
        assert isinstance(found, TemperatureScaling)
        found, method = found.estimator, "decision_function"
    np.testing.assert_allclose(
        getattr(found, method)(features), getattr(expected, method)(features), atol=1e-6
    )


def folds_of(
    path: Path, names: tuple[str, ...], **options: Any
) -> tuple[dict[HeadRequest, Any], dict[HeadRequest, list[list[Fit]]], TrialRows, ClassifyConfig]:
    """Heads and what three folds found of them, as a comparison has them."""
    config = ClassifyConfig(cv=3, dense=QUICK_DENSE, **options)
    (cache,) = open_caches([path], config)
    trials = cache.trial_plan.trials
    data = TrialRows.read(cache.views, "block5_pool", "pooled", trials, refit=False)
    heads = {HeadRequest(name): load_head(name) for name in names}
    fits = fit_heads(heads, data, replace(config, timeout=None))
    return heads, fits, data, config  # type: ignore[return-value]


def test_the_usual_setting_keeps_the_mean_temperature_of_its_folds(sorted_cache: Path) -> None:
    heads, fits, data, config = folds_of(sorted_cache, ("ridge",))
    ((request, found),) = fits.items()
    first = found[0][0]
    odd = replace(first, params={"ridgeclassifier__alpha": 7.0}, temperature=1e6)
    twice = [replace(first, temperature=temperature) for temperature in (2.0, 8.0)]
    again = fit_on_all(heads, {request: [[odd], *([each] for each in twice)]}, data, config)
    (fit,) = again.values()
    assert isinstance(fit, Fit)
    assert fit.params == first.params
    assert fit.estimator.temperature == pytest.approx(4.0)


def test_heads_are_fitted_on_all_images_side_by_side(
    sorted_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = folds_of(sorted_cache, ("ridge", "logistic", "random_forest"))
    monkeypatch.setattr(fitting, "usable_cores", lambda: 2)
    both = threading.Barrier(2, timeout=20)
    original = refit.within

    def wait_for_the_other(config: ClassifyConfig, work: Any, name: str) -> Any:
        if name != "random_forest":
            both.wait()
        return original(config, work, name)

    monkeypatch.setattr(refit, "within", wait_for_the_other)
    assert [isinstance(fit, Fit) for fit in fit_on_all(*found).values()] == [True] * 3


def test_a_fit_on_all_images_that_takes_too_long_is_not_kept(sorted_cache: Path) -> None:
    *found, config = folds_of(sorted_cache, ("random_forest",))
    (slow,) = fit_on_all(*found, replace(config, timeout=1e-6)).values()
    assert slow == "stopped after 1e-06 s"
    (quick,) = fit_on_all(*found, replace(config, timeout=60)).values()
    assert isinstance(quick, Fit)


def test_what_is_not_kept_says_why(sorted_cache: Path, tmp_path: Path) -> None:
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


def test_a_head_that_cannot_take_all_images_is_measured_but_not_kept(
    sorted_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEADS, "svm_rbf", replace(HEADS["svm_rbf"], max_rows=COUNT - 1))
    (outcome,) = compare(sorted_cache, heads="svm_rbf", cv=5).outcomes
    assert outcome.result.test_accuracy > 0.4
    assert outcome.bundle is None
    assert "at most 99" in outcome.not_saved
