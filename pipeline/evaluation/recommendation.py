"""Rank heads on validation, find those that are as good as the best, and recommend one."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sklearn.utils.class_weight import compute_sample_weight

from pipeline.evaluation.metrics import log_loss_of
from pipeline.evaluation.result import HeadPredictions, Outcome, Result
from pipeline.evaluation.statistics import Z_95, Correct, holm, mcnemar_exact, standard_error
from pipeline.evaluation.table import percent
from pipeline.heads.calibration import apply_temperature, fit_temperature
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
    validation log loss, then to the fewest parameters. A head is as good if it is at most one
    standard error of the paired difference worse (Breiman et al. 1984). Of these, the head with the
    fewest parameters is recommended, which is also the fastest to predict with; ties go to the
    lowest calibrated log loss on validation. No choice depends on the p-values, which are of test.

    On 120 random splits of 2,000 cats and dogs (two bases, 200 to 1,000 training images) the
    recommended head was 0.36 points on average below the best head on that test; the best head on
    validation, 0.60. The head with the highest mean accuracy was 0.02 to 0.17 points better.

    Returns the outcomes, those without metrics last, and the sentence, empty if none has metrics.
    """
    failed = [outcome for outcome in outcomes if outcome.result.status]
    scored = [outcome for outcome in outcomes if not outcome.result.status]
    if not scored:
        return failed, ""
    scored.sort(key=lambda outcome: _sort_key(outcome, balanced))
    best, *others = scored
    tied = [best, *(other for other in others if _is_as_good(other, best, balanced))]
    simplest = _simplest(tied)
    verdicts = {id(outcome): AS_GOOD for outcome in tied} | {id(best): BEST}
    p_values = [math.nan, *(_p_value(other, best) for other in others)]
    ranked = [
        replace(
            outcome,
            result=replace(
                outcome.result,
                p_value=p_value,
                p_holm=float(p_holm),
                verdict=verdicts.get(id(outcome), ""),
                recommended=outcome is simplest,
            ),
        )
        for outcome, p_value, p_holm in zip(scored, p_values, holm(p_values), strict=True)
    ]
    return ranked + failed, _sentence(simplest, tied, scored, balanced)


def _sort_key(outcome: Outcome, balanced: bool) -> tuple[float, float, int]:
    validation = outcome.validation
    loss = log_loss_of(validation.labels, validation.scores)
    return -round(_accuracy(outcome, balanced) / ROUNDING), loss, outcome.result.parameters


def _accuracy(outcome: Outcome, balanced: bool) -> float:
    result = outcome.result
    return result.validation_balanced_accuracy if balanced else result.validation_accuracy


def _image_weights(predictions: HeadPredictions, balanced: bool) -> npt.NDArray[np.float64]:
    """Return the weight of each image (n,), 1 on average; if balanced, classes weigh the same."""
    weights = compute_sample_weight("balanced" if balanced else None, predictions.labels)
    return np.asarray(weights, np.float64)


def _simplest(tied: Outcomes) -> Outcome:
    """Return the simplest outcome on the cache of the best, which is the first.

    A constant predictor is returned only if all are. Other caches are left out, as a head's
    parameters do not include its base: VGG16, with fewer features than MobileNetV2, would be
    preferred, which lost 0.1 to 0.3 points on average.
    """
    same_cache = [outcome for outcome in tied if outcome.result.cache == tied[0].result.cache]
    useful = [each for each in same_cache if len(np.unique(each.validation.predicted)) > 1]
    return min(useful or same_cache, key=_complexity)


def _complexity(outcome: Outcome) -> tuple[int, float]:
    """Return the number of parameters, and the calibrated log loss on validation."""
    labels, scores = outcome.validation.labels, outcome.validation.scores
    temperature = fit_temperature(labels, scores, has_probabilities=True)
    calibrated = apply_temperature(scores, temperature, has_probabilities=True)
    return outcome.result.parameters, log_loss_of(labels, calibrated)


def _is_as_good(outcome: Outcome, best: Outcome, balanced: bool) -> bool:
    first, second = (
        each.validation.correct * _image_weights(each.validation, balanced)
        for each in (best, outcome)
    )
    orders = _pair_images(best.validation, outcome.validation)
    if orders is None:
        error = math.hypot(standard_error(first), standard_error(second))
    else:
        error = standard_error(first[orders[0]] - second[orders[1]])
    return _accuracy(best, balanced) - _accuracy(outcome, balanced) <= error + ROUNDING


def _p_value(outcome: Outcome, best: Outcome) -> float:
    orders = _pair_images(best.test, outcome.test)
    if orders is None:
        return math.nan
    return mcnemar_exact(best.test.correct[orders[0]], outcome.test.correct[orders[1]])


def _pair_images(first: HeadPredictions, second: HeadPredictions) -> tuple[Order, Order] | None:
    """Return orders (n,) that pair equal images, or None if any digest or label differs."""
    one, other = (np.lexsort((each.rows, each.labels, each.keys)) for each in (first, second))
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
    name = f"{_head_text(chosen.result)} on {_features_text(chosen.result, scored)}"
    accuracy = _accuracy_text(chosen, balanced)
    if _beats_guessing(chosen, balanced):
        return f"Use {name}: {accuracy}{_rivals_text(chosen, tied, scored)}."
    guessed = np.mean(_guessed_right(chosen) * _image_weights(chosen.test, balanced))
    return (
        f"No head can be recommended: {name} is the choice on validation, but gets {accuracy}, not "
        f"significantly more than the most frequent class ({percent(float(guessed))} %)."
    )


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
    result, others = chosen.result, [other.result for other in tied if other is not chosen]
    if not others:
        return "; no other is as good on validation" if len(scored) > 1 else ""
    named = others[:MAX_NAMES]
    names = [printable(each.head) for each in named]
    if len({_features_text(each, scored) for each in (result, *named)}) > 1:
        names = [f"{printable(each.head)} on {_features_text(each, scored)}" for each in named]
    if len(others) > MAX_NAMES:
        names.append(f"{len(others) - MAX_NAMES} more")
    *first, last = names
    text = f"{', '.join(first)} and {last}" if first else last
    verb = "are" if first else "is"
    if all(other.cache == result.cache for other in others):  # else their bases differ
        fewest = min(other.parameters for other in others)
        if fewest > result.parameters:
            return f"; it is simpler than {text}, which {verb} as good on validation"
        if fewest == result.parameters:
            return f"; {text} {verb} as good on validation and no simpler"
    return f"; {text} {verb} as good on validation"


def _head_text(result: Result) -> str:
    """Return ``logistic (C=1)``, or ``logistic with C=1 (3 of 5 fits)``."""
    head, params = printable(result.head), printable(result.params)
    if not params or params.startswith("("):
        return f"{head} {params}".rstrip()
    return f"{head} with {params}" if "(" in params else f"{head} ({params})"


def _features_text(result: Result, scored: Outcomes) -> str:
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
