"""Rank heads on validation, find those that are as good as the best, and recommend one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from sklearn.utils.class_weight import compute_sample_weight

from pipeline.evaluation.metrics import Scores, log_losses
from pipeline.evaluation.result import NO_RECOMMENDATION, HeadPredictions, Outcome, Result
from pipeline.evaluation.statistics import (
    Z_95,
    Correct,
    holm,
    mcnemar_exact,
    standard_error,
    wilson_interval,
)
from pipeline.evaluation.table import percent
from pipeline.text import counted, printable

BEST, AS_GOOD = "best", "≈ best"
SIGNIFICANCE = 0.05  # p-value below which a head is better than guessing
ROUNDING = 1e-9  # of accuracies averaged over fits: far less than one image
MAX_NAMES = 3  # of heads that are as good; the table has all

Order = npt.NDArray[np.int64]
Outcomes = Sequence[Outcome]


def rank_and_recommend(outcomes: Outcomes, *, balanced: bool = False) -> tuple[list[Outcome], str]:
    """Sort the outcomes, the best first, with verdicts and p-values; recommend one in a sentence.

    The best head has the highest validation accuracy (or balanced accuracy); ties go to the lowest
    validation log loss (see `_losses`), then to the fewest parameters. A head is as good if it is
    at most one standard error of the paired difference worse (Breiman et al. 1984). Of these, heads
    with a log loss of at most one standard error above the lowest are left; of these, one with
    native probabilities is preferred, then the one with the fewest parameters, then the one with
    the lowest log loss. No choice depends on test: the sentence only says if test disagrees.

    On 48 random splits of 2,000 cats and dogs (two bases, 200 or 500 training images) the
    recommended head was 0.19 points on average below the best head on that test, with a log loss of
    0.10; the best head on validation, 0.52 points, with 0.18. Without the additional mistake in the
    log loss, overconfident heads were recommended: 0.37 points, with 0.15.

    Returns the outcomes, those without metrics last, and the sentence, empty if none has metrics.
    """
    failed = [outcome for outcome in outcomes if outcome.result.status]
    scored = [outcome for outcome in outcomes if not outcome.result.status]
    if not scored:
        return failed, ""
    scored.sort(key=lambda outcome: _sort_key(outcome, balanced))
    best, *others = scored
    tied = [best, *(other for other in others if _is_as_good(other, best, balanced))]
    chosen = _choose(tied)
    p_values = [math.nan, *(_p_value(other, best) for other in others)]
    ranked = with_verdicts(scored, tied, chosen, p_values)
    return ranked + failed, _sentence(chosen, tied, scored, balanced)


def with_verdicts(
    scored: Outcomes, tied: Outcomes, chosen: Outcome, p_values: Sequence[float]
) -> list[Outcome]:
    """Return the scored outcomes, the best first, with verdicts, p-values and recommendation."""
    verdicts = {id(outcome): AS_GOOD for outcome in tied} | {id(scored[0]): BEST}
    return [
        replace(
            outcome,
            result=replace(
                outcome.result,
                p_value=p_value,
                p_holm=float(p_holm),
                verdict=verdicts.get(id(outcome), ""),
                recommended=outcome is chosen,
            ),
        )
        for outcome, p_value, p_holm in zip(scored, p_values, holm(p_values), strict=True)
    ]


def _sort_key(outcome: Outcome, balanced: bool) -> tuple[float, float, int]:
    accuracy = round(_accuracy(outcome, balanced) / ROUNDING)
    return -accuracy, _loss(outcome), outcome.result.parameters


def _loss(outcome: Outcome) -> float:
    return float(_losses(outcome).mean())


def _losses(outcome: Outcome) -> Scores:
    """Return the log losses on validation (n + 1,), with that of one more mistake.

    A head that is right on validation may be overconfident all the same. As in Laplace's rule of
    succession one more image counts: the head is as sure of it as of the others, but wrong.
    """
    validation = outcome.validation
    doubt = np.maximum(1 - validation.scores.max(axis=1), np.finfo(np.float64).eps)
    return np.append(log_losses(validation.labels, validation.scores), -np.log(doubt).mean())


def _accuracy(outcome: Outcome, balanced: bool) -> float:
    result = outcome.result
    return result.validation_balanced_accuracy if balanced else result.validation_accuracy


def _image_weights(predictions: HeadPredictions, balanced: bool) -> npt.NDArray[np.float64]:
    """Return the weight of each image (n,), 1 on average; if balanced, classes weigh the same."""
    weights = compute_sample_weight("balanced" if balanced else None, predictions.labels)
    return np.asarray(weights, np.float64)


def _choose(tied: Outcomes) -> Outcome:
    """Return the outcome to recommend, on the cache of the best, which is the first.

    A constant predictor is returned only if all are. Other caches are left out, as a head's
    parameters do not include its base: VGG16, with fewer features than MobileNetV2, would be
    preferred, which lost 0.1 to 0.3 points on average.
    """
    same_cache = [outcome for outcome in tied if outcome.result.cache == tied[0].result.cache]
    useful = [each for each in same_cache if len(np.unique(each.validation.predicted)) > 1]
    return min(_with_low_loss(useful or same_cache), key=_preference)


def _with_low_loss(outcomes: Outcomes) -> list[Outcome]:
    """Return the outcomes whose log loss is at most one standard error above the lowest.

    The error is that of the lowest: a paired one grows with the loss of a single image, so that
    an overconfident head would pass.
    """
    losses = min(map(_losses, outcomes), key=np.mean)
    limit = losses.mean() + standard_error(losses) + ROUNDING
    return [outcome for outcome in outcomes if _loss(outcome) <= limit]


def _preference(outcome: Outcome) -> tuple[bool, int, float]:
    return not outcome.native_probabilities, outcome.result.parameters, _loss(outcome)


def _is_as_good(outcome: Outcome, best: Outcome, balanced: bool) -> bool:
    first, second = (
        each.validation.correct * _image_weights(each.validation, balanced)
        for each in (best, outcome)
    )
    orders = pair_images(best.validation, outcome.validation)
    if orders is None:
        error = math.hypot(standard_error(first), standard_error(second))
    else:
        error = standard_error(first[orders[0]] - second[orders[1]])
    return _accuracy(best, balanced) - _accuracy(outcome, balanced) <= error + ROUNDING


def _p_value(outcome: Outcome, best: Outcome) -> float:
    orders = pair_images(best.test, outcome.test)
    if orders is None:
        return math.nan
    return mcnemar_exact(best.test.correct[orders[0]], outcome.test.correct[orders[1]])


def pair_images(first: HeadPredictions, second: HeadPredictions) -> tuple[Order, Order] | None:
    """Return orders (n,) that pair equal images, or None if any digest or label differs."""
    one, other = (
        np.lexsort((each.rows, *np.atleast_2d(each.labels.T), each.keys))  # labels: (n,) or (n, T)
        for each in (first, second)
    )
    same_images = np.array_equal(first.keys[one], second.keys[other])
    if not same_images or not np.array_equal(first.labels[one], second.labels[other]):
        return None
    return one, other


def _beats_guessing(outcome: Outcome, balanced: bool) -> bool:
    """Return whether a head is significantly better on test than guessing.

    Guessing predicts the most frequent class of validation. The test is exact McNemar's; if
    balanced, a gain in balanced accuracy of more than `Z_95` standard errors.
    """
    correct, guessed = outcome.test.correct, _guessed_right(outcome)
    gains = (correct.astype(np.float64) - guessed) * _image_weights(outcome.test, balanced)
    if balanced:
        return bool(gains.mean() > Z_95 * standard_error(gains))
    return bool(gains.sum() > 0 and mcnemar_exact(correct, guessed) < SIGNIFICANCE)


def _guessed_right(outcome: Outcome) -> Correct:
    return np.asarray(outcome.test.labels == np.bincount(outcome.validation.labels).argmax())


def _sentence(chosen: Outcome, tied: Outcomes, scored: Outcomes, balanced: bool) -> str:
    name = f"{head_text(chosen.result)} on {features_text(chosen.result, scored)}"
    accuracy = _accuracy_text(chosen, balanced)
    doubt = _disagreement(chosen, scored, balanced)
    if _beats_guessing(chosen, balanced):
        return f"Use {name}: {accuracy}{_rivals_text(chosen, tied, scored)}.{doubt}"
    if np.ptp(chosen.test.labels) == 0:  # only --normal allows it
        return (
            f"{NO_RECOMMENDATION}, as test has one class only: {name} is the choice on validation "
            f"and gets {accuracy}.{doubt}"
        )
    guessed = np.mean(_guessed_right(chosen) * _image_weights(chosen.test, balanced))
    return (
        f"{NO_RECOMMENDATION}: {name} is the choice on validation, but gets {accuracy}, not "
        f"significantly more than the most frequent class ({percent(float(guessed))} %).{doubt}"
    )


def _disagreement(chosen: Outcome, scored: Outcomes, balanced: bool) -> str:
    """Return sentences if test contradicts validation by more than chance explains, else nothing.

    It does if the chosen head's test accuracy is below the 95 % interval of another head on the
    same images, or differs from its validation accuracy.
    """
    share = partial(_test_accuracy, balanced=balanced)
    better = [
        other
        for other in scored
        if share(chosen) < wilson_interval(share(other) * len(other.test), len(other.test))[0]
        and pair_images(chosen.test, other.test) is not None
    ]
    validation, test = percent(_accuracy(chosen, balanced)), percent(share(chosen))
    if better:
        other = max(better, key=share)
        name = f"{printable(other.result.head)} on {features_text(other.result, scored)}"
        accuracies = (
            f"{name} gets {percent(_accuracy(other, balanced))} % on validation and "
            f"{percent(share(other))} % on test, the chosen head {validation} and {test} %"
        )
    elif _differs(chosen, balanced):
        accuracies = f"it gets {validation} % on validation and {test} % on test"
    else:
        return ""
    cure = "More images or --repeats" if chosen.folds else "More validation images or classify --cv"
    return f" Validation and test disagree: {accuracies}. {cure} would settle it."


def _test_accuracy(outcome: Outcome, balanced: bool) -> float:
    result = outcome.result
    return result.balanced_accuracy if balanced else result.test_accuracy


def _differs(outcome: Outcome, balanced: bool) -> bool:
    """Return whether the 95 % interval of validation minus test excludes 0 (Newcombe 1998)."""
    validation = _accuracy(outcome, balanced), len(outcome.validation)
    (low, low_count), (high, high_count) = sorted(
        [validation, (_test_accuracy(outcome, balanced), len(outcome.test))]
    )
    _, low_end = wilson_interval(low * low_count, low_count)
    high_end, _ = wilson_interval(high * high_count, high_count)
    return high - low > math.hypot(low_end - low, high - high_end)


def _accuracy_text(outcome: Outcome, balanced: bool) -> str:
    result, folds = outcome.result, outcome.folds
    how = f"95 % interval {percent(result.test_low)}–{percent(result.test_high)}"
    if folds:
        repeated = f" {result.fits // folds} times" if result.fits > folds else ""
        how = f"over {folds} folds{repeated}, {how}"
    elif result.fits > 1:
        how = f"mean of {result.fits} seeds, {how}"
    images = counted(len(outcome.test), "image" if folds else "test image")
    if balanced:
        share = percent(result.balanced_accuracy)
        return f"{share} % right on average over the classes of {images} (accuracy {how})"
    return f"{percent(result.test_accuracy)} % of {images} right ({how})"


def _rivals_text(chosen: Outcome, tied: Outcomes, scored: Outcomes) -> str:
    """Return which heads are as good on validation, and why none of them is recommended."""
    others = [other for other in tied if other is not chosen]
    if not others:
        return "; no other is as good on validation" if len(scored) > 1 else ""
    names = name_heads(chosen, others, scored)
    return f"; {names} as good on validation{_reason(chosen, others)}"


def name_heads(chosen: Outcome, others: Outcomes, scored: Outcomes) -> str:
    """Return ``ridge, knn and 2 more are``, with features if those of the chosen one differ."""
    named = [other.result for other in others[:MAX_NAMES]]
    names = [printable(each.head) for each in named]
    if len({features_text(each, scored) for each in (chosen.result, *named)}) > 1:
        names = [f"{printable(each.head)} on {features_text(each, scored)}" for each in named]
    if len(others) > MAX_NAMES:
        names.append(f"{len(others) - MAX_NAMES} more")
    *first, last = names
    return f"{', '.join(first)} and {last} are" if first else f"{last} is"


def _reason(chosen: Outcome, others: Outcomes) -> str:
    """Return why none of the others is recommended, as in `_choose`."""
    if any(other.result.cache != chosen.result.cache for other in others):
        return ""  # their bases differ
    if all(_loss(chosen) <= _loss(other) for other in others):
        return ", but none has better probabilities there"
    rivals = [other for other in _with_low_loss([chosen, *others]) if other is not chosen]
    simpler = any(other.result.parameters < chosen.result.parameters for other in rivals)
    native = "native " if simpler else ""
    return f", but it is the simplest of those with {native}probabilities as good"


def head_text(result: Result) -> str:
    """Return ``logistic (C=1)``, or ``logistic with C=1 (3 of 5 fits)``."""
    head, params = printable(result.head), printable(result.params)
    if not params or params.startswith("("):
        return f"{head} {params}".rstrip()
    return f"{head} with {params}" if "(" in params else f"{head} ({params})"


def features_text(result: Result, scored: Outcomes) -> str:
    """Return ``pooled vgg16 block5_pool``, with size or cache to distinguish caches of one base."""
    names = dict.fromkeys([result.base, result.layer])  # of pixels both are the same
    text = " ".join([result.input, *map(printable, names)])
    namesakes = [each.result for each in scored if each.result.base == result.base]
    if any(each.image_size != result.image_size for each in namesakes):
        text += f" at {result.image_size} pixels"
    namesakes = [each for each in namesakes if each.image_size == result.image_size]
    if any(each.cache != result.cache for each in namesakes):
        text += f" ({result.cache})"
    return text
