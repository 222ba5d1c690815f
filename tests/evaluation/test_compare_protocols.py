"""Folds, repeats, refits, corrected labels and several caches, against computations by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import (
    SPEC,
    alternating_labels,
    draw_columns,
    draw_features,
    folder_splits,
    write_cache,
)
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss

from pipeline.cache.file import read_table
from pipeline.errors import UsageError
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.metrics import expected_calibration_error
from pipeline.evaluation.protocol import EvaluationProtocol
from pipeline.heads.config import DenseConfig

LABELS = alternating_labels(200)
QUICK_DENSE = DenseConfig(epochs=3, units=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images without split folders, hard to distinguish."""
    path = tmp_path_factory.mktemp("cache") / "synthetic.h5"
    return write_cache(path, labels=LABELS, signal=0.2)


@pytest.fixture(scope="module")
def sorted_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with split folders."""
    path = tmp_path_factory.mktemp("cache") / "sorted.h5"
    return write_cache(path, labels=LABELS, splits=folder_splits(200), signal=0.2)


@pytest.fixture
def random_head(tmp_path: Path) -> str:
    """The name of a custom head that draws random numbers, and takes no time to fit."""
    (tmp_path / "trees.py").write_text("from sklearn.tree import ExtraTreeClassifier as head\n")
    return "trees:head"


def pooled_of(cache: Path) -> np.ndarray:
    return read_table(cache).features("block5_pool").mean(axis=(1, 2)).astype(np.float64)


def scaled(pooled: np.ndarray, train: np.ndarray) -> np.ndarray:
    return (pooled - pooled[train].mean(axis=0)) / np.sqrt(pooled[train].var(axis=0).sum())


def best_of_grid(
    rows: np.ndarray, labels: np.ndarray, held_out: np.ndarray, truth: np.ndarray
) -> LogisticRegression:
    """The model of the highest accuracy, of equal ones that of the lower log loss."""
    models = [
        LogisticRegression(C=10.0**exponent, tol=1e-10, max_iter=10_000).fit(rows, labels)
        for exponent in range(-2, 4)
    ]
    return max(
        models,
        key=lambda model: (
            model.score(held_out, truth),
            -log_loss(truth, model.predict_proba(held_out)),
        ),
    )


def test_folds_equal_scikit_learn_by_hand(cache: Path) -> None:
    comparison = compare_heads(cache, heads="logistic", cv=4, audit=False)
    (outcome,) = comparison.outcomes
    columns = read_table(cache).columns
    pooled, labels = pooled_of(cache), columns.labels
    correct = np.zeros(200, bool)
    accuracies = []
    for trial in EvaluationProtocol(folds=4).plan_trials(columns, ("cats", "dogs")).trials:
        train, validation, test = trial.splits.train, trial.splits.validation, trial.splits.test
        rows = scaled(pooled, train)
        best = best_of_grid(rows[train], labels[train], rows[validation], labels[validation])
        correct[test] = best.predict(rows[test]) == labels[test]
        accuracies.append(correct[test].mean())
    assert outcome.test is not None
    np.testing.assert_array_equal(outcome.test.correct, correct)
    result = outcome.result
    assert result.test_accuracy == pytest.approx(correct.mean())
    assert result.test_spread == pytest.approx(np.std(accuracies, ddof=1))
    assert result.fits == 4
    assert comparison.run["cv"] == 4
    assert "over 4 folds" in comparison.recommendation
    # of all images together: the bins of a fold are too small
    expected = expected_calibration_error(outcome.test.labels, outcome.test.scores)
    assert result.ece == pytest.approx(expected)


def test_repeats_are_seeds_of_stochastic_heads_only(sorted_cache: Path, random_head: str) -> None:
    heads = f"{random_head},ridge"
    repeated = compare_heads(sorted_cache, heads=heads, repeats=3, audit=False)
    results = {result.head: result for result in repeated.results}
    assert (results[random_head].fits, results["ridge"].fits) == (3, 1)
    accuracies = [
        compare_heads(sorted_cache, heads=random_head, seed=seed, audit=False)
        .results[0]
        .test_accuracy
        for seed in range(3)
    ]
    assert results[random_head].test_accuracy == pytest.approx(np.mean(accuracies))
    assert results[random_head].test_spread == pytest.approx(np.std(accuracies, ddof=1))
    assert np.isnan(results["ridge"].test_spread)


def test_the_same_seed_repeats_folds_and_table(cache: Path, random_head: str) -> None:
    def rows(seed: int) -> list[dict[str, object]]:
        comparison = compare_heads(
            cache, heads=f"{random_head},ridge", cv=3, repeats=2, seed=seed, audit=False
        )
        return [result.row() | {"fit_seconds": 0, "predict_ms": 0} for result in comparison.results]

    assert rows(7) == rows(7) != rows(8)


def test_refit_trains_on_train_and_validation(sorted_cache: Path) -> None:
    (plain,) = compare_heads(sorted_cache, heads="ridge", audit=False).outcomes
    (outcome,) = compare_heads(sorted_cache, heads="ridge", refit=True, audit=False).outcomes
    assert outcome.result.validation_accuracy == plain.result.validation_accuracy
    assert outcome.result.params == plain.result.params
    columns = read_table(sorted_cache).columns
    train = np.flatnonzero(columns.splits != 3)
    rows = scaled(pooled_of(sorted_cache), train)
    model = RidgeClassifier(alpha=float(outcome.result.params.partition("=")[2]))
    model.fit(rows[train], columns.labels[train])
    assert outcome.test is not None
    np.testing.assert_array_equal(model.predict(rows[outcome.test.rows]), outcome.test.predicted)


def test_validation_chooses_from_a_dense_grid(sorted_cache: Path) -> None:
    grid = [replace(QUICK_DENSE, units=units) for units in (4, 8)]
    (outcome,) = compare_heads(sorted_cache, heads="dense", dense=grid, audit=False).outcomes
    assert len(outcome.settings) == 2
    (chosen,) = (each for each in outcome.settings if each.chosen)
    assert chosen.validation_accuracy == max(e.validation_accuracy for e in outcome.settings)
    assert outcome.result.params == chosen.params


def test_corrected_labels_are_used_and_dropped_rows_left_out(
    tmp_path: Path, sorted_cache: Path
) -> None:
    edits = tmp_path / "edits.csv"
    edits.write_text("path,new_label,drop\n0.jpg,dogs,\n2.jpg,,yes\n")
    comparison = compare_heads(sorted_cache, heads="majority", labels=edits, audit=False)
    (described,) = comparison.run["caches"]
    assert described["split_counts"]["train"] == {"cats": 58, "dogs": 61}
    assert comparison.run["labels"] == [edits.as_posix()]


def test_caches_of_the_same_images_are_compared_in_pairs(tmp_path: Path) -> None:
    def synthetic(name: str, signal: float, salt: str = "") -> Path:
        return write_cache(
            tmp_path / f"{name}.h5",
            labels=LABELS,
            layers=None,
            signal=signal,
            spec=replace(SPEC, base=name),
            columns=draw_columns(LABELS, splits=folder_splits(200), salt=salt),
        )

    same = [synthetic("strong", 0.6), synthetic("weak", 0.02)]
    strong, weak = compare_heads(same, heads="ridge", audit=False).results
    assert (strong.base, weak.base) == ("strong", "weak")
    assert strong.verdict == "best"
    assert weak.p_value < 0.05
    other = [same[0], synthetic("weaker", 0.02, salt="other images")]
    comparison = compare_heads(other, heads="ridge", audit=False)
    assert np.isnan(comparison.results[1].p_value)
    assert "contain different images" in comparison.notices[0]


def test_a_cache_that_is_named_twice_is_compared_once(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = cache.parent / "." / cache.name
    assert len(compare_heads([cache, again], heads="majority", audit=False).results) == 1
    assert "named twice" in caplog.text


def test_imbalance_is_noticed(tmp_path: Path) -> None:
    labels = [0, 0, 0, 1] * 50
    cache = write_cache(tmp_path / "imbalanced.h5", labels=labels, splits=folder_splits(200))
    comparison = compare_heads(cache, heads="majority", audit=False)
    assert "imbalanced: 90 training images of cats (75 %), 30 of dogs" in comparison.notices[0]
    assert "--balance" in comparison.notices[0]
    (result,) = comparison.results
    assert result.balanced_accuracy == pytest.approx(0.5)
    assert result.test_accuracy == pytest.approx(0.75)


@pytest.mark.parametrize("options", [{}, {"split": "60/20/20"}, {"cv": 3}])
def test_imbalance_is_of_all_images_not_of_one_draw(
    tmp_path: Path, options: dict[str, object]
) -> None:
    classes = tuple(f"class {number:02}" for number in range(30))
    labels = [number % 30 for number in range(30 * 40)]
    equal = write_cache(tmp_path / "equal.h5", labels=labels, classes=classes)
    assert compare_heads(equal, heads="majority", audit=False, **options).notices == ()
    one_smaller = [label for number, label in enumerate(labels) if label or number < 20 * 30]
    smaller = write_cache(tmp_path / "smaller.h5", labels=one_smaller, classes=classes)
    (notice,) = compare_heads(smaller, heads="majority", audit=False, **options).notices
    assert "imbalanced: 40 images of class 01 (3 %), 20 of class 00" in notice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "other"}, "--protocol is one of"),
        ({"protocol": "kornblith", "heads": "ridge"}, "omit --heads"),
        ({"timeout": 0.0}, "--timeout: expected above 0"),
    ],
)
def test_contradictory_options_are_refused(
    cache: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compare_heads(cache, **options)


FLAKY = """
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression

