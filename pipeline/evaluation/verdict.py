"""Which head is the best, which are as good, and which of them to use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.metrics import log_loss_of
from pipeline.evaluation.result import Outcome, Predictions, Result
from pipeline.evaluation.statistics import (
    Z_95,
    Correct,
    holm,
    mcnemar_exact,
    paired_standard_error,
    unpaired_standard_error,
)
from pipeline.evaluation.table import percent
from pipeline.heads.calibration import apply_temperature, fit_temperature
from pipeline.text import counted, printable

BEST, AS_GOOD = "best", "≈ best"
UNSURE = 0.05  # p-value from which on a head is not surely better than guessing
ROUNDING = 1e-9  # of accuracies averaged over fits: far less than one image
MOST_NAMES = 3  # of heads that are as good; the table has them all

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Row:
    """An outcome that has figures."""

    outcome: Outcome
    result: Result
    test: Predictions
    validation: Predictions
    balanced: bool

    @property
    def accuracy(self) -> float:
        """On validation, by which heads are judged."""
        if self.balanced:
            return self.result.validation_balanced_accuracy
        return self.result.validation_accuracy

    @property
    def worth(self) -> npt.NDArray[np.float64]:
        """What each validation image counts (V,)."""
        return _worth(self.validation, balanced=self.balanced)

    @property
    def rank(self) -> tuple[float, float, int]:
        """Lower is better; of equal accuracies those without probabilities come last."""
        loss = math.inf
        if self.outcome.has_probabilities:
            loss = log_loss_of(self.validation.labels, self.validation.scores)
        return -round(self.accuracy / ROUNDING), loss, self.result.parameters

    @property
    def simplicity(self) -> tuple[int, float]:
        """Lower is simpler; of equal numbers of parameters, the lower calibrated log loss."""
        labels, scores = self.validation.labels, self.validation.scores
        known = self.outcome.has_probabilities
        temperature = fit_temperature(labels, scores, has_probabilities=known)
        calibrated = apply_temperature(scores, temperature, has_probabilities=known)
        return self.result.parameters, log_loss_of(labels, calibrated)

    @property
    def tells_classes_apart(self) -> bool:
        return len(np.unique(self.validation.predicted)) > 1


def judge(outcomes: Sequence[Outcome], *, balanced: bool = False) -> tuple[list[Outcome], str]:
    """Sort the outcomes, the best first; give verdicts and p-values, and say which head to use.

    Best is the highest validation accuracy; of equal ones the lowest validation log loss, then the
    fewest parameters. As good are heads that are not worse by more than one standard error of the
    paired difference (the rule of Breiman et al. 1984). Of these, the one with the fewest
    parameters is recommended, which is also the fastest to predict; of equally simple ones that of
    the lowest validation log loss, each with its fitted temperature. The p-values are of test:
    nothing is chosen by them.

    On 120 random divisions of 2,000 cats and dogs (two bases, 200 to 1,000 images to train on) the
    head recommended was 0.36 points on average below the one that turned out best on test; always
    taking the best on validation, 0.60. Whichever head is best on average was 0.02 to 0.17 better.

    Parameters
    ----------
    balanced : judge by balanced accuracy on validation.

    Returns the outcomes, those without figures last, and a sentence; it is empty if none has any.
    Where the choice is not surely better than guessing on test, the sentence says so.
    """
    rows = [
        _Row(each, each.result, each.test, each.validation, balanced)
        for each in outcomes
        if each.test is not None and each.validation is not None
    ]
    without = [each for each in outcomes if each.test is None or each.validation is None]
    if not rows:
        return without, ""
    rows.sort(key=lambda row: row.rank)
    best = rows[0]
    tied = [best, *(row for row in rows[1:] if _is_as_good(row, best))]
    simplest = _recommended(tied)
    p_values = [math.nan, *(_p_value(row, best) for row in rows[1:])]
    judged = [
        replace(
            row.outcome,
            result=replace(
                row.result,
                p_value=p_value,
                p_holm=float(p_holm),
                verdict=BEST if row is best else AS_GOOD if row in tied else "",
                recommended=row is simplest,
            ),
        )
        for row, p_value, p_holm in zip(rows, p_values, holm(p_values), strict=True)
    ]
    sentence = _recommendation if _beats_guessing(simplest) else _no_recommendation
    return judged + without, sentence(simplest, tied, rows)


def _worth(predictions: Predictions, *, balanced: bool) -> npt.NDArray[np.float64]:
    """What each image counts (n,), 1 on average: the same, or less the more its class has."""
    if not balanced:
        return np.ones(len(predictions))
    _, classes, counts = np.unique(predictions.labels, return_inverse=True, return_counts=True)
    return np.asarray(len(predictions) / (len(counts) * counts[classes]))


def _recommended(tied: Sequence[_Row]) -> _Row:
    """The simplest in the cache of the best, which comes first.

    A head's parameters say nothing of what another base costs: counted over caches, they preferred
    VGG16 to MobileNetV2 for its fewer features, which cost 0.1 to 0.3 points on average. And a head
    that names the same class for every image serves nobody, however good that looks.
    """
    here = [row for row in tied if row.result.cache == tied[0].result.cache]
    useful = [row for row in here if row.tells_classes_apart]
    return min(useful or here, key=lambda row: row.simplicity)


def _is_as_good(row: _Row, best: _Row) -> bool:
    pair = _in_pairs(best.validation, row.validation)
    if pair is None:
        error = unpaired_standard_error(
            best.validation.correct * best.worth, row.validation.correct * row.worth
        )
    else:
        first, second = pair
        worth = best.worth[first]
        error = paired_standard_error(
            best.validation.correct[first] * worth, row.validation.correct[second] * worth
        )
    return best.accuracy - row.accuracy <= error + ROUNDING


def _p_value(row: _Row, best: _Row) -> float:
    pair = _in_pairs(best.test, row.test)
    if pair is None:
        return math.nan
    first, second = pair
    return mcnemar_exact(best.test.correct[first], row.test.correct[second])


def _in_pairs(first: Predictions, second: Predictions) -> tuple[Places, Places] | None:
    """Where in both the same images stand, (n,) each; None unless images and labels are the same.

    Rows of different caches belong together by digest; of identical files, by label.
    """
    one, other = (np.lexsort((each.rows, each.labels, each.keys)) for each in (first, second))
    same_images = np.array_equal(first.keys[one], second.keys[other])
    if not same_images or not np.array_equal(first.labels[one], second.labels[other]):
        return None
    return one, other


def _beats_guessing(row: _Row) -> bool:
    """Whether a head is surely better on test than naming the class most frequent on validation.

    By exact McNemar test; where every class counts the same, by two standard errors of the paired
    difference of balanced accuracies, of which guessing has 1/K.
    """
    test = row.test
    guessed = _guessed(row)
    if not row.balanced:
        return bool(
            test.correct.sum() > guessed.sum() and mcnemar_exact(test.correct, guessed) < UNSURE
        )
    worth = _worth(test, balanced=True)
    gain = float(np.mean(test.correct * worth) - np.mean(guessed * worth))
    return gain > Z_95 * paired_standard_error(test.correct * worth, guessed * worth)


def _guessed(row: _Row) -> Correct:
    """Which test images are of the class that is most frequent on validation."""
    return np.asarray(row.test.labels == np.bincount(row.validation.labels).argmax())


def _recommendation(row: _Row, tied: Sequence[_Row], rows: Sequence[_Row]) -> str:
    return f"Use {_named(row, rows)}: {_right(row)}{_rivals(row, tied, rows)}."


def _no_recommendation(row: _Row, tied: Sequence[_Row], rows: Sequence[_Row]) -> str:
    guessed = np.mean(_guessed(row) * _worth(row.test, balanced=row.balanced))
    return (
        f"No head can be recommended: {_named(row, rows)} is the choice on validation, but gets "
        f"{_right(row)}, not surely more than by always naming the most frequent class "
        f"({percent(float(guessed))} %)."
    )


def _named(row: _Row, rows: Sequence[_Row]) -> str:
    return f"{_head(row.result)} on {_features(row.result, rows)}"


def _right(row: _Row) -> str:
    """What it reached on test, and how sure that is."""
    result = row.result
    images = counted(len(row.test), "image" if row.outcome.folds else "test image")
    how = _how_tested(result, row.outcome.folds)
    if row.balanced:
        share = percent(result.balanced_accuracy)
        return f"{share} % right on average over the classes of {images} (accuracy {how})"
    return f"{percent(result.test_accuracy)} % of {images} right ({how})"


def _how_tested(result: Result, folds: int) -> str:
    interval = f"95 % interval {percent(result.test_low)}–{percent(result.test_high)}"
    if folds:
        again = f" {result.fits // folds} times" if result.fits > folds else ""
        return f"over {folds} folds{again}, {interval}"
    return f"mean of {result.fits} seeds, {interval}" if result.fits > 1 else interval


def _rivals(recommended: _Row, tied: Sequence[_Row], rows: Sequence[_Row]) -> str:
    """Which others are as good on validation, and whether the recommended one is the simplest."""
    others = [row.result for row in tied if row is not recommended]
    if not others:
        return "; no other is as good on validation" if len(rows) > 1 else ""
    result = recommended.result
    features = [_features(each, rows) for each in (result, *others[:MOST_NAMES])]
    names = [
        f"{printable(other.head)} on {where}" if len(set(features)) > 1 else printable(other.head)
        for other, where in zip(others[:MOST_NAMES], features[1:], strict=True)
    ]
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


def _features(result: Result, rows: Sequence[_Row]) -> str:
    """``pooled vgg16 block5_pool``, with what tells it from another cache of the base."""
    names = dict.fromkeys([result.base, result.layer])  # of pixels both are the same
    text = " ".join([result.input, *map(printable, names)])
    namesakes = [row.result for row in rows if row.result.base == result.base]
    if any(each.image_size != result.image_size for each in namesakes):
        text += f" at {result.image_size} pixels"
    namesakes = [each for each in namesakes if each.image_size == result.image_size]
    if any(each.cache != result.cache for each in namesakes):
        text += f" ({result.cache})"
    return text
