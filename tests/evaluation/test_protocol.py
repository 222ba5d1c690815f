"""The protocol decides how often a set is split, and which seeds heads are fitted with."""

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_columns, folder_splits

from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.protocol import FEW_IMAGES, EvaluationProtocol

CLASSES = ("cats", "dogs")


@pytest.mark.parametrize(
    ("count", "folders", "options", "folds"),
    [
        (100, False, {}, 5),
        (FEW_IMAGES, False, {}, 0),
        (100, True, {}, 0),
        (100, False, {"split": "60/20/20"}, 0),
        (100, True, {"folds": 4}, 4),
        (8, False, {}, 4),
    ],
)
def test_small_sets_without_folders_are_cross_validated(
    count: int, folders: bool, options: dict[str, object], folds: int
) -> None:
    labels = alternating_labels(count)
    columns = draw_columns(labels, splits=folder_splits(count) if folders else None)
    plan = EvaluationProtocol(**options).plan_trials(columns, CLASSES)
    assert plan.folds == folds
    assert len(plan.trials) == max(folds, 1)


def test_ignored_folders_are_reported() -> None:
    columns = draw_columns(alternating_labels(100), splits=folder_splits(100))
    assert (
        "splits of the set are ignored"
        in EvaluationProtocol(folds=3).plan_trials(columns, CLASSES).source
    )
    columns = draw_columns(alternating_labels(100))
    assert "ignored" not in EvaluationProtocol(folds=3).plan_trials(columns, CLASSES).source


def test_repeats_are_seeds_of_one_split_or_other_folds() -> None:
    columns = draw_columns(alternating_labels(100))
    (trial,) = (
        EvaluationProtocol(split="60/20/20", repeats=3, seed=5).plan_trials(columns, CLASSES).trials
    )
    assert trial.seeds == (5, 6, 7)
    trials = EvaluationProtocol(folds=4, repeats=2, seed=5).plan_trials(columns, CLASSES).trials
    assert [each.seeds for each in trials] == [(5,)] * 4 + [(6,)] * 4
    for repeat in (trials[:4], trials[4:]):
        tested = np.concatenate([each.splits.test for each in repeat])
        np.testing.assert_array_equal(np.sort(tested), np.arange(100))
    assert not np.array_equal(trials[0].splits.test, trials[4].splits.test)


def test_shares_and_folds_keep_groups_together() -> None:
    columns = draw_columns(alternating_labels(300))
    rule = r"^(\d+)\d\.jpg"  # paths are 0.jpg … 299.jpg: ten in a row are one group
    object_of = np.arange(300) // 10
    for options in ({"folds": 3}, {"split": "60/20/20"}):
        for trial in EvaluationProtocol(group=rule, **options).plan_trials(columns, CLASSES).trials:
            splits = trial.splits
            train, validation, test = (
                set(object_of[rows[rows >= 10]])
                for rows in (splits.train, splits.validation, splits.test)
            )
            assert not train & validation
            assert not (train | validation) & test


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 5, "split": "60/20/20"}, "omit one"),
        ({"folds": 2}, "needs 3 folds"),
        ({"repeats": 0}, "--repeats: expected 1 or more"),
        ({"split_seed": -1}, "--split-seed is a number from 0"),
        ({"seed": 2**32 - 1, "repeats": 2}, "--seed is a number from 0"),
    ],
)
def test_invalid_rules_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EvaluationProtocol(**options)


def test_options_that_folders_overrule_are_refused_or_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    columns = draw_columns(alternating_labels(100), splits=folder_splits(100))
    with pytest.raises(UsageError, match="--split: the images are in train, validation and test"):
        EvaluationProtocol(split="80/10/10").plan_trials(columns, CLASSES)
    EvaluationProtocol(split_seed=7).plan_trials(columns, CLASSES)
    assert "--split-seed has no effect" in caplog.text
    rule = r"(\d)\.jpg"  # ten groups; the folders divide eight
    (notice,) = EvaluationProtocol(group=rule).plan_trials(columns, CLASSES).notices
    assert notice.startswith("the set's splits divide 8 groups, which inflates every accuracy")
    assert EvaluationProtocol(group=rule, folds=3).plan_trials(columns, CLASSES).notices == ()


def test_a_set_too_small_for_folds_is_refused() -> None:
    with pytest.raises(BadDataError, match="has 2 different images"):
        EvaluationProtocol(folds=3).plan_trials(draw_columns([0, 0, 1, 1]), CLASSES)
