"""Data of the report's charts: training curves, ROC, calibration, learning curve."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline.evaluation.audit import AuditResult
from pipeline.evaluation.metrics import (
    expected_calibration_error,
    log_loss_of,
    reliability_bins,
)
from pipeline.evaluation.result import Comparison, Outcome, Result
from pipeline.evaluation.table import percent
from pipeline.heads.calibration import apply_temperature
from pipeline.report.curves import MEASURES, describe_curves
from pipeline.report.markup import head_name, name_text
from pipeline.report.plots import (
    STYLES,
    draw_epochs,
    draw_learning_curve,
    draw_lines,
    draw_reliability,
    inline_svg,
    short_name,
)
from pipeline.report.roc import class_curves, macro_precision_recall, macro_roc

ROC_TITLES = "false positive rate, %", "true positive rate, %"
WORST_CLASSES = 3  # plotted with the mean if there are too many classes for all
MIN_GAIN = 0.0005  # nats of log loss; three decimals show no smaller gain


def curves(comparison: Comparison, smoothing: float) -> dict[str, Any] | None:
    """Plot loss and accuracy by epoch of the head shown, or of the best head that has epochs."""
    for outcome in (comparison.shown, *comparison.outcomes):
        history = outcome.history
        if history and all(history.get(measure) for measure in MEASURES):
            break
    else:
        return None
    sentence = describe_curves(history)
    return {
        "sentence": sentence,
        **{
            measure: inline_svg(
                partial(draw_epochs, history=history, measure=measure, smoothing=smoothing),
                label=f"{measure.capitalize()}. {sentence}",
            )
            for measure in ("loss", "accuracy")
        },
        "head": head_name(outcome.result),
        "smoothing": smoothing,
        "of_views": outcome.result.views > 0,
    }


def roc(outcome: Outcome, classes: Sequence[str]) -> dict[str, Any] | None:
    """Plot ROC and precision-recall curves, each class against the rest."""
    test = outcome.test
    labels = [1] if len(classes) == 2 else range(len(classes))
    by_class = [each for label in labels if (each := class_curves(test, label)) is not None]
    if not by_class:
        return None
    shown = sorted(by_class, key=lambda each: each.roc_auc)
    if len(by_class) >= STYLES:  # the mean needs a style, too
        shown = shown[:WORST_CLASSES]
    auc = float(np.mean([each.roc_auc for each in by_class]))
    precision = float(np.mean([each.average_precision for each in by_class]))
    roc_lines, recall_lines = [], []
    if len(by_class) > 1:
        roc_lines.append((f"mean, area {auc:.3f}", macro_roc(by_class)))
        recall_lines.append((f"mean, area {precision:.3f}", macro_precision_recall(by_class)))
    for each in shown:
        name = short_name(classes[each.label])
        roc_lines.append((f"{name}, area {each.roc_auc:.3f}", each.roc))
        recall_lines.append((f"{name}, area {each.average_precision:.3f}", each.precision_recall))
    return {
        "class_count": len(classes),
        "positive": classes[1],
        "fits": outcome.result.fits,
        "worst": len(shown) if len(shown) < len(by_class) else 0,
        "roc": inline_svg(
            lambda axes: draw_lines(axes, roc_lines, titles=ROC_TITLES, diagonal="chance"),
            label=f"ROC. The area under the curve is {auc:.3f}; by chance it would be 0.5.",
        ),
        "recall": inline_svg(
            lambda axes: draw_lines(axes, recall_lines, titles=("recall, %", "precision, %")),
            label=f"Precision and recall. The average precision is {precision:.3f}.",
        ),
    }


def reliability(outcome: Outcome) -> dict[str, Any] | None:
    """Plot accuracy by confidence, also after temperature scaling; None without probabilities.

    A temperature that does not improve calibration on validation and test is not offered.
    """
    result, test = outcome.result, outcome.test
    if math.isnan(result.ece):
        return None
    bins = {"uncalibrated": reliability_bins(test.labels, test.scores)}
    figures = [("uncalibrated", result.ece, result.log_loss)]
    text = (
        f"The expected calibration error (ECE), the mean difference between probability and "
        f"accuracy, is {percent(result.ece)} points. "
    )
    if not outcome.native_probabilities:
        text += "The head computes scores; its probabilities are fitted on validation."
    elif math.isnan(result.calibrated_ece):
        pass  # without a temperature to compare
    elif outcome.validation.correct.all():
        text += (
            "All validation images are classified correctly, so they cannot show whether the head "
            "is overconfident."
        )
    elif not _temperature_helps(outcome):
        text += (
            "A temperature, fitted on validation, is not offered: it does not lower the log loss, "
            "or raises the calibration error, on validation or test."
        )
    else:
        name = "each fit with its temperature"
        if result.fits == 1:
            name = f"with temperature {result.temperature:.2f}"
            scaled = apply_temperature(test.scores, result.temperature, has_probabilities=True)
            bins[name] = reliability_bins(test.labels, scaled)
        figures.append((name, result.calibrated_ece, result.calibrated_log_loss))
        text += _describe_temperature(result)
    drawing = inline_svg(
        lambda axes: draw_reliability(axes, bins),
        label=f"Reliability. Share classified correctly by predicted probability. {text}",
    )
    return {"text": text, "drawing": drawing, "figures": figures}


def _temperature_helps(outcome: Outcome) -> bool:
    """Return whether it lowers the log loss and does not raise the error, on validation and test.

    Several fits have several temperatures: only test, where the metrics are means, counts.
    """
    result, labels, scores = outcome.result, outcome.validation.labels, outcome.validation.scores
    gains = [result.log_loss - result.calibrated_log_loss]
    rises = [result.calibrated_ece - result.ece]
    if result.fits == 1:
        scaled = apply_temperature(scores, result.temperature, has_probabilities=True)
        gains.append(log_loss_of(labels, scores) - log_loss_of(labels, scaled))
        rises.append(
            expected_calibration_error(labels, scaled) - expected_calibration_error(labels, scores)
        )
    return min(gains) >= MIN_GAIN and max(rises) <= 0


def _describe_temperature(result: Result) -> str:
    """Describe the gain of temperature scaling on test."""
    if result.fits > 1:  # the mean of over- and underconfident fits means nothing
        text = (
            f"Each of the {result.fits} fits has its own temperature, fitted on validation: with "
            f"them"
        )
    else:
        verdict = "overconfident" if result.temperature > 1 else "underconfident"
        text = (
            f"On validation the head is {verdict}: with a temperature of {result.temperature:.2f}, "
            f"fitted there,"
        )
    return (
        f"{text} the calibration error on test is {percent(result.calibrated_ece)} points, and the "
        f"log loss falls from {result.log_loss:.3f} to {result.calibrated_log_loss:.3f}."
    )


def learning(comparison: Comparison, findings: AuditResult) -> dict[str, Any] | None:
    """Plot accuracy by number of training images."""
    curve = findings.learning_curve
    if curve is None:
        return None
    sentence = name_text(f"{curve.sentence}.")
    drawing = inline_svg(
        lambda axes: draw_learning_curve(axes, curve),
        label=f"Accuracy by number of training images. {sentence}",
    )
    return {
        "sentence": sentence,
        "drawing": drawing,
        "head": curve.head,
        "of_fold": bool(comparison.shown.folds),
    }