class Flaky(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.model_ = LogisticRegression().fit(X, y)
        self.classes_, self.calls_ = self.model_.classes_, 0
        return self

    def predict_proba(self, X):
        self.calls_ += 1
        if self.calls_ > 1:  # after validation
            raise MemoryError("too big")
        return self.model_.predict_proba(X)
"""


def test_a_custom_head_that_fails_on_test_rows_costs_its_row_only(
    tmp_path: Path, sorted_cache: Path
) -> None:
    (tmp_path / "flaky_head.py").write_text(FLAKY)
    heads = ["ridge", "flaky_head:Flaky"]
    ridge, flaky = compare_heads(sorted_cache, heads=heads, audit=False).results
    assert (ridge.head, ridge.status) == ("ridge", "")
    assert (flaky.head, flaky.status) == ("flaky_head:Flaky", "failed: MemoryError: too big")


ODD = """
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier

class Offset(LogisticRegression):
    def fit(self, X, y):
        super().fit(X, y)
        self.classes_ = self.classes_ + 1
        return self

class Misnamed(LogisticRegression):
    def predict_proba(self, X):
        return super().predict_proba(X)[:, ::-1]

class Tied(LogisticRegression):
    def predict_proba(self, X):
        return np.full((len(X), 2), 0.5) + [1e-9, -1e-9]

def strict():
    return FixedThresholdClassifier(LogisticRegression(), threshold=0.9)
"""


def test_scores_of_other_classes_cost_a_row_and_of_another_order_a_warning(
    tmp_path: Path, sorted_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "odd_heads.py").write_text(ODD)
    heads = ["ridge", "odd_heads:Offset", "odd_heads:Misnamed"]
    rows = {row.head: row for row in compare_heads(sorted_cache, heads=heads, audit=False).results}
    assert rows["ridge"].status == rows["odd_heads:Misnamed"].status == ""
    expected = "has classes_ [1, 2]; expected the labels 0 to 1, each once"
    assert rows["odd_heads:Offset"].status == expected
    (warning,) = [each.getMessage() for each in caplog.records if "Misnamed" in each.getMessage()]
    assert "another class than that of its highest score for 40 of 40 validation images" in warning


@pytest.mark.parametrize("refit", [False, True])
def test_a_threshold_that_decides_otherwise_is_warned_of_and_a_tie_is_not(
    tmp_path: Path, sorted_cache: Path, caplog: pytest.LogCaptureFixture, refit: bool
) -> None:
    (tmp_path / "odd_heads.py").write_text(ODD)
    heads = ["odd_heads:strict", "odd_heads:Tied", "odd_heads:LogisticRegression"]
    compare_heads(sorted_cache, heads=heads, refit=refit, audit=False)
    pooled, labels, splits = pooled_of(sorted_cache), np.array(LABELS), np.array(folder_splits(200))
    train = splits <= 1 + refit
    model = LogisticRegression().fit(pooled[train], labels[train])
    scores = model.predict_proba(pooled[splits == 2])[:, 1]
    differ = np.count_nonzero((scores > 0.5) & (scores < 0.9))
    assert 0 < differ < 40
    (warning,) = [each.getMessage() for each in caplog.records if "odd_heads" in each.getMessage()]
    assert warning.startswith(
        f"odd_heads:strict predicts another class than that of its highest score for {differ} of "
        f"40 validation images ({differ / 0.4:.1f} %); its row, predict and export use the scores"
    )


IN_PLACE = """
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

class Zeroing(LogisticRegression):
    def fit(self, X, y):
        super().fit(X, y)
        X[:] = y[:] = 0
        return self

    def predict_proba(self, X):
        scores = super().predict_proba(X)
        X[:] = 0
        return scores

def scaled(copy=False):
    return make_pipeline(StandardScaler(copy=copy), LogisticRegression())

def copied():
    return scaled(copy=True)
"""


def test_a_head_that_changes_features_in_place_changes_no_row_of_the_table(
    tmp_path: Path, sorted_cache: Path
) -> None:
    (tmp_path / "in_place.py").write_text(IN_PLACE)
    heads = ["ridge", *(f"in_place:{name}" for name in ("Zeroing", "scaled"))]
    alone = ["ridge", *(f"in_place:{name}" for name in ("LogisticRegression", "copied"))]
    together, apart = (
        [
            {each.head: each for each in compare_heads(sorted_cache, heads=of, audit=False).results}
            for of in groups
        ]
        for groups in ([heads], [[name] for name in alone])
    )
    for name, other, comparison in zip(heads, alone, apart, strict=True):
        found, expected = together[0][name], comparison[other]
        assert found.train_accuracy == expected.train_accuracy
        assert found.validation_accuracy == expected.validation_accuracy
        assert found.log_loss == expected.log_loss


@pytest.mark.slow
def test_a_factor_of_all_features_changes_no_row_of_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "forests.py").write_text(
        "from sklearn.ensemble import RandomForestClassifier\n"
        "def forest():\n    return RandomForestClassifier(20)\n"
    )
    heads = ["fast", "ridge:flat", "lda:flat", "knn:flat", "forests:forest"]
    features = draw_features(np.asarray(LABELS), (2, 2, 8), signal=0.2)
    tables = []
    for scale in (1.0, 1e-30, 1e30):
        cache = write_cache(
            tmp_path / f"{scale}.h5",
            labels=LABELS,
            splits=folder_splits(200),
            layers={"block5_pool": features * np.float32(scale)},
        )
        comparison = compare_heads(cache, heads=heads, audit=False)
        assert all(each.bundle is not None for each in comparison.outcomes)
        tables.append(
            {
                (each.result.head, each.result.input): (each.result.params, each.test.predicted)
                for each in comparison.outcomes
            }
        )
    for table in tables[1:]:
        np.testing.assert_equal(table, tables[0])
    warned = [each.getMessage() for each in caplog.records if "power of two" in each.getMessage()]
    assert len(warned) == 2
