"""Every head keeps the contract; names are read as they are typed."""

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_features

from pipeline.errors import UsageError
from pipeline.heads.head import FitOptions
from pipeline.heads.registry import HEADS, HeadRequest, load_head, parse_heads
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet


def drawn_rows(count: int, class_count: int, seed: int) -> LabelledRows:
    # one set of patterns, other noise
    labels = np.asarray(alternating_labels(count, class_count))
    everything = draw_features(np.tile(labels, 3), (12,), signal=1.5)
    return LabelledRows(everything[seed * count : (seed + 1) * count], labels)


@pytest.mark.parametrize("class_count", [2, 4])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_scores_each_class_and_learns(name: str, class_count: int) -> None:
    train, validation = drawn_rows(120, class_count, 0), drawn_rows(120, class_count, 1)
    options = FitOptions(
        dense=DenseSettings(epochs=30, learning_rate=1e-2, units=16, optimizer="adam")
    )
    candidates = list(
        load_head(name).fit_candidates(
            TrainingSet(train.features, train.labels, class_count), validation, options
        )
    )
    assert candidates
    accuracies = []
    for candidate in candidates:
        assert candidate.spec.name == name
        assert candidate.converged
        scores = candidate.classifier.scores(validation.features)
        assert scores.shape == (120, class_count)
        assert scores.dtype == np.float64
        if candidate.classifier.has_probabilities:
            assert scores.min() >= 0
            np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-12)
        assert candidate.classifier.parameters > 0
        accuracies.append(float(np.mean(scores.argmax(axis=1) == validation.labels)))
    floor = 1 / class_count
    assert max(accuracies) == pytest.approx(floor) if name == "majority" else max(accuracies) > 0.8


@pytest.mark.parametrize("name", HEADS)
def test_every_head_repeats_itself(name: str) -> None:
    train, validation = drawn_rows(60, 2, 0), drawn_rows(60, 2, 1)
    options = FitOptions(seed=3, dense=DenseSettings(epochs=2, learning_rate=1e-3, units=8))
    first, second = (
        [
            candidate.classifier.scores(validation.features)
            for candidate in load_head(name).fit_candidates(
                TrainingSet(train.features, train.labels, 2), validation, options
            )
        ]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["dense", "random_forest"])
def test_another_seed_gives_another_fit(name: str) -> None:
    train, validation = drawn_rows(60, 2, 0), drawn_rows(60, 2, 1)
    first, second = (
        next(
            load_head(name).fit_candidates(
                TrainingSet(train.features, train.labels, 2),
                validation,
                FitOptions(seed=seed, dense=DenseSettings(epochs=1, units=8)),
            )
        ).classifier.scores(validation.features)
        for seed in (0, 1)
    )
    assert not np.array_equal(first, second)


def test_all_stands_for_every_head() -> None:
    assert [request.name for request in parse_heads("all")] == list(HEADS)
    assert {request.input for request in parse_heads("all")} == {None}
    assert {request.input for request in parse_heads("all:flat")} == {"flat"}


def test_input_is_chosen_per_head_and_repeats_count_once() -> None:
    assert parse_heads(" knn, dense:pooled,knn ,dense:flat") == [
        HeadRequest("knn"),
        HeadRequest("dense", "pooled"),
        HeadRequest("dense", "flat"),
    ]
    assert parse_heads(["ridge", "lda:flat"]) == [HeadRequest("ridge"), HeadRequest("lda", "flat")]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("logistik", "did you mean logistic?"),
        ("quantum", "choose from dense, logistic"),
        ("knn:round", "flat or pooled"),
        (" , ", "names no head"),
    ],
)
def test_wrong_head_names_get_a_remedy(typed: str, told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("?", r"\?")):
        parse_heads(typed)
