"""Rank heads of a task without classes on validation, and recommend one; see `recommendation`.

Everything that a count of right images answers for classes, the bootstrap over images answers here.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.evaluation.recommendation import (
    SIGNIFICANCE,
    features_text,
    head_text,
    name_heads,
    pair_images,
    with_verdicts,
)
from pipeline.evaluation.result import NO_RECOMMENDATION, HeadPredictions, Outcome
from pipeline.evaluation.statistics import Z_95
from pipeline.evaluation.tasks import Floats, Task
from pipeline.text import counted

SHUFFLES = 200  # of the predictions of the chosen head

Outcomes = Sequence[Outcome]


def rank_and_recommend_targets(outcomes: Outcomes, task: Task) -> tuple[list[Outcome], str]:
    """Sort the outcomes, the best first, with verdicts and p-values; recommend one in a sentence.

    The best head has the best measure on validation; ties go to the fewest parameters. A head is as
    good if it is at most one standard error of the paired difference worse. Of these, on the cache
    of the best, the one with the fewest parameters is chosen; a constant predictor only if all are.

    Returns the outcomes, those without metrics last, and the sentence, empty if none has metrics.
    """
    failed = [outcome for outcome in outcomes if outcome.result.status]
    scored = [outcome for outcome in outcomes if not outcome.result.status]
    if not scored:
        return failed, ""
    name = f"validation_{task.measure}"
    scored.sort(key=lambda each: (-task.sign * each.result.metrics[name], each.result.parameters))
    best, *others = scored
    leads = [_lead(best.validation, other.validation, task) for other in others]
    worse = [
        task.sign * (best.result.metrics[name] - other.result.metrics[name]) for other in others
    ]
    tied = [best] + [
        other
        for other, lead, gap in zip(others, leads, worse, strict=True)
        if gap <= float(np.nanstd(lead))
    ]
    chosen = _choose(tied)
    p_values = [math.nan, *(_p_value(best, other, task) for other in others)]
    ranked = with_verdicts(scored, tied, chosen, p_values)
    return ranked + failed, _sentence(chosen, tied, scored, task)


def _lead(best: HeadPredictions, other: HeadPredictions, task: Task) -> Floats:
    """Return by how much the first is better in each resample, paired if the images are equal."""
    orders = pair_images(best, other) or (np.arange(len(best)), np.arange(len(other)))
    first, second = (
        task.resampled(each.labels[order], [each.scores[order]])
        for each, order in zip((best, other), orders, strict=True)
    )
    size = min(len(first), len(second))
    return task.sign * (first[:size] - second[:size])


def _p_value(best: Outcome, other: Outcome, task: Task) -> float:
    """Return the two-sided p-value of equal measures on the same test images; NaN for others."""
    if pair_images(best.test, other.test) is None:
        return math.nan
    lead = _lead(best.test, other.test, task)
    tail = min(np.count_nonzero(lead <= 0), np.count_nonzero(lead >= 0))
    return float(min(1.0, 2 * (1 + tail) / (1 + len(lead))))


def _beats_guess(test: HeadPredictions, guess: HeadPredictions, task: Task) -> bool:
    """Return whether predictions are significantly better than a constant, and than shuffled ones.

    The average precision of a random order exceeds that of a constant, the share of the label.
    """
    if np.nanquantile(_lead(test, guess, task), SIGNIFICANCE / 2) <= 0:
        return False
    _, once = np.unique(test.keys, return_index=True)  # copies of an image are no evidence
    labels, scores, random = test.labels[once], test.scores[once], np.random.default_rng(0)
    value = task.value(labels, scores)
    shuffled = [task.value(labels, random.permutation(scores)) for _ in range(SHUFFLES)]
    as_good = np.count_nonzero(task.sign * (np.array(shuffled) - value) >= 0)
    return bool((1 + as_good) / (1 + SHUFFLES) < SIGNIFICANCE / 2)


def _choose(tied: Outcomes) -> Outcome:
    same_cache = [each for each in tied if each.result.cache == tied[0].result.cache]
    useful = [each for each in same_cache if np.ptp(each.validation.scores, axis=0).any()]
    return min(useful or same_cache, key=lambda each: each.result.parameters)


def _sentence(chosen: Outcome, tied: Outcomes, scored: Outcomes, task: Task) -> str:
    result, measure = chosen.result, task.measure
    name = f"{head_text(result)} on {features_text(result, scored)}"
    value, low, high = (result.metrics[f"test_{measure}{end}"] for end in ("", "_low", "_high"))
    others = [
        f"{task.titles[each]} {task.with_unit(result.metrics[f'test_{each}'], each)}"
        for each in task.metrics
        if each != measure
    ]
    over = f" over {chosen.folds} folds" if chosen.folds else ""
    images = counted(len(chosen.test), "image" if chosen.folds else "test image")
    accuracy = (
        f"{task.title} {task.with_unit(value)}{over} on {images} (95 % interval {task.text(low)}–"
        f"{task.text(high)}), {', '.join(others)}"
    )
    guessed = task.guess_from(chosen.validation.labels, len(chosen.test))
    guess = replace(chosen.test, scores=guessed)
    doubt = _disagreement(chosen, task)
    if _beats_guess(chosen.test, guess, task):
        rivals = [other for other in tied if other is not chosen]
        as_good = "; no other is as good on validation" if len(scored) > 1 else ""
        if rivals:
            as_good = f"; {name_heads(chosen, rivals, scored)} as good on validation"
        return f"Use {name}: {accuracy}{as_good}.{doubt}"
    return (
        f"{NO_RECOMMENDATION}: {name} is the choice on validation, but gets {accuracy}, not "
        f"significantly better than {task.guess} of validation "
        f"({task.title} {task.with_unit(task.value(guess.labels, guess.scores))}).{doubt}"
    )


def _disagreement(chosen: Outcome, task: Task) -> str:
    """Return a sentence if validation and test differ by more than chance explains."""
    parts = (chosen.validation, chosen.test)
    errors = [np.nanstd(task.resampled(each.labels, [each.scores])) for each in parts]
    validation, test = (
        chosen.result.metrics[f"{split}_{task.measure}"] for split in ("validation", "test")
    )
    if not abs(validation - test) > Z_95 * math.hypot(*errors):
        return ""
    cure = "More images or --repeats" if chosen.folds else "More validation images or classify --cv"
    return (
        f" Validation and test disagree: its {task.title} is {task.with_unit(validation)} on "
        f"validation and {task.with_unit(test)} on test. {cure} would settle it."
    )
