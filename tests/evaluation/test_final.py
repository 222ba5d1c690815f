"""What leaves a comparison: the classifier that was measured, or one fitted on every image."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import alternating_labels, folder_splits, write_cache
from pipeline.evaluation.choose import Choice
from pipeline.evaluation.final import with_bundles
from pipeline.evaluation.inputs import read_input
from pipeline.heads.head import Classifier, FitOptions, Head
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import TrainingSet

from pipeline.cache.file import read_table
from pipeline.evaluation import final, fitting
from pipeline.evaluation.caches import open_caches
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.fitting import FitRules, Fitted, TrialRows, fit_heads
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.result import Comparison, Outcome
from pipeline.evaluation.scoring import score
from pipeline.heads.calibration import Calibrated
from pipeline.heads.registry import ALL, HeadRequest, load_head

QUICK_DENSE = DenseSettings(epochs=3, learning_rate=1e-3, units=8)
COUNT = 100


@pytest.fixture
def sorted_cache(tmp_path: Path) -> Path:
    labels = alternating_labels(COUNT, 3)
    classes = ("cats", "dogs", "frogs")
    splits = folder_splits(COUNT)
    return write_cache(tmp_path / "s.h5", labels=labels, classes=classes, splits=splits, signal=0.3)


def compare(path: Path, **options: object) -> Comparison:
    return compare_heads(path, dense=QUICK_DENSE, look=False, **options)  # type: ignore[arg-type]


def saved_scores(outcome: Outcome, path: Path, rows: np.ndarray) -> np.ndarray:
    assert outcome.bundle is not None
    bundle = outcome.bundle
    return bundle.classifier.scores(read_input(read_table(path), bundle.layer, rows, bundle.input))


@pytest.mark.parametrize("options", [{}, {"refit": True}, {"repeats": 3}])
def test_of_one_division_it_is_exactly_what_was_measured(
    sorted_cache: Path, options: dict[str, object]
) -> None:
    comparison = compare(sorted_cache, **options)
    assert [each.bundle.head for each in comparison.outcomes if each.bundle]  # none is left out
    assert {each.result.head for each in comparison.outcomes if each.bundle} == set(ALL)
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
        "set": "drawn",
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
    train = TrainingSet(features, table.columns.labels, 3)
    parameter, _, value = bundle.params.partition("=")
    wanted = {parameter: int(value) if name == "knn" else float(value)}
    (candidate,) = load_head(name).fit_candidates(train, train, FitOptions(wanted=wanted))
    alone = bundle.classifier
    if name == "ridge":
        assert isinstance(alone, Calibrated)
        alone = alone.classifier
    np.testing.assert_allclose(
        alone.scores(features), candidate.classifier.scores(features), atol=1e-4
    )


def test_the_usual_setting_keeps_the_mean_temperature_of_its_folds(
    sorted_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usual(fitted: Sequence[Fitted]) -> list[Choice]:
        choices = [each.choices[0] for each in fitted]
        odd = replace(choices[0].candidate, spec=replace(choices[0].candidate.spec, params={}))
        temperatures = (2.0, 8.0, 1e6)
        chosen = [
            replace(choice, candidate=candidate, temperature=temperature)
            for choice, candidate, temperature in zip(
                choices, (choices[0].candidate,) * 2 + (odd,), temperatures, strict=True
            )
        ]
        return original([Fitted((choice,)) for choice in chosen])

    original = final._usual
    monkeypatch.setattr(final, "_usual", usual)
    (outcome,) = compare(sorted_cache, heads="ridge", cv=3).outcomes
    assert outcome.bundle is not None
    classifier = outcome.bundle.classifier
    assert isinstance(classifier, Calibrated)
    assert classifier.temperature == pytest.approx(4.0)


def folds_of(path: Path, names: Sequence[str]) -> tuple:  # type: ignore[type-arg]
    """Heads, what folds found of them, their rows and their cache, as a comparison has them."""
    protocol = Protocol(folds=3)
    (cache,) = open_caches([path], layers=(), protocol=protocol)
    data = TrialRows.read(cache, "block5_pool", "pooled")
    heads = {HeadRequest(name): load_head(name) for name in names}
    return heads, fit_heads(heads, data, FitRules(dense=(QUICK_DENSE,))), data, cache


def outcomes_of(heads, fitted, data, cache, **rules: object) -> list[Outcome]:  # type: ignore[no-untyped-def]
    outcomes = {
        request: score(
            request.name,
            fitted[request],
            data,
            table=cache.table,
            layer="block5_pool",
            kind="pooled",
            folds=3,
        )
        for request in heads
    }
    return with_bundles(outcomes, heads, fitted, data, cache=cache, rules=FitRules(**rules))  # type: ignore[arg-type]


def test_heads_are_fitted_on_all_images_side_by_side(
    sorted_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = folds_of(sorted_cache, ("ridge", "logistic", "random_forest"))
    monkeypatch.setattr(fitting, "usable_cores", lambda: 2)
    both = threading.Barrier(2, timeout=20)
    original = final._fit_once

    def wait_for_the_other(head: Head, *others: Any) -> Classifier:
        if not head.uses_all_cores:
            both.wait()
        return original(head, *others)

    monkeypatch.setattr(final, "_fit_once", wait_for_the_other)
    assert [outcome.bundle is not None for outcome in outcomes_of(*found)] == [True] * 3


def test_a_fit_on_all_images_that_takes_too_long_is_not_saved(sorted_cache: Path) -> None:
    found = folds_of(sorted_cache, ("random_forest",))
    (slow,) = outcomes_of(*found, timeout=1e-6)
    assert slow.not_saved == "stopped after 1e-06 s"
    assert slow.bundle is None
    assert slow.result.test_accuracy > 0.2  # its row stays
    (quick,) = outcomes_of(*found, timeout=60)
    assert quick.bundle is not None


def test_what_is_not_kept_says_why(sorted_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from sklearn.linear_model import LogisticRegression as make\n"
    )
    comparison = compare(sorted_cache, heads="mine:make,ridge")
    reasons = {each.result.head: each.not_saved for each in comparison.outcomes}
    assert "only as a pickle" in reasons["mine:make"]
    assert reasons["ridge"] == ""
    (outcome,) = compare(sorted_cache, heads="ridge", keep=False).outcomes
    assert outcome.bundle is None
    assert outcome.not_saved == "no classifier was kept"


def test_a_head_that_cannot_take_all_images_is_measured_but_not_kept(
    sorted_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.heads.svm_rbf.MOST_ROWS", COUNT - 1)
    (outcome,) = compare(sorted_cache, heads="svm_rbf", cv=5).outcomes
    assert outcome.result.test_accuracy > 0.4
    assert outcome.bundle is None
    assert "at most 99" in outcome.not_saved
