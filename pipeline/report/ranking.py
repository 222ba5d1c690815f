"""How well scores rank: ROC and precision-recall curves of one class against the rest."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.result import Predictions

COLUMNS = 180  # of a drawing, each two of its units wide: what is finer does not show

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClassCurves:
    """One class against the rest.

    Attributes
    ----------
    roc : (n, 2) false and true positive rate, of every threshold.
    precision_recall : (m, 2) recall and precision, up to the first threshold that finds all.
    roc_auc, average_precision : the areas.
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
    all_found = int(found.searchsorted(positives)) + 1
    return ClassCurves(
        label=label,
        roc=roc,
        precision_recall=np.vstack(
            [(0.0, precision[0]), np.column_stack([recall, precision])[:all_found]]
        ),
        roc_auc=float(np.trapezoid(roc[:, 1], roc[:, 0])),
        average_precision=float(np.sum(np.diff(recall, prepend=0) * precision)),
    )


def macro_roc(curves: list[ClassCurves]) -> Points:
    """Mean over the classes of the true positive rate at each false positive rate: (102, 2)."""
    rates = np.linspace(0, 1, 101)
    mean = np.mean([np.interp(rates, *each.roc.T) for each in curves], axis=0)
    return np.vstack([(0.0, 0.0), np.column_stack([rates, mean])])


def macro_precision_recall(curves: list[ClassCurves]) -> Points:
    """Mean over the classes of the precision at which each recall is first reached: (101, 2).

    In steps, as the average precision counts them, not from point to point.
    """
    recalls = np.linspace(0, 1, 101)
    mean = np.mean([_precision_at(recalls, each.precision_recall) for each in curves], axis=0)
    return np.column_stack([recalls, mean])


def _precision_at(recalls: Points, curve: Points) -> Points:
    recall, precision = curve.T
    return np.asarray(precision[np.searchsorted(recall, recalls - 1e-9)])  # 0.07 is not 7 / 100


def outline(points: Points) -> Points:
    """The points (n, 2) of a curve that show: its corners; of very many, two in each column."""
    steps = np.diff(points, axis=0)
    turns = steps[:-1, 0] * steps[1:, 1] != steps[1:, 0] * steps[:-1, 1]
    corners = points[np.concatenate([[True], turns, [True]])]
    if len(corners) <= 2 * COLUMNS:
        return np.asarray(corners)
    column = (corners[:, 0] * COLUMNS).astype(np.int64)
    changes = column[1:] != column[:-1]
    ends = np.append(True, changes) | np.append(changes, True)  # the first and last of a column
    return np.asarray(corners[ends])
