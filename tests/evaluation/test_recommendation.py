"""Heads are ranked and recommended on validation; test only gives p-values."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from pipeline.evaluation.recommendation import rank_and_recommend
from pipeline.evaluation.result import HeadPredictions, Outcome, Result
from pipeline.evaluation.statistics import wilson_interval

VALIDATION, TEST = 400, 500


def draw_predictions(
    count: int,
    *,
    wrong: Sequence[int],
    sure: float = 0.9,
    salt: str = "",
    order: np.ndarray | None = None,
    cycle: int = 2,
) -> HeadPredictions:
    """Predictions with that probability, wrong on the named images; one image of each cycle is of
    class 0, the others of class 1."""
    labels = (np.arange(count) % cycle > 0).astype(np.int64)
    predicted = labels.copy()
    predicted[list(wrong)] = 1 - predicted[list(wrong)]
    scores = np.where(np.eye(2)[predicted] == 1, sure, 1 - sure)
    digests = [hashlib.sha256(f"{salt}{row}".encode()).digest() for row in range(count)]
    keys = np.frombuffer(b"".join(digests), "V32")
    places = np.arange(count) if order is None else order
    return HeadPredictions(
        rows=np.arange(count),
        keys=keys[places],
        paths=np.empty(count, "S1"),
        labels=labels[places],
        scores=scores[places],
    )


def draw_outcome(
    head: str,
    *,
    wrong: Sequence[int] = (),
    test_wrong: Sequence[int] = range(20),
    parameters: int = 100,
    sure: float = 0.9,
    salt: str = "",
    order: np.ndarray | None = None,
    cycle: int = 2,
    **fields: Any,
) -> Outcome:
    """A head that is wrong on these validation and test images."""
    validation = draw_predictions(
        VALIDATION, wrong=wrong, sure=sure, salt=f"validation{salt}", cycle=cycle
    )
    test = draw_predictions(
        TEST, wrong=test_wrong, sure=sure, salt=f"test{salt}", order=order, cycle=cycle
    )
    low, high = wilson_interval(int(test.correct.sum()), TEST)
    known = Result(
        head=head,
        input="pooled",
        params="",
        base="vgg16",
        layer="block5_pool",
        image_size=150,
        fingerprint="f",
        cache="a.h5",
        validation_accuracy=float(validation.correct.mean()),
        test_accuracy=float(test.correct.mean()),
        test_low=low,
        test_high=high,
        parameters=parameters,
        fits=1,
    )
    return Outcome(result=replace(known, **fields), test=test, validation=validation)


def ranked(*outcomes: Outcome, folds: int = 0) -> tuple[list[Result], str]:
    sorted_outcomes, sentence = rank_and_recommend([replace(o, folds=folds) for o in outcomes])
    return [outcome.result for outcome in sorted_outcomes], sentence


def test_of_heads_with_as_low_a_log_loss_the_one_with_fewest_parameters_is_recommended() -> None:
    results, sentence = ranked(
        draw_outcome("weak", wrong=range(90), parameters=2),
        draw_outcome("logistic", wrong=range(4, 16), parameters=513, params="C=1"),
        draw_outcome("dense", wrong=range(10), parameters=2_097_665),
        draw_outcome("knn", wrong=range(11), parameters=512_000),
    )
    assert [(each.head, each.verdict, each.recommended) for each in results] == [
        ("dense", "best", False),
        ("knn", "≈ best", False),
        ("logistic", "≈ best", True),
        ("weak", "", False),
    ]
    assert sentence == (
        "Use logistic (C=1) on pooled vgg16 block5_pool: 96.0 % of 500 test images right "
        "(95 % interval 93.9–97.4); dense and knn are as good on validation, but it is the "
        "simplest of those with probabilities as good."
    )


def test_as_good_is_within_one_standard_error_of_the_paired_difference() -> None:
    # 9 images between them and none the other way: the error is 3 images; with 4 more each, 4.1
    best = draw_outcome("best", wrong=range(4))
    worse = draw_outcome("worse", wrong=range(13))
    assert [each.verdict for each in ranked(best, worse)[0]] == ["best", ""]
    apart = draw_outcome("apart", wrong=range(100, 108))
    assert [each.verdict for each in ranked(best, apart)[0]] == ["best", ""]
    apart = draw_outcome("apart", wrong=range(100, 107))
    assert [each.verdict for each in ranked(best, apart)[0]] == ["best", "≈ best"]
    # errors that both make do not count, though each accuracy by itself is as unsure as 9 images
    pair = draw_outcome("best", wrong=range(100)), draw_outcome("worse", wrong=range(103))
    assert [each.verdict for each in ranked(*pair)[0]] == ["best", ""]


def test_one_image_apart_is_as_good() -> None:
    """It is exactly one standard error, so rounding must not decide."""
    for count in range(0, 60, 6):
        best, other = (draw_outcome(str(size), wrong=range(size)) for size in (count, count + 1))
        assert [each.verdict for each in ranked(best, other)[0]] == ["best", "≈ best"]


@pytest.mark.parametrize("test_wrong", [range(0), range(250), range(250, 500)])
def test_test_images_change_no_choice(test_wrong: range) -> None:
    results, _ = ranked(
        draw_outcome("first", wrong=range(8)),
        draw_outcome("second", wrong=range(9), test_wrong=test_wrong, parameters=50),
        draw_outcome("third", wrong=range(60), test_wrong=test_wrong, parameters=1),
    )
    assert [(each.head, each.verdict, each.recommended) for each in results] == [
        ("first", "best", False),
        ("second", "≈ best", True),
        ("third", "", False),
    ]


def test_of_equal_accuracies_the_lowest_log_loss_is_best_then_the_fewest_parameters() -> None:
    def order(*outcomes: Outcome) -> list[str]:
        return [each.head for each in ranked(*outcomes)[0]]

    unsure = draw_outcome("unsure", wrong=range(10), sure=0.6, parameters=1)
    sure = draw_outcome("sure", wrong=range(10), sure=0.9)
    large = draw_outcome("large", wrong=range(10), sure=0.9, parameters=1000)
    assert order(unsure, large, sure) == ["sure", "large", "unsure"]
    twin = draw_outcome("twin", wrong=range(10), sure=0.9)
    assert order(twin, sure) == ["twin", "sure"]
    assert order(sure, twin) == ["sure", "twin"]


def with_surest_mistake(outcome: Outcome, probability: float) -> Outcome:
    """The same with this probability of the true class on the first image."""
    scores = outcome.validation.scores.copy()
    label = outcome.validation.labels[0]
    scores[0] = 1 - probability
    scores[0, label] = probability
    return replace(outcome, validation=replace(outcome.validation, scores=scores))


def test_of_heads_as_good_one_with_a_higher_log_loss_is_not_recommended() -> None:
    lda = with_surest_mistake(draw_outcome("lda", wrong=range(1), sure=0.98), 1e-16)  # 36 nats
    logistic = draw_outcome("logistic", wrong=range(2), sure=0.98)
    knn = draw_outcome("knn", wrong=range(2), sure=0.7, parameters=5)
    results, sentence = ranked(lda, logistic, knn)
    assert [(each.head, each.verdict, each.recommended) for each in results] == [
        ("lda", "best", False),
        ("logistic", "≈ best", True),
        ("knn", "≈ best", False),
    ]
    assert "; lda and knn are as good on validation, but none has better probabilities there." in (
        sentence
    )


def test_a_head_that_is_too_sure_is_not_recommended_even_if_always_right_on_validation() -> None:
    lda = draw_outcome("lda", sure=1 - 1e-15)  # another mistake would cost it 35 nats
    results, _ = ranked(lda, draw_outcome("logistic", sure=0.98))
    assert [each.head for each in results if each.recommended] == ["logistic"]
    results, _ = ranked(draw_outcome("unsure", sure=0.6), draw_outcome("logistic", sure=0.98))
    assert [each.head for each in results if each.recommended] == ["logistic"]


def test_of_heads_with_as_low_a_log_loss_one_with_native_probabilities_is_recommended() -> None:
    svm = replace(draw_outcome("svm", wrong=range(10)), native_probabilities=False)
    logistic = draw_outcome("logistic", wrong=range(11), parameters=200)
    dense = draw_outcome("dense", wrong=range(11), parameters=300)
    results, sentence = ranked(svm, logistic, dense)
    assert [each.head for each in results if each.recommended] == ["logistic"]
    assert sentence.endswith(
        "; svm and dense are as good on validation, but it is the simplest of those with native "
        "probabilities as good."
    )
    worse = draw_outcome("logistic", wrong=range(11), parameters=200, sure=0.6)
    results, _ = ranked(svm, worse)
    assert [each.head for each in results if each.recommended] == ["svm"]


def disagreement(*outcomes: Outcome, folds: int = 0, balanced: bool = False) -> str:
    folded = [replace(each, folds=folds) for each in outcomes]
    _, sentence = rank_and_recommend(folded, balanced=balanced)
    return sentence.partition(" Validation and test disagree: ")[2]


def test_the_sentence_says_where_another_head_is_better_on_test() -> None:
    chosen = draw_outcome("knn", wrong=range(20), test_wrong=range(40))
    other = draw_outcome("logistic", wrong=range(40), test_wrong=range(10), base="b", cache="b.h5")
    assert disagreement(chosen, other) == (
        "logistic on pooled b block5_pool gets 90.0 % on validation and 98.0 % on test, the chosen "
        "head 95.0 and 92.0 %. More validation images or classify --cv would settle it."
    )
    assert disagreement(chosen, other, folds=5).endswith(
        "92.0 %. More images or --repeats would settle it."
    )
    near = draw_outcome("logistic", wrong=range(40), test_wrong=range(30), base="b", cache="b.h5")
    assert disagreement(chosen, near) == ""
    elsewhere = draw_outcome("svm", wrong=range(40), test_wrong=(), salt="b", cache="b.h5")
    assert disagreement(chosen, elsewhere) == ""  # other images may be easier


def test_the_sentence_says_where_test_contradicts_the_validation_accuracy() -> None:
    assert disagreement(draw_outcome("knn", wrong=range(4), test_wrong=range(60))) == (
        "it gets 99.0 % on validation and 88.0 % on test. More validation images or classify --cv "
        "would settle it."
    )
    assert disagreement(draw_outcome("knn", wrong=range(4), test_wrong=range(10))) == ""
    rare = {"cycle": 10, "validation_balanced_accuracy": 0.99, "balanced_accuracy": 0.7}
    fair = draw_outcome("knn", wrong=[0], test_wrong=range(0, 300, 10), **rare)
    assert disagreement(fair, balanced=True).startswith("it gets 99.0 % on validation and 70.0")
    assert disagreement(fair) != ""


def test_p_values_are_statsmodels_against_the_best_on_the_same_images() -> None:
    random = np.random.default_rng(4)
    wrong = [random.choice(TEST, size, replace=False) for size in (15, 20, 32, 60)]
    results, _ = ranked(
        *(
            draw_outcome(f"head{place}", wrong=range(10 + 10 * place), test_wrong=images)
            for place, images in enumerate(wrong)
        )
    )
    right = [~np.isin(np.arange(TEST), images) for images in wrong]
    expected = []
    for other in right[1:]:
        table = [
            [np.sum(right[0] & other), np.sum(right[0] & ~other)],
            [np.sum(~right[0] & other), np.sum(~right[0] & ~other)],
        ]
        expected.append(mcnemar(table, exact=True).pvalue)
    assert [each.p_value for each in results[1:]] == pytest.approx(expected)
    corrected = multipletests(expected, method="holm")[1]
    assert [each.p_holm for each in results[1:]] == pytest.approx(corrected)
    assert math.isnan(results[0].p_value)
    assert math.isnan(results[0].p_holm)


def test_rows_of_two_caches_in_any_order_are_paired_by_digest() -> None:
    shuffled = np.random.default_rng(0).permutation(TEST)
    first = draw_outcome("first")
    second = draw_outcome("second", wrong=range(10), test_wrong=range(60))
    moved = draw_outcome(
        "second", wrong=range(10), test_wrong=range(60), order=shuffled, cache="b.h5"
    )
    (_, expected), _ = ranked(first, second)
    (_, found), _ = ranked(first, moved)
    assert found.p_value == expected.p_value < 0.001


def test_identical_files_under_two_labels_are_paired_by_label() -> None:
    """A file is in both classes, in either order: the label says which prediction is right."""

    def with_twins(outcome: Outcome, order: list[int]) -> Outcome:
        keys = outcome.test.keys.copy()
        keys[1::2] = keys[::2]  # rows 0 and 1, of class 0 and 1, are one file
        places = np.arange(TEST).reshape(-1, 2)[:, order].ravel()
        test = replace(
            outcome.test,
            keys=keys[places],
            labels=outcome.test.labels[places],
            scores=outcome.test.scores[places],
        )
        return replace(outcome, test=test)

    always_first = range(1, TEST, 2)  # right on class 0 alone
    first = with_twins(draw_outcome("first", test_wrong=always_first), [0, 1])
    second = with_twins(draw_outcome("second", wrong=[0], test_wrong=always_first), [1, 0])
    (_, found), _ = ranked(first, second)
    assert found.p_value == 1.0


def test_other_images_or_labels_have_no_p_value_and_an_unpaired_error() -> None:
    first = draw_outcome("first", wrong=range(4))
    other = draw_outcome("other", wrong=range(8), salt="other", cache="b.h5")
    results, _ = ranked(first, other, draw_outcome("third", wrong=range(30), test_wrong=range(60)))
    assert math.isnan(results[1].p_value)
    assert results[2].p_holm == results[2].p_value < 0.001  # one test, nothing to correct
    # 4 images apart, the error unpaired 3.4 images: not as good; 3 are
    assert results[1].verdict == ""
    other = draw_outcome("other", wrong=range(7), salt="other", cache="b.h5")
    assert ranked(first, other)[0][1].verdict == "≈ best"
    relabelled = replace(first.test, labels=np.roll(first.test.labels, 1))
    other = replace(draw_outcome("other", wrong=[9]), test=relabelled)
    assert math.isnan(ranked(first, other)[0][1].p_value)


def test_a_smaller_head_on_another_base_is_named_but_not_recommended() -> None:
    elsewhere = {"cache": "b.h5", "base": "mobilenet_v2", "layer": "out_relu:avg"}
    results, sentence = ranked(
        draw_outcome("lda", wrong=range(2, 13), parameters=5, **elsewhere),
        draw_outcome("logistic", wrong=range(10)),
        draw_outcome("logistic", wrong=range(11), input="flat", parameters=9000),
    )
    assert [each.verdict for each in results] == ["best", "≈ best", "≈ best"]
    assert [each.recommended for each in results] == [True, False, False]
    assert sentence.endswith(
        "; lda on pooled mobilenet_v2 out_relu:avg and logistic on flat vgg16 block5_pool "
        "are as good on validation."
    )


def test_size_or_name_distinguishes_caches_of_one_base() -> None:
    _, sentence = ranked(
        draw_outcome("logistic", wrong=range(10)),
        draw_outcome("logistic", wrong=range(60), image_size=224, cache="b.h5"),
    )
    assert "on pooled vgg16 block5_pool at 150 pixels: " in sentence
    _, sentence = ranked(
        draw_outcome("logistic", wrong=range(10)),
        draw_outcome("logistic", wrong=range(60), cache="b.h5"),
    )
    assert "on pooled vgg16 block5_pool (a.h5): " in sentence


def test_of_many_that_are_as_good_three_are_named() -> None:
    heads = [
        draw_outcome(f"head{number}", wrong=range(9), parameters=number) for number in range(6)
    ]
    _, sentence = ranked(*heads)
    assert sentence.startswith("Use head0 on pooled vgg16 block5_pool: ")
    assert sentence.endswith(
        "; head1, head2, head3 and 2 more are as good on validation, but none has better "
        "probabilities there."
    )


def test_the_sentence_of_a_single_head_and_of_a_clear_best() -> None:
    logistic = draw_outcome("logistic", wrong=range(9))
    _, sentence = ranked(logistic)
    assert sentence.endswith("right (95 % interval 93.9–97.4).")
    _, sentence = ranked(logistic, draw_outcome("weak", wrong=range(90)))
    assert sentence.endswith("(95 % interval 93.9–97.4); no other is as good on validation.")


@pytest.mark.parametrize(
    ("folds", "fits", "text"),
    [
        (5, 5, "96.0 % of 500 images right (over 5 folds, 95 %"),
        (5, 15, "96.0 % of 500 images right (over 5 folds 3 times, 95 %"),
        (0, 3, "96.0 % of 500 test images right (mean of 3 seeds, 95 %"),
    ],
)
def test_the_sentence_states_folds_and_seeds(folds: int, fits: int, text: str) -> None:
    _, sentence = ranked(draw_outcome("logistic", fits=fits), folds=folds)
    assert text in sentence


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ("C=1", "dense (C=1) on"),
        ("C=1 (3 of 5 fits)", "dense with C=1 (3 of 5 fits) on"),
        ("", "dense on"),
        ("(3 of 5 fits)", "dense (3 of 5 fits) on"),
    ],
)
def test_the_sentence_states_the_setting(params: str, text: str) -> None:
    assert f"Use {text} pooled" in ranked(draw_outcome("dense", params=params))[1]


def test_names_from_outside_are_escaped() -> None:
    outcome = draw_outcome("my\x1b[31m:head", layer="a\nb", base="x\u202e")
    assert ranked(outcome)[1].startswith(r"Use my\x1b[31m:head on pooled x\u202e a\nb: ")


def test_no_head_is_recommended_unless_significantly_better_than_guessing() -> None:
    half = [image for image in range(TEST) if image % 4 < 2]  # half of each class
    wrong = [image for image in range(VALIDATION) if image % 4 < 2]
    results, sentence = ranked(
        draw_outcome(
            "majority", wrong=range(1, VALIDATION, 2), test_wrong=range(1, TEST, 2), parameters=2
        ),
        draw_outcome("logistic", wrong=wrong[1:], test_wrong=half[10:]),
    )
    assert sentence == (
        "No head can be recommended: logistic on pooled vgg16 block5_pool is the choice on "
        "validation, but gets 52.0 % of 500 test images right (95 % interval 47.6–56.3), not "
        "significantly more than the most frequent class (50.0 %)."
    )
    # the report shows a head that is not constant
    assert [(each.head, each.verdict, each.recommended) for each in results] == [
        ("logistic", "best", True),
        ("majority", "≈ best", False),
    ]
    _, sentence = ranked(
        draw_outcome(
            "majority", wrong=range(1, VALIDATION, 2), test_wrong=range(1, TEST, 2), parameters=2
        )
    )
    assert sentence.startswith("No head can be recommended: majority ")


@pytest.mark.parametrize(("wrong", "sure"), [(75, True), (90, False)])
def test_guessing_predicts_the_most_frequent_class_of_validation(wrong: int, sure: bool) -> None:
    _, sentence = ranked(draw_outcome("logistic", cycle=5, test_wrong=range(wrong)))
    assert sentence.startswith("Use logistic" if sure else "No head can be recommended: ")
    assert sure or "the most frequent class (80.0 %)." in sentence


def test_heads_without_metrics_come_last_and_have_no_verdict() -> None:
    failed = Outcome(result=replace(draw_outcome("slow").result, status="stopped after 10 s"))
    results, sentence = ranked(failed, draw_outcome("logistic"))
    assert [(each.head, each.verdict, each.recommended) for each in results] == [
        ("logistic", "best", True),
        ("slow", "", False),
    ]
    assert math.isnan(results[1].p_holm)
    assert "slow" not in sentence
    assert rank_and_recommend([failed]) == ([failed], "")


def test_balanced_accuracy_ranks_where_classes_count_equally() -> None:
    # of every ten validation images one is of class 0: 40 of 400
    rare = list(range(0, 400, 10))
    outcomes = [
        draw_outcome("common", wrong=rare[:20], cycle=10, validation_balanced_accuracy=0.75),
        draw_outcome(
            "fair", wrong=[row + 1 for row in rare], cycle=10, validation_balanced_accuracy=0.944
        ),
    ]
    for balanced, expected in ((False, ["common", "fair"]), (True, ["fair", "common"])):
        outcomes_ranked, _ = rank_and_recommend(outcomes, balanced=balanced)
        assert [each.result.head for each in outcomes_ranked] == expected
        assert [each.result.verdict for each in outcomes_ranked] == ["best", ""]


def test_with_balance_a_head_that_finds_the_rare_class_beats_guessing() -> None:
    # of every ten test images one is of class 0: naming class 1 always gets 90 %
    common = [row for row in range(TEST) if row % 10]
    fair = draw_outcome(
        "fair",
        cycle=10,
        wrong=common[:30],
        test_wrong=common[:60],
        validation_balanced_accuracy=0.95,
        balanced_accuracy=0.933,
        test_accuracy=0.88,
    )
    _, plain = rank_and_recommend([fair])
    _, balanced = rank_and_recommend([fair], balanced=True)
    assert plain.startswith("No head can be recommended")
    assert balanced.startswith("Use fair on pooled vgg16 block5_pool: 93.3 % right on average")
    blind = draw_outcome(
        "blind",
        cycle=10,
        wrong=range(0, 400, 10),
        test_wrong=range(0, 500, 10),
        validation_balanced_accuracy=0.5,
    )
    assert "(50.0 %)" in rank_and_recommend([blind], balanced=True)[1]
