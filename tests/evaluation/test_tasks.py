"""Multi-label and regression sets: metrics, intervals, folds, choices and refusals."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_line, run_command
from feature_sets import draw_columns, folder_splits, write_cache
from scipy.stats import bootstrap
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)
from target_sets import LABELS, write_targets

from pipeline.cache.file import read_table
from pipeline.errors import BadDataError
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.result import NO_RECOMMENDATION, Comparison, HeadPredictions, Outcome
from pipeline.evaluation.splits import spread_over_folds
from pipeline.evaluation.tasks import TASKS, interval
from pipeline.heads.config import DenseConfig
from pipeline.spec import MULTILABEL, REGRESSION, UNLABELLED

QUICK = DenseConfig(epochs=30, units=16, learning_rate=1e-2, optimizer="adam")
BOTH = pytest.mark.parametrize("task", [MULTILABEL, REGRESSION])


def sklearn_metrics(test: HeadPredictions, **weights: Any) -> dict[str, float]:
    truth, scores = test.labels, test.scores
    if truth.ndim == 2:
        predicted = scores > 0.5
        return {
            "map": average_precision_score(truth, scores, **weights),
            "micro_f1": f1_score(truth, predicted, average="micro", **weights),
            "macro_f1": f1_score(truth, predicted, average="macro", **weights),
        }
    return {
        "rmse": root_mean_squared_error(truth, scores[:, 0], **weights),
        "mae": mean_absolute_error(truth, scores[:, 0], **weights),
        "r2": r2_score(truth, scores[:, 0], **weights),
    }


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Comparison]:
    """The fast heads of each task, cross-validated."""
    folder = tmp_path_factory.mktemp("targets")
    return {
        task: compare_heads(write_targets(folder / f"{task}.h5", task), heads="fast", audit=False)
        for task in (MULTILABEL, REGRESSION)
    }


@BOTH
def test_metrics_of_every_head_equal_scikit_learn(
    comparisons: dict[str, Comparison], task: str
) -> None:
    outcomes = comparisons[task].outcomes
    heads = {"logistic", "prevalence"} if task == MULTILABEL else {"mean"}
    assert {outcome.result.head for outcome in outcomes} == {"ridge", "knn", *heads}
    _check_metrics(outcomes)


@BOTH
@pytest.mark.slow
def test_the_dense_head_and_the_forest_beat_the_guess(tmp_path: Path, task: str) -> None:
    heads = "dense,random_forest," + ("prevalence" if task == MULTILABEL else "mean")
    cache = write_targets(tmp_path / "a.h5", task)
    comparison = compare_heads(cache, heads=heads, dense=QUICK, audit=False)
    _check_metrics(comparison.outcomes)
    assert comparison.results[-1].head in ("prevalence", "mean")
    assert comparison.results[-1].p_holm < 0.05
    assert all(outcome.bundle for outcome in comparison.outcomes)


def _check_metrics(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        assert len(outcome.test) == 150
        for name, expected in sklearn_metrics(outcome.test).items():
            metrics = outcome.result.metrics
            assert metrics[f"test_{name}"] == pytest.approx(expected, rel=1e-9)
            assert metrics[f"test_{name}_low"] <= expected <= metrics[f"test_{name}_high"]


@BOTH
def test_every_head_beats_the_guess_and_validation_sorts_them(
    comparisons: dict[str, Comparison], task: str
) -> None:
    comparison, rules = comparisons[task], TASKS[task]
    values = [-rules.sign * r.metrics[f"validation_{rules.measure}"] for r in comparison.results]
    assert values == sorted(values)
    assert comparison.results[-1].head in ("prevalence", "mean")
    assert comparison.recommendation.startswith("Use ")
    assert comparison.shown.result.p_holm != comparison.results[-1].p_holm
    assert comparison.results[-1].p_holm < 0.05


@BOTH
def test_weighted_metrics_equal_scikit_learn_with_ties(task: str) -> None:
    random = np.random.default_rng(3)
    truth = (random.random((80, 3)) < 0.3).astype(int) if task == MULTILABEL else random.random(80)
    scores = random.random((80, 3 if task == MULTILABEL else 1)).round(1)
    test = HeadPredictions(
        rows=np.arange(80),
        keys=np.empty(80, "V32"),
        paths=np.empty(80, "S1"),
        labels=truth,
        scores=scores,
    )
    weights = random.integers(0, 4, (80, 5)).astype(np.float64)
    for name, metric in TASKS[task].metrics.items():
        found = metric(truth, scores, weights)
        expected = [sklearn_metrics(test, sample_weight=column)[name] for column in weights.T]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_interval_equals_that_of_scipy() -> None:
    random = np.random.default_rng(4)
    truth = random.normal(size=300)
    predicted = truth + 0.5 * random.normal(size=300)
    samples = TASKS[REGRESSION].resampled(truth, [predicted[:, None]], "r2")
    low, high = interval(samples, r2_score(truth, predicted))
    expected = bootstrap(
        (truth, predicted), r2_score, n_resamples=1000, paired=True, vectorized=False,
        method="BCa", rng=random,
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose((low, high), expected, atol=0.01)


def test_a_label_without_test_image_is_left_out_and_a_notice_says_so(tmp_path: Path) -> None:
    splits = np.array(folder_splits(150))
    targets = (np.random.default_rng(1).random((150, 3)) < 0.4).astype(float)
    targets[splits == 3, 1] = 0
    cache = write_targets(tmp_path / "a.h5", MULTILABEL, targets=targets, splits=splits.tolist())
    comparison = compare_heads(cache, heads="ridge", audit=False)
    test = comparison.outcomes[0].test
    expected = average_precision_score(test.labels[:, [0, 2]], test.scores[:, [0, 2]])
    assert comparison.results[0].metrics["test_map"] == pytest.approx(expected)
    assert any("no test image has the label sea" in each for each in comparison.notices)


def test_the_interval_of_a_rare_label_is_of_resamples_with_all_labels() -> None:
    random = np.random.default_rng(6)
    truth = (random.random((90, 2)) < 0.5).astype(int)
    truth[:, 1] = np.arange(90) == 0
    scores = random.random((90, 2))
    for metric in ("map", "macro_f1"):
        value = TASKS[MULTILABEL].value(truth, scores, metric)
        samples = TASKS[MULTILABEL].resampled(truth, [scores], metric)
        assert samples.max() < 0.5  # that of the first label alone is about 0.5
        assert abs(np.median(samples) - value) < 0.03


@BOTH
def test_test_targets_change_no_choice(tmp_path: Path, task: str) -> None:
    splits = folder_splits(150)
    first = write_targets(tmp_path / "a.h5", task, splits=splits)
    targets = read_table(first).columns.targets.copy()
    is_test = np.array(splits) == 3
    targets[is_test] = targets[is_test][::-1]
    second = write_targets(tmp_path / "b.h5", task, splits=splits, targets=targets)
    one, other = (
        compare_heads(cache, heads="ridge,knn", audit=False).outcomes for cache in (first, second)
    )
    assert [
        (o.result.head, o.result.params, o.result.verdict, o.result.recommended) for o in one
    ] == [(o.result.head, o.result.params, o.result.verdict, o.result.recommended) for o in other]
    for before, after in zip(one, other, strict=True):
        np.testing.assert_array_equal(before.test.scores, after.test.scores)
        assert not np.array_equal(before.test.labels, after.test.labels)


def write_random_targets(path: Path, task: str, *, is_leaky: bool = False) -> Path:
    """Write 150 pairs of near-copies with random targets; digests of a leaky set's pairs differ."""
    random = np.random.default_rng(5)
    image = np.repeat(np.arange(150), 2)
    targets = random.permutation(np.arange(450) % 3 == 0).reshape(150, 3).astype(float)
    if task == REGRESSION:
        targets = random.normal(size=(150, 1))
    columns = draw_columns([0] * 300)
    digests = columns.digests if is_leaky else columns.digests[image]
    features = random.normal(size=(150, 24))[image] + 0.05 * random.normal(size=(300, 24))
    return write_cache(
        path,
        labels=[0] * 300,
        columns=replace(columns, targets=targets[image], digests=digests),
        layers={"block5_pool:avg": features.astype(np.float32)},
        classes=LABELS if task == MULTILABEL else ("year",),
        task=task,
    )


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"heads": "fast", "cv": 3},
        pytest.param({"heads": "all", "cv": 3, "refit": True}, marks=pytest.mark.slow),
        pytest.param({"heads": "all", "split": "50/25/25"}, marks=pytest.mark.slow),
    ],
)
def test_random_targets_are_not_predicted(tmp_path: Path, task: str, options: Any) -> None:
    cache = write_random_targets(tmp_path / "random.h5", task)
    comparison = compare_heads(cache, dense=QUICK, audit=False, **options)
    assert comparison.recommendation.startswith(NO_RECOMMENDATION)
    for result in comparison.results:
        if task == REGRESSION:
            assert result.metrics["test_r2"] < 0.1
        else:
            assert abs(result.metrics["test_map"] - 1 / 3) < 0.1


