"""The random forest is scikit-learn's, one for each seed, and predicts the same without it."""

import numpy as np
import pytest
from head_sets import draw_train
from pipeline.heads.forest import ForestClassifier, RandomForest
from pipeline.heads.head import FitOptions
from sklearn.ensemble import RandomForestClassifier

from pipeline.heads import forest


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "TREES", 10)


@pytest.mark.parametrize("balanced", [False, True])
def test_one_forest_for_each_setting_and_seed(balanced: bool) -> None:
    train = draw_train((90, 10), 3, rare=3, balanced=balanced)
    candidates = list(RandomForest().fit_candidates(train, train, FitOptions(seeds=(4, 9))))
    drawn = [(candidate.spec.params["leaf"], candidate.seed) for candidate in candidates]
    assert drawn == [(5, 4), (5, 9), (1, 4), (1, 9)]
    for (leaf, seed), candidate in zip(drawn, candidates, strict=True):
        reference = RandomForestClassifier(
            10,
            min_samples_leaf=leaf,
            class_weight="balanced" if balanced else None,
            random_state=seed,
        ).fit(train.features, train.labels)
        expected = reference.predict_proba(train.features)
        expected /= expected.sum(axis=1, keepdims=True)
        scores = candidate.classifier.scores(train.features)
        np.testing.assert_array_equal(scores, expected)
        nodes = sum(tree.tree_.node_count for tree in reference)
        assert candidate.classifier.parameters == nodes


def test_a_value_at_its_threshold_goes_where_scikit_learn_sends_it() -> None:
    train = draw_train((200, 10))
    (candidate, *_) = RandomForest().fit_candidates(train, train, FitOptions())
    forest = candidate.classifier
    assert isinstance(forest, ForestClassifier)
    reference = RandomForestClassifier(10, min_samples_leaf=5, random_state=0)
    reference.fit(train.features, train.labels)
    inner = np.flatnonzero(forest.children[:, 0] != np.arange(len(forest.children)))
    rows = np.repeat(train.features[:1], len(inner), axis=0)
    rows[np.arange(len(inner)), forest.features[inner]] = forest.thresholds[inner]
    for way in (-np.inf, 0, np.inf):  # just below in float32, at it and just above
        near = np.nextafter(rows, np.float32(way)) if way else rows
        expected = reference.predict_proba(near)
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(forest.scores(near), expected)


def test_no_rows_and_many_rows_are_predicted_alike() -> None:
    train = draw_train((90, 10), 3)
    (candidate, *_) = RandomForest().fit_candidates(train, train, FitOptions())
    scores = candidate.classifier.scores
    assert scores(train.features[:0]).shape == (0, 3)
    many = np.tile(train.features, (30, 1))  # more than a block
    np.testing.assert_array_equal(scores(many), np.tile(scores(train.features), (30, 1)))


def test_many_trees_are_walked_by_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    train = draw_train((90, 10), 3)
    (candidate, *_) = RandomForest().fit_candidates(train, train, FitOptions())
    expected = candidate.classifier.scores(train.features)
    whole, blocks = ForestClassifier._mean_shares, []

    def counted(self: ForestClassifier, features: np.ndarray) -> np.ndarray:
        blocks.append(len(features))
        return whole(self, features)

    monkeypatch.setattr(ForestClassifier, "_mean_shares", counted)
    for steps, rows in ((70, 7), (1, 1)):  # of 10 trees
        monkeypatch.setattr(forest, "STEPS_PER_BLOCK", steps)
        blocks.clear()
        np.testing.assert_array_equal(candidate.classifier.scores(train.features), expected)
        assert max(blocks) == rows
