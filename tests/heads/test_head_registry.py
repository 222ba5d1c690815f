"""Every head keeps the contract; names are read as they are typed."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_features
from pipeline.heads.head import Candidate, FitOptions
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet
from threadpoolctl import threadpool_limits

from pipeline.errors import UsageError
from pipeline.heads.registry import (
    ALL,
    GROUPS,
    HEADS,
    HeadRequest,
    load_head,
    parse_heads,
    parse_own_head,
)

OPTIONS = FitOptions(dense=(DenseSettings(epochs=2, learning_rate=1e-3, units=8),))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As `compare_heads` has it: the threads of NumPy's and SciPy's BLAS wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


def drawn_rows(count: int, class_count: int, seed: int) -> LabelledRows:
    # one set of patterns, other noise
    labels = np.asarray(alternating_labels(count, class_count))
    everything = draw_features(np.tile(labels, 3), (12,), signal=1.5)
    return LabelledRows(everything[seed * count : (seed + 1) * count], labels)


def fit(
    name: str, options: FitOptions, *, count: int = 60, class_count: int = 2
) -> list[Candidate]:
    train, validation = drawn_rows(count, class_count, 0), drawn_rows(count, class_count, 1)
    training_set = TrainingSet(train.features, train.labels, class_count)
    return list(load_head(name).fit_candidates(training_set, validation, options))


@pytest.mark.parametrize("class_count", [2, 4])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_scores_each_class_and_learns(name: str, class_count: int) -> None:
    settings = DenseSettings(epochs=30, learning_rate=1e-2, units=16, optimizer="adam")
    candidates = fit(name, FitOptions(dense=(settings,)), count=120, class_count=class_count)
    assert candidates
    validation = drawn_rows(120, class_count, 1)
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
    rows = drawn_rows(60, 2, 1).features
    options = replace(OPTIONS, seeds=(3,))
    first, second = (
        [candidate.classifier.scores(rows) for candidate in fit(name, options)] for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_draw_are_fitted_with_each_seed_and_the_others_once(name: str) -> None:
    rows = drawn_rows(60, 2, 1).features
    draws = load_head(name).draws
    assert draws == (name in ("dense", "random_forest"))
    candidates = fit(name, replace(OPTIONS, seeds=(5, 8)))
    by_seed = {
        seed: [each for each in candidates if each.seed == seed]
        for seed in dict.fromkeys(each.seed for each in candidates)
    }
    assert list(by_seed) == ([5, 8] if draws else [5])
    for one, other in zip(*(by_seed[seed] for seed in by_seed if draws), strict=True):
        assert one.spec == other.spec
        assert not np.array_equal(one.classifier.scores(rows), other.classifier.scores(rows))


@pytest.mark.parametrize("name", HEADS)
def test_only_the_wanted_setting_is_fitted_and_as_it_would_be_among_others(name: str) -> None:
    rows = drawn_rows(60, 2, 1).features
    chosen = fit(name, OPTIONS)[-1]
    # as it comes back from JSON
    params = json.loads(json.dumps(dict(chosen.spec.params)))
    (alone,) = fit(name, replace(OPTIONS, wanted=params))
    assert alone.spec == chosen.spec
    np.testing.assert_allclose(
        alone.classifier.scores(rows), chosen.classifier.scores(rows), atol=1e-4
    )


@pytest.mark.parametrize("name", HEADS)
def test_settings_differ_and_classifiers_survive_a_trip_between_processes(name: str) -> None:
    rows = drawn_rows(60, 2, 1).features
    candidates = fit(name, OPTIONS)
    texts = [candidate.spec.params_text for candidate in candidates]
    assert len(set(texts)) == len(texts)
    arrived = pickle.loads(pickle.dumps(candidates[0].classifier))  # noqa: S301 - ours
    np.testing.assert_array_equal(arrived.scores(rows), candidates[0].classifier.scores(rows))


def test_groups_leave_out_what_is_a_protocol_or_slow() -> None:
    assert [request.name for request in parse_heads("all")] == list(ALL)
    assert set(HEADS) - set(ALL) == {"kornblith"}
    assert {request.input for request in parse_heads("all")} == {None}
    assert {request.input for request in parse_heads("all:flat")} == {"flat"}
    fast = [request.name for request in parse_heads("fast")]
    assert fast == list(GROUPS["fast"])
    assert set(ALL) - set(fast) == {"dense", "svm_rbf", "random_forest"}
    assert parse_heads("kornblith") == [HeadRequest("kornblith")]


def test_fast_heads_load_no_keras() -> None:
    command = (
        "import sys; from pipeline.heads.registry import GROUPS, load_head; "
        "[load_head(name) for name in GROUPS['fast']]; "
        "print([name for name in ('keras', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_input_is_chosen_per_head_and_repeats_count_once() -> None:
    assert parse_heads(" knn, dense:pooled,knn ,dense:flat") == [
        HeadRequest("knn"),
        HeadRequest("dense", "pooled"),
        HeadRequest("dense", "flat"),
    ]
    assert parse_heads(["ridge", "lda:flat"]) == [HeadRequest("ridge"), HeadRequest("lda", "flat")]
    assert parse_heads("lda,fast").count(HeadRequest("lda")) == 1


def test_a_head_of_ones_own_is_a_module_and_a_factory() -> None:
    assert parse_own_head("mine:make") == HeadRequest("mine:make")
    assert parse_own_head("a.b:c.d:flat") == HeadRequest("a.b:c.d", "flat")
    assert parse_own_head("knn:make:pooled") == HeadRequest("knn:make", "pooled")
    assert parse_heads("mine:make,knn,mine:make:flat") == [
        HeadRequest("mine:make"),
        HeadRequest("knn"),
        HeadRequest("mine:make", "flat"),
    ]
    for text in ("mine:make:flat", "knn", "lda:pooled"):
        assert [str(request) for request in parse_heads(text)] == [text]
    for text in ("make", "mine:", ":make", "mine:make:round", "mine:make()", "a/b.py:make"):
        with pytest.raises(UsageError, match="expected MODULE:FACTORY"):
            parse_own_head(text)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("logistik", "did you mean logistic?"),
        ("logistik:flat", "did you mean logistic?"),
        ("fasst", "did you mean fast?"),
        ("quantum", "choose from dense, logistic"),
        ("knn:round", "flat or pooled"),
        ("all:round", "flat or pooled"),
        ("mine:make:round", "expected MODULE:FACTORY"),
        (" , ", "names no head"),
    ],
)
def test_wrong_head_names_get_a_remedy(typed: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        parse_heads(typed)
