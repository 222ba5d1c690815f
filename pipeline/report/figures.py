"""What the report's charts show: training, ranking, reliability, more images."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline.evaluation.audit import AuditResult
from pipeline.evaluation.metrics import log_loss_of, reliability_bins
from pipeline.evaluation.result import Comparison, HeadPredictions, Outcome, Result
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
from pipeline.report.ranking import class_curves, macro_precision_recall, macro_roc

ROC_TITLES = "false positives, % of the others", "true positives, % of the class"
WORST_CLASSES = 3  # are drawn beside the mean where not all classes are
LEAST_GAIN = 0.0005  # nats of log loss: less does not show in three digits


def curves(comparison: Comparison, smoothing: float) -> dict[str, Any] | None:
    """Loss and accuracy by epoch of the head shown, or else the best trained so."""
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


def ranking(test: HeadPredictions, classes: Sequence[str]) -> dict[str, Any] | None:
    """ROC and precision-recall curves, one class against the rest."""
    labels = [1] if len(classes) == 2 else range(len(classes))
    found = [each for label in labels if (each := class_curves(test, label)) is not None]
    if not found:
        return None
    shown = sorted(found, key=lambda each: each.roc_auc)
    if len(found) >= STYLES:  # and the mean has a style, too
        shown = shown[:WORST_CLASSES]
    auc = float(np.mean([each.roc_auc for each in found]))
    precision = float(np.mean([each.average_precision for each in found]))
    roc, recall = [], []
    if len(found) > 1:
        roc.append((f"mean, area {auc:.3f}", macro_roc(found)))
        recall.append((f"mean, area {precision:.3f}", macro_precision_recall(found)))
    for each in shown:
        name = short_name(classes[each.label])
        roc.append((f"{name}, area {each.roc_auc:.3f}", each.roc))
        recall.append((f"{name}, area {each.average_precision:.3f}", each.precision_recall))
    return {
        "class_count": len(classes),
        "positive": classes[1],
        "worst": len(shown) if len(shown) < len(found) else 0,
        "roc": inline_svg(
            lambda axes: draw_lines(axes, roc, titles=ROC_TITLES, diagonal="chance"),
            label=f"ROC. The area below the curve is {auc:.3f}, by chance it would be 0.5.",
        ),
        "recall": inline_svg(
            lambda axes: draw_lines(axes, recall, titles=("recall, %", "precision, %")),
            label=f"Precision and recall. The average precision is {precision:.3f}.",
        ),
    }


def reliability(outcome: Outcome) -> dict[str, Any] | None:
    result, test = outcome.result, outcome.test
    if math.isnan(result.ece):
        return None
    bins = {"as they are": reliability_bins(test.labels, test.scores)}
    figures = [("as they are", result.ece, result.log_loss)]
    text = (
        f"Probability and accuracy differ by {percent(result.ece)} points on average (expected "
        f"calibration error). "
    )
    if not outcome.native_probabilities:
        text += "The head gives none of its own: they were fitted on validation."
    elif math.isnan(result.calibrated_ece):
        pass  # nothing to compare with
    elif outcome.validation.correct.all():
        text += (
            "Validation images are all classified right, so they cannot show whether the head is "
            "too sure of itself."
        )
    else:
        name = "each fit with its own temperature"
        if result.fits == 1:
            name = f"with temperature {result.temperature:.2f}"
            scaled = apply_temperature(test.scores, result.temperature, has_probabilities=True)
            bins[name] = reliability_bins(test.labels, scaled)
        figures.append((name, result.calibrated_ece, result.calibrated_log_loss))
        text += _temperature_text(result, outcome.validation)
    drawing = inline_svg(
        lambda axes: draw_reliability(axes, bins),
        label=f"Reliability. Share classified right by predicted probability. {text}",
    )
    return {"text": text, "drawing": drawing, "figures": figures}


def _temperature_text(result: Result, validation: HeadPredictions) -> str:
    """What temperature scaling shows: on validation, where it was fitted, and on test."""
    temperature = f"a temperature of {result.temperature:.2f}"
    scaled = apply_temperature(validation.scores, result.temperature, has_probabilities=True)
    before, after = (log_loss_of(validation.labels, each) for each in (validation.scores, scaled))
    gain = before - after
    if result.fits > 1:  # some may be too sure and others not enough: their mean says nothing
        text = (
            f"Each of the {result.fits} fits has a temperature of its own, fitted on validation: "
            f"with them "
        )
    elif gain < LEAST_GAIN:
        text = (
            f"On validation {temperature} brings no lower log loss, so the head is neither "
            f"clearly too sure of itself nor clearly not sure enough: with it "
        )
    else:
        mood = "too sure of itself" if result.temperature > 1 else "not sure enough"
        text = f"On validation the head is {mood}: with {temperature}, fitted there, "
    now, then = f"{result.calibrated_log_loss:.3f}", f"{result.log_loss:.3f}"
    if now == then:
        change = f"stays at {now}"
    else:
        way = "falls" if result.calibrated_log_loss < result.log_loss else "rises"
        change = f"{way} from {then} to {now}"
    return (
        f"{text}the difference on test is {percent(result.calibrated_ece)} points, and the log "
        f"loss {change}."
    )


def learning(findings: AuditResult) -> dict[str, Any] | None:
    curve = findings.learning_curve
    if curve is None:
        return None
    sentence = name_text(f"{curve.sentence}.")
    drawing = inline_svg(
        lambda axes: draw_learning_curve(axes, curve),
        label=f"Accuracy by number of training images. {sentence}",
    )
    return {"sentence": sentence, "drawing": drawing, "head": curve.head}
