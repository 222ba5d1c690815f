"""The promised coverage and error hold over random divisions; reasons and errors."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from crepes import ConformalClassifier
from scipy.special import softmax
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from pipeline.errors import UsageError
from pipeline.models.rejection import (
    COVERAGE,
    CalibrationSet,
    Rejection,
    Rejector,
    conformity,
    label_sets,
)

CLASSES = ("cat", "dog", "cow")
DIVISIONS, CALIBRATION, TEST = 200, 199, 100


class Distances:
    """Neighbors at distances that are the features."""

    def distances(self, features: np.ndarray, digests: list[bytes]) -> np.ndarray:
        return features


def draw(count: int, seed: int, signal: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, probabilities that are mostly right, and distances; one class is hard."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, count, p=(0.5, 0.3, 0.2))
    logits = random.normal(size=(count, 3))
    logits[np.arange(count), labels] += np.array([signal + 1, signal, signal - 1])[labels]
    doubt = 1 - softmax(logits, axis=1).max(axis=1)
    return labels, softmax(logits, axis=1), random.random(count) + doubt / 2


def divisions() -> tuple[tuple[np.ndarray, ...], list[tuple[CalibrationSet, np.ndarray]]]:
    data = draw(1000, seed=0)
    random, made = np.random.default_rng(1), []
    for _ in range(DIVISIONS):
        rows = random.permutation(1000)[: CALIBRATION + TEST]
        known = CalibrationSet.of(*(values[rows[:CALIBRATION]] for values in data))
        made.append((known, rows[CALIBRATION:]))
    return data, made


def judge(rejector: Rejector, scores: np.ndarray, distances: np.ndarray) -> list[Rejection]:
    judged = rejector(distances, scores, [b""] * len(scores))
    return [each["rejection"] for each in judged]


def within_chance(successes: int, trials: int, share: float) -> bool:
    low, high = binom.interval(0.999, trials, share)
    return bool(low <= successes <= high)


@pytest.mark.parametrize("coverage", [0.95, 0.8])
@pytest.mark.parametrize("has_cache", [True, False])
def test_coverage_is_as_promised_over_200_divisions(coverage: float, has_cache: bool) -> None:
    (_, scores, distances), made = divisions()
    neighbors = Distances() if has_cache else None
    kept = 0
    for known, test in made:
        rejector = Rejector(known, CLASSES, neighbors, coverage=coverage)
        judged = judge(rejector, scores[test], distances[test])
        kept += sum(not each.reason for each in judged)
    assert within_chance(kept, DIVISIONS * TEST, coverage)


def test_coverage_holds_in_each_predicted_class() -> None:
    (_, scores, distances), made = divisions()
    kept, total = np.zeros(3, int), np.zeros(3, int)
    for known, test in made:
        judged = judge(
            Rejector(known, CLASSES, Distances(), coverage=0.9, per_class=True),
            scores[test],
            distances[test],
        )
        predicted = scores[test].argmax(axis=1)
        is_kept = np.array([not each.reason for each in judged])
        kept += np.bincount(predicted[is_kept], minlength=3)
        total += np.bincount(predicted, minlength=3)
    # a threshold from n images keeps up to 1 / (n + 1) more; here n is 25 or more
    for each, count in zip(kept, total, strict=True):
        assert binom.ppf(0.0005, count, 0.9) <= each <= binom.ppf(0.9995, count, 0.9 + 1 / 26)


@pytest.mark.parametrize("per_class", [False, True])
def test_label_is_missed_as_rarely_as_promised(per_class: bool) -> None:
    (labels, scores, _), made = divisions()
    missed, total = np.zeros(3, int), np.zeros(3, int)
    for known, test in made:
        possible = label_sets(known, scores[test], 0.1, per_class=per_class)
        is_missed = ~possible[np.arange(len(test)), labels[test]]
        missed += np.bincount(labels[test][is_missed], minlength=3)
        total += np.bincount(labels[test], minlength=3)
    if per_class:
        for each, count in zip(missed, total, strict=True):
            assert binom.ppf(0.0005, count, 0.1 - 1 / 26) <= each <= binom.ppf(0.9995, count, 0.1)
    else:
        assert within_chance(missed.sum(), total.sum(), 0.1)
        assert missed[2] / total[2] > 0.15  # the hard class: what --per-class is for


def test_p_values_of_one_measure_are_those_of_crepes() -> None:
    random = np.random.default_rng(0)
    known, new = random.integers(0, 30, 80) / 7, random.integers(0, 30, 40) / 7  # with ties
    found, _ = conformity([known], [new])
    expected = ConformalClassifier().fit(known).predict_p(new, smoothing=False)
    np.testing.assert_allclose(found, expected)


def test_doubt_and_distance_together_tell_strangers_better_than_either() -> None:
    random = np.random.default_rng(0)
    known, usual, strange = (random.normal(size=(2, 400)) for _ in range(3))
    strange[0, :200] += 3  # half by one measure, half by the other
    strange[1, 200:] += 3
    new = np.concatenate([usual, strange], axis=1)
    is_strange = np.arange(800) >= 400
    p_values, decisive = conformity(known, new)
    joint = roc_auc_score(is_strange, -p_values)
    assert joint > max(roc_auc_score(is_strange, each) for each in new) + 0.05
    assert decisive[400:600].mean() < 0.2
    assert decisive[600:].mean() > 0.8


def test_reasons_name_the_classes_or_the_distance() -> None:
    labels, scores, distances = draw(400, seed=2)
    known = CalibrationSet.of(labels, scores, distances)
    new = np.array([[0.99, 0.006, 0.004], [0.35, 0.25, 0.4], [0.9, 0.05, 0.05]])
    kept, unsure, unlike = judge(
        Rejector(known, CLASSES, Distances()), new, np.array([0.1, 0.1, 1.9])
    )
    assert (kept.reason, kept.classes) == ("", ("cat",))
    assert (unsure.reason, unsure.classes) == ("unsure", ("cow", "cat"))
    assert (unlike.reason, unlike.classes, unlike.distance) == ("unlike", (), 1.9)
    kept, unsure, unlike = judge(
        Rejector(known, CLASSES, Distances(), max_error=0.02), new, np.array([0.1, 0.1, 1.9])
    )
    assert (kept.reason, kept.classes) == ("", ("cat",))
    assert (unsure.reason, unsure.classes) == ("unsure", ("cow", "cat", "dog"))
    assert unlike.reason == "unlike"
    (without,) = judge(Rejector(known, CLASSES, None), new[2:], np.array([1.9]))
    assert (without.reason, without.to_dict()["distance"]) == ("", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coverage": 0.99}, "--coverage 0.99 needs 99 validation images; the model has 98: "),
        ({"max_error": 0.01}, "--max-error 0.01 needs 99 validation images; the model has 98: "),
        (
            {"coverage": 0.95, "per_class": True},
            "--coverage 0.95 needs 19 validation images predicted as cow; the model has 8",
        ),
        (
            {"max_error": 0.05, "per_class": True},
            "--max-error 0.05 needs 19 validation images of cow; the model has 8",
        ),
    ],
)
def test_too_few_validation_images_are_one_line(options: dict, message: str) -> None:
    labels = np.repeat([0, 1, 2], [50, 40, 8])
    known = CalibrationSet.of(labels, np.eye(3)[labels] * 0.7 + 0.1, np.ones(98))
    with pytest.raises(UsageError) as caught:
        Rejector(known, CLASSES, None, **options)
    assert str(caught.value).startswith(message)
    assert ("--per-class" in str(caught.value)) == ("per_class" in options)
    Rejector(known, CLASSES, None, coverage=0.98)


def test_set_survives_json_and_loading_crepes_changes_no_filter_of_warnings() -> None:
    labels, scores, distances = draw(60, seed=3)
    known = CalibrationSet.of(labels, scores, distances)
    document = json.loads(json.dumps(known.to_document()))
    again = CalibrationSet.from_document(document, 3)
    for name, values in vars(known).items():
        np.testing.assert_array_equal(values, getattr(again, name))
    some = replace(known, references=30)
    assert CalibrationSet.from_document(some.to_document(), 3).references == 30
    filters = list(warnings.filters)
    label_sets(known, scores, 1 - COVERAGE, per_class=True)
    assert list(warnings.filters) == filters
