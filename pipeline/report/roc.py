"""Compute ROC and precision-recall curves, one class against the rest."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from pipeline.evaluation.result import HeadPredictions

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClassCurves:
    """The ROC and precision-recall curves of one class, and the areas under them."""

    label: int
    roc: Points  # (n, 2) false and true positive rate
    precision_recall: Points  # (m, 2) recall and precision, up to a recall of 1
    roc_auc: float
    average_precision: float


def class_curves(test: HeadPredictions, label: int) -> ClassCurves | None:
    """Return the curves of a class; None if all images or no image belong to it."""
    truth, scores = test.labels == label, test.scores[:, label]
    if truth.all() or not truth.any():
        return None
    precision, recall, _ = precision_recall_curve(truth, scores)
    recall, precision = recall[::-1], precision[::-1]
    precision[0] = precision[1]  # scikit-learn sets 1 for a recall of 0
    count = 1 + int(np.argmax(recall == 1))
    return ClassCurves(
        label=label,
        roc=np.column_stack(roc_curve(truth, scores)[:2]),
        precision_recall=np.column_stack([recall, precision])[:count],
        roc_auc=float(roc_auc_score(truth, scores)),
        average_precision=float(average_precision_score(truth, scores)),
    )


def macro_roc(curves: list[ClassCurves]) -> Points:
    """Return the mean true positive rate of the classes at each false positive rate: (102, 2)."""
    rates = np.linspace(0, 1, 101)
    mean = np.mean([np.interp(rates, *each.roc.T) for each in curves], axis=0)
    return np.vstack([(0.0, 0.0), np.column_stack([rates, mean])])


def macro_precision_recall(curves: list[ClassCurves]) -> Points:
    """Return the mean precision of the classes where each recall is first reached: (101, 2).

    The curve is a step function, like the average precision, without interpolation.
    """
    recalls = np.linspace(0, 1, 101)
    by_class = [
        precision[np.searchsorted(recall, recalls - 1e-9)]  # 0.07 and 7 / 100 differ as floats
        for recall, precision in (each.precision_recall.T for each in curves)
    ]
    return np.column_stack([recalls, np.mean(by_class, axis=0)])
