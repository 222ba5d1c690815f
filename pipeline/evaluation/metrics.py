"""What is measured of a classifier on a split. SciPy and scikit-learn are imported when used."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

TOP = 5
CALIBRATION_BINS = 15  # as in Guo et al. 2017 and most tables since

Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Shares in 0 … 1, NaN where a measure does not apply.

    A class that is missing from the labels (of a small fold) is left out of every mean over the
    classes that it makes undefined.

    Attributes
    ----------
    balanced_accuracy : mean over the classes of recall.
    macro_f1 : mean over the classes of F1.
    roc_auc : area under the ROC curve; of more than two classes, the mean of one against the rest.
    top5_accuracy : how often the true class is among the five highest; needs six classes.
    log_loss : mean -ln(probability of the true class). This and what follows needs probabilities.
    brier : half the mean squared distance of the probabilities from the truth.
    ece : see `expected_calibration_error`.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    roc_auc: float
    top5_accuracy: float
    log_loss: float
    brier: float
    ece: float


class PerClass(NamedTuple):
    """Precision, recall and F1 of each class (K,) float64, and its number of rows (K,) int64.

    NaN where there is nothing to divide by: the precision of a class that is never predicted, the
    recall of one that is not there, the F1 of one that is neither.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]
    support: npt.NDArray[np.int64]


class Reliability(NamedTuple):
    """Of each bin of confidence: its mean confidence, its accuracy and its number of rows.

    Each (CALIBRATION_BINS,); confidence and accuracy are NaN in an empty bin.
    """

    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]


def measure(labels: Labels, scores: Scores) -> Metrics:
    """Measure probabilities (N, K) against true labels (N,)."""
    classes = per_class(labels, scores.argmax(axis=1), scores.shape[1])
    return Metrics(
        accuracy=accuracy_of(labels, scores),
        balanced_accuracy=float(np.nanmean(classes.recall)),
        macro_f1=float(np.nanmean(classes.f1)),
        roc_auc=roc_auc_of(labels, scores),
        top5_accuracy=_top_accuracy(labels, scores) if scores.shape[1] > TOP else math.nan,
        log_loss=log_loss_of(labels, scores),
        brier=brier_of(labels, scores),
        ece=expected_calibration_error(labels, scores),
    )


def accuracy_of(labels: Labels, scores: Scores, *, balanced: bool = False) -> float:
    """The share of rows whose highest score is the true class's.

    ``balanced``: the mean of that share over the classes that are there.
    """
    right = scores.argmax(axis=1) == labels
    if balanced:
        counts = np.bincount(labels)
        return float(np.mean(np.bincount(labels, right)[counts > 0] / counts[counts > 0]))
    return float(np.mean(right))


def per_class(labels: Labels, predicted: Labels, class_count: int) -> PerClass:
    """Measure each class by itself; labels and predicted (N,)."""
    from sklearn.metrics import precision_recall_fscore_support

    return PerClass(
        *precision_recall_fscore_support(
            labels, predicted, labels=np.arange(class_count), zero_division=np.nan
        )
    )


def roc_auc_of(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve; of more than two classes, the mean of one against the rest.

    That is how often a row of the class scores above another one, ties counting half
    (Mann-Whitney). Classes without rows, or without others to tell them from, do not count; NaN if
    none is left.
    """
    from scipy.stats import rankdata

    scores = scores[:, 1:] if scores.shape[1] == 2 else scores
    positive = labels[:, None] == np.arange(scores.shape[1]) + (scores.shape[1] == 1)
    positives = positive.sum(axis=0)
    above = (rankdata(scores, axis=0) * positive).sum(axis=0) - positives * (positives + 1) / 2
    pairs = positives * (len(labels) - positives)
    return float(np.mean(above[pairs > 0] / pairs[pairs > 0])) if pairs.any() else math.nan


def log_loss_of(labels: Labels, probabilities: Scores) -> float:
    """Mean -ln(probability of the true class), in nats; of a probability 0 that of the least."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(np.float64).eps)).mean()) + 0.0  # never -0


def brier_of(labels: Labels, probabilities: Scores) -> float:
    """Half the mean squared distance of probabilities (N, K) from the truth, in 0 … 1.

    Brier (1950) does not halve; halved, it is what is usual for two classes.
    """
    true = probabilities[np.arange(len(labels)), labels]
    squares = (probabilities**2).sum(axis=1) - true**2 + (1 - true) ** 2
    return float(squares.mean() / 2)


def expected_calibration_error(labels: Labels, probabilities: Scores) -> float:
    """How far confidence is from accuracy, on average over the rows (Guo et al. 2017)."""
    bins = reliability(labels, probabilities)
    return float(np.nansum(bins.rows * np.abs(bins.confidence - bins.accuracy)) / len(labels))


def reliability(labels: Labels, probabilities: Scores) -> Reliability:
    """Sort rows by the predicted class's probability into bins of equal width."""
    from scipy.stats import binned_statistic

    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    (confident, accurate), _, places = binned_statistic(
        confidence, [confidence, right], "mean", bins=CALIBRATION_BINS, range=(0, 1)
    )
    rows = np.bincount(places - 1, minlength=CALIBRATION_BINS)
    return Reliability(confident, accurate, rows)


def _top_accuracy(labels: Labels, scores: Scores) -> float:
    """The share of rows with the true class among the five highest; of ties the first come first,
    as in argmax."""
    highest = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return float(np.mean((highest == labels[:, None]).any(axis=1)))