@BOTH
def test_a_leak_is_detected(tmp_path: Path, task: str) -> None:
    cache = write_random_targets(tmp_path / "leaky.h5", task, is_leaky=True)
    comparison = compare_heads(cache, heads="knn", cv=10, audit=False)
    assert comparison.recommendation.startswith("Use knn")
    assert comparison.results[0].metrics["test_r2" if task == REGRESSION else "test_map"] > 0.4


def test_folds_spread_rare_labels_and_keep_groups_together() -> None:
    random = np.random.default_rng(2)
    strata = random.random((200, 4)) < (0.5, 0.2, 0.05, 0.0)
    strata[::40, 3] = True  # five rows, one for each fold
    rows = np.arange(200)
    fold = spread_over_folds(strata, 5, 0, rows)
    counts = np.array([strata[fold == number].sum(axis=0) for number in range(5)])
    assert (np.ptp(counts, axis=0) <= 2).all()
    assert counts[:, 3].tolist() == [1] * 5
    assert np.ptp(np.bincount(fold)) <= 4
    grouped = spread_over_folds(strata, 5, 0, rows // 4)
    assert all(len(set(grouped[rows // 4 == group])) == 1 for group in range(50))


def test_folds_of_a_regression_have_the_same_distribution(
    comparisons: dict[str, Comparison], tmp_path: Path
) -> None:
    assert "stratified by tenths of the numbers" in json.dumps(comparisons[REGRESSION].run)
    numbers = np.sort(np.random.default_rng(0).exponential(size=(150, 1)), axis=0)
    cache = write_targets(tmp_path / "a.h5", REGRESSION, targets=numbers)
    table = read_table(cache)
    from pipeline.evaluation.protocol import EvaluationProtocol

    plan = EvaluationProtocol().plan_trials(table.columns, table.classes, table.task)
    medians = [np.median(numbers[trial.splits.test]) for trial in plan.trials]
    assert np.ptp(medians) < 0.25


@BOTH
def test_views_are_averaged_and_the_same_seed_gives_the_same_table(
    tmp_path: Path, task: str
) -> None:
    cache = write_targets(tmp_path / "a.h5", task, views=2)
    tables = [
        [
            {name: value for name, value in result.row().items() if "_ms" not in name}
            for result in compare_heads(
                cache, heads="ridge,knn", tta=True, repeats=2, cv=3, audit=False
            ).results
        ]
        for _ in range(2)
    ]
    for row in (row for table in tables for row in table):
        del row["fit_seconds"]
    assert tables[0] == tables[1]
    assert {(row["views"], row["tta"]) for row in tables[0]} == {(2, 2)}


@BOTH
def test_a_custom_head_is_compared(tmp_path: Path, task: str) -> None:
    Path("mine.py").write_text(
        "from sklearn.svm import SVR\nfrom sklearn.naive_bayes import GaussianNB\n"
    )
    cache = write_targets(tmp_path / "a.h5", task)
    name = "mine:SVR" if task == REGRESSION else "mine:GaussianNB"
    wrong = "mine:GaussianNB" if task == REGRESSION else "mine:SVR"
    comparison = compare_heads(cache, heads=f"{name},{wrong},ridge", audit=False)
    status = {outcome.result.head: outcome.result.status for outcome in comparison.outcomes}
    assert status[name] == ""
    assert "expected a scikit-learn " in status[wrong]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("year.h5 --heads logistic", 2, "logistic is no head for regression; choose from dense"),
        ("year.h5 --heads logistc", 2, "did you mean logistic?"),
        ("tags.h5 --heads mean", 2, "mean is no head for multilabel"),
        ("year.h5 --balance", 2, "--balance is for classes; the cache is of regression: omit it"),
        ("tags.h5 --protocol kornblith", 2, "--protocol kornblith is for classes"),
        ("tags.h5 --labels edits.csv", 2, "--labels is for classes"),
        ("year.h5 --columns head,test-map", 2, "--columns has no test-map"),
        ("tags.h5 year.h5", 65, "year.h5 is of regression, tags.h5 of multilabel"),
        ("none.h5", 65, "none.h5 has no labels, which classify needs"),
        ("year.h5 --task classes", 2, "--task classes: year.h5 is of regression; omit it"),
        ("huge.h5", 65, "year is from 1e+200 to 1.5e+202: squares of such numbers overflow"),
        ("one.h5", 65, "the cache has one, sea: extract with --label-column sea"),
        ("same.h5", 65, "year is 7 for every image: there is nothing to learn"),
        ("year.h5 --cv 200", 65, "the set has 150 images or groups, too few for 200 folds"),
    ],
)
def test_what_does_not_suit_the_task_is_refused_in_one_line(
    words: str, code: int, message: str
) -> None:
    write_targets(Path("year.h5"), REGRESSION)
    write_targets(Path("tags.h5"), MULTILABEL)
    write_targets(Path("same.h5"), REGRESSION, targets=np.full((150, 1), 7.0))
    huge = np.arange(1, 151)[:, None] * 1e200
    write_targets(Path("huge.h5"), REGRESSION, targets=huge)
    one = replace(draw_columns([0] * 9), targets=np.arange(9)[:, None] % 2.0)
    write_cache(Path("one.h5"), labels=[0] * 9, columns=one, classes=("sea",), task=MULTILABEL)
    write_cache(Path("none.h5"), labels=[0] * 9, classes=(), task=UNLABELLED)
    Path("edits.csv").write_text("path,new_label\n")
    finished = run_command("classify", *words.split(), check=code)
    assert message in assert_one_line(finished)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    cache = write_targets(tmp_path / "a.h5", REGRESSION, count=2, targets=np.array([[1.0], [2.0]]))
    with pytest.raises(BadDataError, match="an image or group each; the cache has 2"):
        compare_heads(cache)


@BOTH
def test_the_run_folder_shows_the_task(task: str) -> None:
    write_targets(Path("a.h5"), task)
    columns = "head,verdict,mae" if task == REGRESSION else "head,verdict,micro-f1"
    finished = run_command("classify", "a.h5", "--heads", "ridge,knn", "--columns", columns)
    assert "best *" in finished.stdout
    (folder,) = Path("results").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "results.csv", "results.json", "results.md", "settings.csv", "report.html", "models",
    }  # fmt: skip
    header = (folder / "results.csv").read_text().splitlines()[0].split(",")
    assert "test_r2_low" in header if task == REGRESSION else "test_macro_f1_high" in header
    assert "test_accuracy" not in header
    document = json.loads((folder / "results.json").read_text())
    assert document["run"]["task"] == task
    assert list(document["rows"][0]) == header
    page = (folder / "report.html").read_text()
    names = ["predicted", "worst"] if task == REGRESSION else ["precision", "worst"]
    for name in names:
        assert f'<section id="{name}"' in page
    for name in ("confusion", "roc", "reliability", "suspects"):
        assert f'<section id="{name}"' not in page
    assert "failed (" not in page
