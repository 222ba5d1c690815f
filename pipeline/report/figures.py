"""Sections that are charts: training, ranking, reliability, more images."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from pipeline.evaluation.metrics import log_loss_of, reliability
from pipeline.evaluation.result import Comparison, Outcome, Predictions, Result
from pipeline.evaluation.table import percent
from pipeline.heads.calibration import apply_temperature
from pipeline.report.curves import MEASURES, describe_curves
from pipeline.report.markup import (
    Markup,
    Section,
    element,
    figure,
    head_name,
    joined,
    name_of,
    name_text,
    number_cell,
    row_of,
    scrolling,
    side_by_side,
    title_cell,
)
from pipeline.report.plots import (
    STYLES,
    class_label,
    draw_accuracy,
    draw_learning_curve,
    draw_lines,
    draw_loss,
    draw_reliability,
    inline_svg,
)
from pipeline.report.ranking import class_curves, macro_precision_recall, macro_roc

ROC_TITLES = "false positives, % of the others", "true positives, % of the class"
WORST_CLASSES = 3  # are drawn beside the mean where not all classes are
LEAST_GAIN = 0.0005  # nats of log loss: less does not show in three digits


def curves_section(comparison: Comparison, smoothing: float) -> Section | None:
    """Loss and accuracy by epoch of the head shown, or else the best trained so."""
    for outcome in (comparison.shown, *comparison.outcomes):
        history = outcome.history
        if history and all(history.get(measure) for measure in MEASURES):
            break
    else:
        return None
    sentence = describe_curves(history)
    dots = "Dots are epochs"
    dots += f", lines their moving average (factor {smoothing:g})." if smoothing else "."
    if outcome.result.views:
        dots += " Those of train are over all views of the training images."
    body = joined(
        element("p", sentence, class_="finding"),
        side_by_side(
            _chart("Loss", sentence, lambda axes: draw_loss(axes, history, smoothing)),
            _chart("Accuracy", sentence, lambda axes: draw_accuracy(axes, history, smoothing)),
        ),
        element("p", name_of(head_name(outcome.result)), f". {dots}", class_="note"),
    )
    return Section("curves", "Training curves", body)


def _chart(
    title: str, says: str, draw: Callable[[Axes], None], *, caption: str | None = None
) -> Markup:
    """A drawing with its title, which is read aloud with what it says."""
    return figure(title, inline_svg(draw, label=f"{title}. {says}"), caption=caption)


def ranking_section(outcome: Outcome, classes: Sequence[str]) -> Section | None:
    """ROC and precision-recall curves, one class against the rest."""
    of_two = len(classes) == 2
    labels = [1] if of_two else range(len(classes))
    curves = [each for label in labels if (each := class_curves(outcome.test, label)) is not None]
    if not curves:
        return None
    shown = sorted(curves, key=lambda each: each.roc_auc)
    if len(curves) >= STYLES:  # and the mean has a style, too
        shown = shown[:WORST_CLASSES]
    auc = float(np.mean([each.roc_auc for each in curves]))
    precision = float(np.mean([each.average_precision for each in curves]))
    roc, recall = [], []
    if len(curves) > 1:
        roc.append((f"mean, area {auc:.3f}", macro_roc(curves)))
        recall.append((f"mean, area {precision:.3f}", macro_precision_recall(curves)))
    for each in shown:
        name, area = classes[each.label], each.average_precision
        roc.append((class_label(name, f"area {each.roc_auc:.3f}"), each.roc))
        recall.append((class_label(name, f"area {area:.3f}"), each.precision_recall))
    text = joined("Each class against the rest.")
    if of_two:
        text = joined("Of two classes it is enough to look for one: ", name_of(classes[1]), ".")
    elif len(shown) < len(curves):
        text = joined(text, f" Shown are the mean and the {len(shown)} classes told worst.")
    body = joined(
        element("p", text),
        side_by_side(
            _chart(
                "ROC",
                f"The area below the curve is {auc:.3f}, by chance it would be 0.5.",
                lambda axes: draw_lines(axes, roc, titles=ROC_TITLES, diagonal="chance"),
            ),
            _chart(
                "Precision and recall",
                f"The average precision is {precision:.3f}.",
                lambda axes: draw_lines(axes, recall, titles=("recall, %", "precision, %")),
            ),
        ),
    )
    return Section("roc", "ROC and precision-recall", body)


def reliability_section(outcome: Outcome) -> Section | None:
    """How true the probabilities are, before and after temperature scaling."""
    result, test = outcome.result, outcome.test
    if math.isnan(result.ece):
        return None
    bins = {"as they are": reliability(test.labels, test.scores)}
    figures = [("as they are", result.ece, result.log_loss)]
    text = (
        f"Probability and accuracy differ by {percent(result.ece)} points on average (expected "
        f"calibration error). "
    )
    validation = outcome.validation
    if not outcome.own_probabilities:
        text += "The head gives none of its own: they were fitted on validation."
    elif math.isnan(result.calibrated_ece):
        pass  # nothing to compare with
    elif validation.correct.all():
        text += (
            "Validation images are all classified right, so they cannot show whether the head is "
            "too sure of itself."
        )
    else:
        name = "each fit with its own temperature"
        if result.fits == 1:
            name = f"with temperature {result.temperature:.2f}"
            scaled = apply_temperature(test.scores, result.temperature, has_probabilities=True)
            bins[name] = reliability(test.labels, scaled)
        figures.append((name, result.calibrated_ece, result.calibrated_log_loss))
        text += _temperature_text(result, validation)
    rows = [
        row_of(
            element("th", name, scope="row"),
            number_cell(percent(error)),
            number_cell(f"{loss:.3f}"),
        )
        for name, error, loss in figures
    ]
    titles = [
        title_cell("probabilities", is_text=True),
        title_cell("calibration error, points"),
        title_cell("log loss"),
    ]
    diagram = _chart(
        "Reliability",
        f"Share classified right by predicted probability. {text}",
        lambda axes: draw_reliability(axes, bins),
        caption="A larger marker stands for more images. Below the dotted line the head is too "
        "sure of itself.",
    )
    table = figure("On test", scrolling("Calibration on test", titles, rows))
    body = joined(element("p", text, class_="finding"), side_by_side(diagram, table))
    return Section("reliability", "How far to trust its probabilities", body)


def _temperature_text(result: Result, validation: Predictions) -> str:
    """What temperature scaling shows: on validation, where it was fitted, and on test."""
    temperature = f"a temperature of {result.temperature:.2f}"
    scaled = apply_temperature(validation.scores, result.temperature, has_probabilities=True)
    gain = log_loss_of(validation.labels, validation.scores) - log_loss_of(
        validation.labels, scaled
    )
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


def learning_section(comparison: Comparison) -> Section | None:
    """Accuracy against the number of training images."""
    curve = comparison.findings.learning_curve if comparison.findings else None
    if curve is None:
        return None
    sentence = name_text(f"{curve.sentence}.")
    chart = _chart(
        "Accuracy by number of training images",
        sentence,
        lambda axes: draw_learning_curve(axes, curve),
        caption=f"Classifier: {name_text(curve.head)}.",
    )
    body = joined(element("p", sentence, class_="finding"), side_by_side(chart))
    return Section("learning", "Would more images help", body)
