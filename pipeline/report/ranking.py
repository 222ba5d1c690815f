"""How well scores rank: ROC and precision-recall curves of one class against the rest."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.result import Predictions

MOST_POINTS = 160  # of a curve: more do not show

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClassCurves:
    """One class against the rest.

    Attributes
    ----------
    roc : (n, 2) false and true positive rate.
    precision_recall : (m, 2) recall and precision.
    roc_auc, average_precision : the areas, from all points.
    """

    label: int
    roc: Points
    precision_recall: Points
    roc_auc: float
    average_precision: float


def class_curves(test: Predictions, label: int) -> ClassCurves | None:
    """Curves of one class's scores; None where all or none of the images are of it."""
    truth = test.labels == label
    positives = int(truth.sum())
    if positives in (0, len(truth)):
        return None
    scores = test.scores[:, label]
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of equal scores
    found = truth[order].cumsum()[ends]
    recall = found / positives
    precision = found / (ends + 1)
    roc = np.column_stack([(ends + 1 - found) / (len(truth) - positives), recall])
    roc = np.vstack([(0.0, 0.0), roc])
    return ClassCurves(
        label=label,
        roc=_thinned(roc),
        precision_recall=_thinned(
            np.column_stack([np.append(0.0, recall), np.append(precision[0], precision)])
        ),
        roc_auc=float(np.trapezoid(roc[:, 1], roc[:, 0])),
        average_precision=float(np.sum(np.diff(recall, prepend=0) * precision)),
    )


def macro_roc(curves: list[ClassCurves]) -> Points:
    """Mean over the classes of the true positive rate at each false positive rate: (101, 2)."""
    rates = np.linspace(0, 1, 101)
    mean = np.mean([np.interp(rates, *each.roc.T) for each in curves], axis=0)
    return np.column_stack([rates, mean])


def macro_precision_recall(curves: list[ClassCurves]) -> Points:
    """Mean over the classes of precision at each recall: (101, 2)."""
    recalls = np.linspace(0, 1, 101)
    mean = np.mean([np.interp(recalls, *each.precision_recall.T) for each in curves], axis=0)
    return np.column_stack([recalls, mean])


def _thinned(points: Points) -> Points:
    """At most `MOST_POINTS` of a curve's points, its ends among them."""
    if len(points) <= MOST_POINTS:
        return points
    return points[np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(np.int64)]
