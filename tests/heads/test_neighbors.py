"""Nearest neighbours vote as scikit-learn's do."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from head_sets import draw_train
from pipeline.heads.head import FitOptions
from pipeline.heads.neighbors import NEIGHBORS, Knn
from pipeline.heads.training import TrainingSet
from sklearn.neighbors import KNeighborsClassifier

from pipeline.heads import blocks

SIZE = (90, 10)
FRESH = np.random.default_rng(5).normal(size=(40, 10)).astype(np.float32)


def draw_untied(class_count: int, **options: Any) -> TrainingSet:
    """No two rows at the same angle: which of them votes would be arbitrary."""
    train = draw_train(SIZE, class_count, **options)
    noise = np.random.default_rng(6).normal(size=SIZE).astype(np.float32)
    return replace(train, features=noise + train.features / 100)


@pytest.mark.parametrize("class_count", [2, 4])
def test_shares_equal_scikit_learn(class_count: int) -> None:
    train = draw_untied(class_count)
    candidates = list(Knn().fit_candidates(train, train, FitOptions()))
    assert [candidate.spec.params["k"] for candidate in candidates] == list(NEIGHBORS)
    for candidate in candidates:
        reference = KNeighborsClassifier(
            candidate.spec.params["k"], metric="cosine", algorithm="brute"
        ).fit(train.features, train.labels)
        np.testing.assert_allclose(
            candidate.classifier.scores(FRESH), reference.predict_proba(FRESH), atol=1e-12
        )


def test_blocks_of_rows_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    train = draw_untied(2)
    candidate = next(Knn().fit_candidates(train, train, FitOptions()))
    at_once = candidate.classifier.scores(FRESH)
    monkeypatch.setattr(blocks, "ROWS_PER_BLOCK", 7)
    np.testing.assert_array_equal(candidate.classifier.scores(FRESH), at_once)
    assert candidate.classifier.scores(FRESH[:0]).shape == (0, 2)


def test_balanced_votes_count_by_how_rare_their_class_is() -> None:
    train = draw_untied(3, rare=5, balanced=True)
    counts = np.bincount(train.labels)
    for candidate in Knn().fit_candidates(train, train, FitOptions()):
        reference = KNeighborsClassifier(
            candidate.spec.params["k"], metric="cosine", algorithm="brute"
        ).fit(train.features, train.labels)
        votes = reference.predict_proba(FRESH) / counts
        expected = votes / votes.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(candidate.classifier.scores(FRESH), expected, atol=1e-12)


def test_no_more_neighbours_than_rows_and_a_row_of_zeros_is_no_trouble() -> None:
    train = draw_train((6, 10))
    candidates = list(Knn().fit_candidates(train, train, FitOptions()))
    assert [candidate.spec.params["k"] for candidate in candidates] == [5, 3, 1]
    scores = candidates[0].classifier.scores(np.zeros((1, 10), np.float32))
    np.testing.assert_allclose(scores.sum(axis=1), 1)
