"""Training again with corrected labels is the same comparison, and says what changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from review_sets import CLASSES, review_columns, write_cache_and_run

from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.evaluation.compare import compare_heads
from pipeline.images.scan import TEST
from pipeline.review import Review, compare_runs, open_review, retrain


def results(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "results.json").read_text())["run"])


def scores(review: Review) -> list[tuple[str, float, float]]:
    names = ("head", "validation_accuracy", "test_accuracy")
    return [tuple(row[name] for name in names) for row in review.rows]  # type: ignore[misc]


def test_without_edits_the_new_run_is_the_old_one(run: Path) -> None:
    review = open_review(run)
    stages: list[tuple[str, int, int]] = []
    new = open_review(
        retrain(review, heads=review.heads, progress=lambda *stage: stages.append(stage))
    )
    assert new.run.parent == run.parent
    assert stages[-1][1] == stages[-1][2] > 0
    assert scores(new) == scores(review)
    ignored = {"created", "command", "folder", "save", "not_saved"}
    assert {name: value for name, value in results(new.run).items() if name not in ignored} == {
        name: value for name, value in results(run).items() if name not in ignored
    }
    comparison = compare_runs(review, new)
    assert comparison.images == comparison.notices == ()
    assert [row.old for row in comparison.rows] == list(review.rows)
    assert comparison.old_accuracy == comparison.new_accuracy


def test_the_recommended_head_alone_is_trained_by_default(run: Path) -> None:
    review = open_review(run)
    new = open_review(retrain(review))
    assert len(new.rows) == 1
    assert {name: new.row[name] for name in ("head", "input", "test_accuracy")} == {
        name: review.row[name] for name in ("head", "input", "test_accuracy")
    }
    rows = compare_runs(review, new).rows
    assert [row.new is None for row in rows] == [False, True]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"cv": 3}, marks=pytest.mark.slow),
        pytest.param({"protocol": "kornblith", "heads": None}, marks=pytest.mark.slow),
    ],
)
def test_corrected_labels_are_trained_on_and_named(options: dict[str, object]) -> None:
    columns = review_columns(180)
    true = columns.labels.copy()
    wrong = np.arange(10, 180, 12)
    columns.labels[wrong] = (true[wrong] + 1) % 3
    review = open_review(write_cache_and_run(columns, signal=2.0, **options))
    for row in wrong.tolist():
        review.labels.relabel(row, CLASSES[true[row]])
    review.labels.drop(9)
    run = retrain(review)
    assert results(run)["labels"] == [f"{review.run}/labels.csv"]
    new = open_review(run)
    assert len(new.table) == 179
    comparison = compare_runs(review, new)
    changed = {image.row: image for image in comparison.images}
    assert {*wrong.tolist(), 9} <= changed.keys()
    assert changed[9].new_label is None
    for row in wrong.tolist():
        assert changed[row].path == columns.paths[row]
        assert changed[row].old_label == CLASSES[columns.labels[row]]
        assert changed[row].new_label == CLASSES[true[row]]
    tested = np.flatnonzero(review.splits == TEST)
    assert comparison.tested == len(tested) - (9 in tested)
    assert comparison.new_accuracy == pytest.approx(new.row["test_accuracy"])
    again = open_review(retrain(new))  # a third run, from the second
    assert scores(again) == scores(new)


def test_a_command_with_the_labels_file_gives_the_same_table(run: Path) -> None:
    review = open_review(run)
    review.labels.relabel(4, 0)
    review.labels.drop(8)
    comparison = compare_heads(
        review.table.path,
        heads="logistic,knn",
        seed=3,
        repeats=2,
        labels=review.labels.path,
        audit=False,
    )
    new = open_review(retrain(review, heads=review.heads))
    assert [row["test_accuracy"] for row in new.rows] == [
        result.test_accuracy for result in comparison.results
    ]


@pytest.mark.slow
def test_a_set_that_becomes_small_is_not_divided_into_folds() -> None:
    count = 2004
    review = open_review(
        write_cache_and_run(review_columns(count, splits=[0] * count), heads="prototype")
    )
    for row in range(10, 18):
        review.labels.drop(row)
    new = open_review(retrain(review))
    assert (new.splits != TEST).any()
    kept = np.flatnonzero(np.isin(review.table.columns.paths, new.table.columns.paths))
    np.testing.assert_array_equal(review.splits[kept], new.splits)


def test_what_is_gone_or_cannot_be_trained_is_one_line(run: Path) -> None:
    review = open_review(run)
    with pytest.raises(UsageError, match="unknown head 'nearest'"):
        retrain(review, heads=["nearest"])
    review.labels.path.write_text("path,drop\nnone.jpg,yes\n")  # of another cache, or misspelt
    with pytest.raises(BadDataError, match=r"labels\.csv:2: no image is called none\.jpg"):
        retrain(review)
    review.labels.path.unlink()
    review.labels.relabel(4, 0)
    new = open_review(retrain(review))
    shutil.rmtree(run)
    again = open_review(new.run)
    assert again.notices == (
        f"{run}/labels.csv, which the run used, is gone: labels are as cached",
    )
    with pytest.raises(NoInputError, match=rf"--labels {run}/labels\.csv does not exist"):
        retrain(again)
    Path("cache/synthetic.h5").unlink()
    with pytest.raises(NoInputError, match="is gone: restore it"):
        retrain(review)


def test_a_run_of_finetune_opens_and_is_not_trained_again(run: Path) -> None:
    path = run / "results.json"
    document = json.loads(path.read_text())
    kept = ("classes", "seed", "repeats", "split", "split_seed", "group", "versions", "caches")
    about = {name: document["run"][name] for name in kept}
    path.write_text(
        json.dumps(document | {"run": about | {"unfreeze": "block5_conv1", "views": 0}})
    )
    review = open_review(run)
    assert (review.predicted >= 0).any()
    with pytest.raises(UsageError, match=r"is a run of finetune.*pipeline\.classify cache/synth"):
        retrain(review)
