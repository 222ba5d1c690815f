"""Which head is the best, which are as good, and which of them to use."""

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
UNSURE = 0.05  # p-value from which on a head is not surely better than guessing
ROUNDING = 1e-9  # of accuracies averaged over fits: far less than one image
MOST_NAMES = 3  # of heads that are as good; the table has them all

Places = npt.NDArray[np.int64]
Outcomes = Sequence[Outcome]


def rank_and_recommend(outcomes: Outcomes, *, balanced: bool = False) -> tuple[list[Outcome], str]:
    """Sort the outcomes, the best first; give verdicts and p-values, and say which head to use.

    Best is the highest validation accuracy (or balanced accuracy); of equal ones the lowest
    validation log loss, then the fewest parameters. As good are heads that are not worse by more
    than one standard error of the paired difference (Breiman et al. 1984). Of these, the one with
    the fewest parameters is recommended, which is also the fastest to predict; of equally simple
    ones that of the lowest calibrated log loss on validation. Nothing is chosen by the p-values,
    which are of test.

    On 120 random divisions of 2,000 cats and dogs (two bases, 200 to 1,000 images to train on) the
    head recommended was 0.36 points on average below the one that turned out best on test; always
    taking the best on validation, 0.60. Whichever head is best on average was 0.02 to 0.17 better.

    Returns the outcomes, those without figures last, and a sentence; it is empty if none has any.
    """
    failed = [each for each in outcomes if each.result.status]
    scored = [each for each in outcomes if not each.result.status]
    if not scored:
        return failed, ""
    scored.sort(key=lambda outcome: _rank(outcome, balanced))
    best, *others = scored
    tied = [best, *(each for each in others if _is_as_good(each, best, balanced))]
    simplest = _simplest(tied)
    verdicts = {id(each): AS_GOOD for each in tied} | {id(best): BEST}
    p_values = [math.nan, *(_p_value(each, best) for each in others)]
    judged = [
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
    return judged + failed, _sentence(simplest, tied, scored, balanced)


def _rank(outcome: Outcome, balanced: bool) -> tuple[float, float, int]:
    validation = outcome.validation
    loss = log_loss_of(validation.labels, validation.scores)
    return -round(_accuracy(outcome, balanced) / ROUNDING), loss, outcome.result.parameters


def _accuracy(outcome: Outcome, balanced: bool) -> float:
    result = outcome.result
    return result.validation_balanced_accuracy if balanced else result.validation_accuracy


def _worth(predictions: HeadPredictions, balanced: bool) -> npt.NDArray[np.float64]:
    """What each image counts (n,), 1 on average: the same, or less the more its class has."""
    weights = compute_sample_weight("balanced" if balanced else None, predictions.labels)
    return np.asarray(weights, np.float64)


def _simplest(tied: Outcomes) -> Outcome:
    """The simplest in the cache of the best, which comes first; no constant one if it can be.

    A head's parameters say nothing of what another base costs: counted over caches, they preferred
    VGG16 to MobileNetV2 for its fewer features, which cost 0.1 to 0.3 points on average.
    """
    here = [each for each in tied if each.result.cache == tied[0].result.cache]
    useful = [each for each in here if len(np.unique(each.validation.predicted)) > 1]
    return min(useful or here, key=_simplicity)


def _simplicity(outcome: Outcome) -> tuple[int, float]:
    """Lower is simpler; of equal numbers of parameters, the lower calibrated log loss."""
    labels, scores = outcome.validation.labels, outcome.validation.scores
    temperature = fit_temperature(labels, scores, has_probabilities=True)
    calibrated = apply_temperature(scores, temperature, has_probabilities=True)
    return outcome.result.parameters, log_loss_of(labels, calibrated)


def _is_as_good(outcome: Outcome, best: Outcome, balanced: bool) -> bool:
    first, second = (
        each.validation.correct * _worth(each.validation, balanced) for each in (best, outcome)
    )
    pair = _in_pairs(best.validation, outcome.validation)
    if pair is None:
        error = math.hypot(standard_error(first), standard_error(second))
    else:
        error = standard_error(first[pair[0]] - second[pair[1]])
    return _accuracy(best, balanced) - _accuracy(outcome, balanced) <= error + ROUNDING


def _p_value(outcome: Outcome, best: Outcome) -> float:
    pair = _in_pairs(best.test, outcome.test)
    if pair is None:
        return math.nan
    return mcnemar_exact(best.test.correct[pair[0]], outcome.test.correct[pair[1]])


def _in_pairs(first: HeadPredictions, second: HeadPredictions) -> tuple[Places, Places] | None:
    """Where in both the same images are, (n,) each; None unless digests and labels are the same."""
    one, other = (np.lexsort((each.rows, each.labels, each.keys)) for each in (first, second))
    same_images = np.array_equal(first.keys[one], second.keys[other])
    if not same_images or not np.array_equal(first.labels[one], second.labels[other]):
        return None
    return one, other


def _beats_guessing(outcome: Outcome, balanced: bool) -> bool:
    """Whether a head is surely better on test than naming the class most frequent on validation.

    By exact McNemar test; where every class counts the same, by two standard errors of the paired
    difference of balanced accuracies, of which guessing has 1/K.
    """
    correct, guessed = outcome.test.correct, _guessed(outcome)
    gains = (correct.astype(np.float64) - guessed) * _worth(outcome.test, balanced)
    if balanced:
        return bool(gains.mean() > Z_95 * standard_error(gains))
    return bool(gains.sum() > 0 and mcnemar_exact(correct, guessed) < UNSURE)


def _guessed(outcome: Outcome) -> Correct:
    return np.asarray(outcome.test.labels == np.bincount(outcome.validation.labels).argmax())


# ---------------------------------------------------------------------------------- in words


def _sentence(chosen: Outcome, tied: Outcomes, scored: Outcomes, balanced: bool) -> str:
    name = f"{_head(chosen.result)} on {_features(chosen.result, scored)}"
    right = _right(chosen, balanced)
    if _beats_guessing(chosen, balanced):
        return f"Use {name}: {right}{_rivals(chosen, tied, scored)}."
    guessed = np.mean(_guessed(chosen) * _worth(chosen.test, balanced))
    return (
        f"No head can be recommended: {name} is the choice on validation, but gets {right}, not "
        f"surely more than by always naming the most frequent class ({percent(float(guessed))} %)."
    )


def _right(outcome: Outcome, balanced: bool) -> str:
    result, folds = outcome.result, outcome.folds
    how = f"95 % interval {percent(result.test_low)}–{percent(result.test_high)}"
    if folds:
        again = f" {result.fits // folds} times" if result.fits > folds else ""
        how = f"over {folds} folds{again}, {how}"
    elif result.fits > 1:
        how = f"mean of {result.fits} seeds, {how}"
    images = counted(len(outcome.test), "image" if folds else "test image")
    if balanced:
        share = percent(result.balanced_accuracy)
        return f"{share} % right on average over the classes of {images} (accuracy {how})"
    return f"{percent(result.test_accuracy)} % of {images} right ({how})"


def _rivals(chosen: Outcome, tied: Outcomes, scored: Outcomes) -> str:
    result, others = chosen.result, [each.result for each in tied if each is not chosen]
    if not others:
        return "; no other is as good on validation" if len(scored) > 1 else ""
    named = others[:MOST_NAMES]
    places = {_features(each, scored) for each in (result, *named)}
    names = [printable(each.head) for each in named]
    if len(places) > 1:
        names = [f"{printable(each.head)} on {_features(each, scored)}" for each in named]
    if len(others) > MOST_NAMES:
        names.append(f"{len(others) - MOST_NAMES} more")
    *first, last = names
    text = f"{', '.join(first)} and {last}" if first else last
    verb = "are" if first else "is"
    if all(other.cache == result.cache for other in others):  # else their bases differ, too
        fewest = min(other.parameters for other in others)
        if fewest > result.parameters:
            return f"; it is simpler than {text}, which {verb} as good on validation"
        if fewest == result.parameters:
            return f"; {text} {verb} as good on validation and no simpler"
    return f"; {text} {verb} as good on validation"


def _head(result: Result) -> str:
    """``logistic (C=1)``; settings that are in brackets already stay so."""
    head, params = printable(result.head), printable(result.params)
    if not params or params.startswith("("):
        return f"{head} {params}".rstrip()
    return f"{head} with {params}" if "(" in params else f"{head} ({params})"


def _features(result: Result, scored: Outcomes) -> str:
    """``pooled vgg16 block5_pool``, with what tells it from another cache of the base."""
    names = dict.fromkeys([result.base, result.layer])  # of pixels both are the same
    text = " ".join([result.input, *map(printable, names)])
    namesakes = [each.result for each in scored if each.result.base == result.base]
    if any(each.image_size != result.image_size for each in namesakes):
        text += f" at {result.image_size} pixels"
    namesakes = [each for each in namesakes if each.image_size == result.image_size]
    if any(each.cache != result.cache for each in namesakes):
        text += f" ({result.cache})"
    return text
