"""Metrics of a classifier on a split. SciPy and scikit-learn are imported when used."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

TOP = 5
CALIBRATION_BINS = 15  # as in Guo et al. 2017

Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


class Reliability(NamedTuple):
    """Means and number of rows per bin, (CALIBRATION_BINS,); means of empty bins are NaN."""

    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]


def compute_metrics(labels: Labels, scores: Scores) -> dict[str, float]:
    """Return the metrics of probabilities (N, K) for true labels (N,): column -> value.

    A metric that does not apply is NaN. Means over classes leave out classes for which the metric
    is undefined, such as classes without images in a small fold.
    """
    from sklearn.metrics import f1_score

    every, predicted = np.arange(scores.shape[1]), scores.argmax(axis=1)
    f1 = f1_score(labels, predicted, labels=every, average=None, zero_division=np.nan)
    highest = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]  # ties as in argmax
    top5 = float(np.mean((highest == labels[:, None]).any(axis=1)))
    return {
        "balanced_accuracy": accuracy_of(labels, scores, balanced=True),
        "macro_f1": float(np.nanmean(f1)),
        "roc_auc": roc_auc_of(labels, scores),
        "top5_accuracy": top5 if len(every) > TOP else math.nan,
        "log_loss": log_loss_of(labels, scores),
        "brier": brier_of(labels, scores),
    }


def accuracy_of(labels: Labels, scores: Scores, *, balanced: bool = False) -> float:
    """Return the accuracy, or the balanced accuracy: the mean recall of classes with rows."""
    right = scores.argmax(axis=1) == labels
    if balanced:
        counts = np.bincount(labels)
        return float(np.mean(np.bincount(labels, right)[counts > 0] / counts[counts > 0]))
    return float(np.mean(right))


def roc_auc_of(labels: Labels, scores: Scores) -> float:
    """Return the area under the ROC curve; of more than two classes, the mean of one-vs-rest.

    It is the Mann-Whitney statistic, where ties count half. The mean leaves out classes without
    rows and classes that all rows have; it is NaN if no class is left.
    """
    from scipy.stats import rankdata

    scores = scores[:, 1:] if scores.shape[1] == 2 else scores  # of two classes, one suffices
    positive = labels[:, None] == np.arange(scores.shape[1]) + (scores.shape[1] == 1)
    positives = positive.sum(axis=0)
    above = (rankdata(scores, axis=0) * positive).sum(axis=0) - positives * (positives + 1) / 2
    pairs = positives * (len(labels) - positives)
    return float(np.mean(above[pairs > 0] / pairs[pairs > 0])) if pairs.any() else math.nan


def log_losses(labels: Labels, probabilities: Scores) -> Scores:
    """Return -ln(probability of the true class) (N,), in nats; 0 counts as machine epsilon."""
    true = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(true, np.finfo(np.float64).eps)))


def log_loss_of(labels: Labels, probabilities: Scores) -> float:
    """Return the mean of `log_losses`."""
    return float(log_losses(labels, probabilities).mean()) + 0.0  # never -0


def brier_of(labels: Labels, probabilities: Scores) -> float:
    """Return half the mean squared distance of probabilities (N, K) from the truth, in 0 … 1.

    Brier (1950) does not halve; with the half, two classes have the usual score.
    """
    true = probabilities[np.arange(len(labels)), labels]
    squares = (probabilities**2).sum(axis=1) - true**2 + (1 - true) ** 2
    return float(squares.mean() / 2)


def expected_calibration_error(labels: Labels, probabilities: Scores) -> float:
    """Return the mean distance of confidence from accuracy over the rows (Guo et al. 2017)."""
    bins = reliability_bins(labels, probabilities)
    return float(np.nansum(bins.rows * np.abs(bins.confidence - bins.accuracy)) / len(labels))


def reliability_bins(labels: Labels, probabilities: Scores) -> Reliability:
    """Sort rows by the predicted class's probability into bins of equal width."""
    from scipy.stats import binned_statistic

    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    (confident, accurate), _, places = binned_statistic(
        confidence, [confidence, right], "mean", bins=CALIBRATION_BINS, range=(0, 1)
    )
    rows = np.bincount(places - 1, minlength=CALIBRATION_BINS)
    return Reliability(confident, accurate, rows)
