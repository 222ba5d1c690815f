"""What is measured of a classifier on a split."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
TOP = 5

Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Shares in 0 … 1, NaN where a measure does not apply.

    Attributes
    ----------
    accuracy, low, high : accuracy and its 95 % Wilson interval.
    macro_f1 : mean over the classes of F1.
    roc_auc : area under the ROC curve; of more than two classes, the mean of one against the rest.
    log_loss : mean -ln(probability of the true class); needs probabilities.
    top5_accuracy : how often the true class is among the five highest; needs six classes.
    """

    accuracy: float
    low: float
    high: float
    macro_f1: float
    roc_auc: float
    log_loss: float
    top5_accuracy: float


def measure(labels: Labels, scores: Scores, *, has_probabilities: bool) -> Metrics:
    """Measure scores (N, K) against true labels (N,), every class among them."""
    from sklearn import metrics

    class_count = scores.shape[1]
    predicted = scores.argmax(axis=1)
    accuracy = accuracy_of(labels, scores)
    low, high = wilson_interval(round(accuracy * len(labels)), len(labels))
    one_vs_rest = range(class_count) if class_count > 2 else (1,)
    aucs = [metrics.roc_auc_score(labels == label, scores[:, label]) for label in one_vs_rest]
    every = np.arange(class_count)
    return Metrics(
        accuracy=accuracy,
        low=low,
        high=high,
        macro_f1=float(metrics.f1_score(labels, predicted, average="macro", zero_division=0)),
        roc_auc=float(np.mean(aucs)),
        log_loss=log_loss_of(labels, scores) if has_probabilities else math.nan,
        top5_accuracy=float(metrics.top_k_accuracy_score(labels, scores, k=TOP, labels=every))
        if class_count > TOP
        else math.nan,
    )


def accuracy_of(labels: Labels, scores: Scores) -> float:
    """The share of rows whose highest score is the true class's."""
    return float(np.mean(scores.argmax(axis=1) == labels))


def log_loss_of(labels: Labels, probabilities: Scores) -> float:
    """Mean -ln(probability of the true class), in nats; of a probability 0 that of the least."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(np.float64).eps)).mean()) + 0.0  # never -0


def wilson_interval(correct: int, count: int, *, z: float = Z_95) -> tuple[float, float]:
    """Bounds of a proportion's confidence interval (Wilson 1927).

    Unlike the normal approximation it stays within 0 … 1 and does not shrink to nothing when all
    are correct.
    """
    share = correct / count
    centre = share + z**2 / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def confusion_matrix(labels: Labels, scores: Scores) -> npt.NDArray[np.int64]:
    """Counts (K, K): true class by row, predicted class by column."""
    counts = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(counts, (labels, scores.argmax(axis=1)), 1)
    return counts
