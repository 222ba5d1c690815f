"""Sections that are charts: training, ranking, reliability, more images."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.metrics import log_loss_of, reliability
from pipeline.evaluation.result import Comparison, Outcome, Predictions, Result
from pipeline.evaluation.table import percent
from pipeline.heads.calibration import apply_temperature
from pipeline.report.charts import STYLES, Series, log_axis, number_axis, percent_axis
from pipeline.report.curves import MEASURES, History, describe_curves, smooth
from pipeline.report.layout import (
    Section,
    chart_figure,
    head_name,
    number_cell,
    row_of,
    scrolling,
    side_by_side,
    title_cell,
)
from pipeline.report.markup import Markup, element, joined, name_of, name_text
from pipeline.report.ranking import (
    ClassCurves,
    class_curves,
    macro_precision_recall,
    macro_roc,
    outline,
)

WORST_CLASSES = 3  # are drawn beside the mean where not all classes are
LEAST_GAIN = 0.0005  # nats of log loss: less does not show in three digits
DIAGONAL = np.array([[0.0, 0.0], [1.0, 1.0]])


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
            _loss_chart(history, smoothing, sentence), _accuracy_chart(history, smoothing, sentence)
        ),
        element("p", name_of(head_name(outcome.result)), f". {dots}", class_="note"),
    )
    return Section("curves", "Training curves", body)


def _loss_chart(history: History, smoothing: float, sentence: str) -> Markup:
    series = _by_epoch(history["loss"], history["val_loss"], smoothing)
    y = number_axis("cross-entropy", _heights(series), from_zero=True)
    x = number_axis("epoch", np.array([0.0, len(history["loss"])]))
    return chart_figure("Loss", series, x, y, label=f"Loss by epoch. {sentence}")


def _accuracy_chart(history: History, smoothing: float, sentence: str) -> Markup:
    series = _by_epoch(history["accuracy"], history["val_accuracy"], smoothing)
    y = percent_axis("classified right, %", _heights(series))
    x = number_axis("epoch", np.array([0.0, len(history["accuracy"])]))
    return chart_figure("Accuracy", series, x, y, label=f"Accuracy by epoch. {sentence}")


def _by_epoch(
    train: Sequence[float], validation: Sequence[float], smoothing: float
) -> list[Series]:
    """Dots and a line for each of the two."""
    series = []
    for style, (name, values) in enumerate((("train", train), ("validation", validation))):
        epochs = np.arange(1.0, len(values) + 1)
        dots = np.column_stack([epochs, values])
        line = np.column_stack([epochs, smooth(values, smoothing)])
        series.append(Series(points=dots, style=style, has_line=False, has_dots=True))
        series.append(Series(name=name, points=line, style=style))
    return series


def _heights(series: Sequence[Series]) -> npt.NDArray[np.float64]:
    return np.concatenate([each.points[:, 1] for each in series])


def ranking_section(outcome: Outcome, classes: Sequence[str]) -> Section | None:
    """ROC and precision-recall curves, one class against the rest."""
    if outcome.test is None:
        return None
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
    roc = [Series(name="chance", points=DIAGONAL, style="reference")]
    recall = []
    if len(curves) > 1:
        roc.append(Series(name=f"mean, area {auc:.3f}", points=macro_roc(curves), style=0))
        points = macro_precision_recall(curves)
        recall.append(Series(name=f"mean, area {precision:.3f}", points=points, style=0))
    for style, each in enumerate(shown, start=len(recall)):
        name = _named(each, classes, each.roc_auc)
        roc.append(Series(name=name, points=outline(each.roc), style=style))
        name = _named(each, classes, each.average_precision)
        recall.append(Series(name=name, points=outline(each.precision_recall), style=style))
    text = joined("Each class against the rest.")
    if of_two:
        text = joined("Of two classes it is enough to look for one: ", name_of(classes[1]), ".")
    elif len(shown) < len(curves):
        text = joined(text, f" Shown are the mean and the {len(shown)} classes told worst.")
    body = joined(
        element("p", text),
        side_by_side(
            chart_figure(
                "ROC",
                roc,
                percent_axis("false positives, % of the others"),
                percent_axis("true positives, % of the class"),
                label=f"ROC curve; the area below it is {auc:.3f}, by chance it would be 0.5.",
            ),
            chart_figure(
                "Precision and recall",
                recall,
                percent_axis("recall, %"),
                percent_axis("precision, %"),
                label=f"Precision against recall; the average precision is {precision:.3f}.",
            ),
        ),
    )
    return Section("roc", "ROC and precision-recall", body)


def _named(curves: ClassCurves, classes: Sequence[str], area: float) -> Markup:
    return joined(name_of(classes[curves.label]), f", area {area:.3f}")


def reliability_section(outcome: Outcome) -> Section | None:
    """How true the probabilities are, before and after temperature scaling."""
    result, test = outcome.result, outcome.test
    if test is None or not outcome.has_probabilities or math.isnan(result.ece):
        return None
    series = [
        Series(name="perfect", points=DIAGONAL, style="reference"),
        _reliability_series("as they are", test.labels, test.scores, style=0),
    ]
    figures = [("as they are", result.ece, result.log_loss)]
    text = (
        f"Probability and accuracy differ by {percent(result.ece)} points on average (expected "
        f"calibration error). "
    )
    validation = outcome.validation
    if not outcome.own_probabilities:
        text += "The head gives none of its own: they were fitted on validation."
    elif validation is None or math.isnan(result.calibrated_ece):
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
            series.append(_reliability_series(name, test.labels, scaled, style=1))
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
    diagram = chart_figure(
        "Reliability",
        series,
        percent_axis("probability of the predicted class, %"),
        percent_axis("classified right, %"),
        label=f"Share classified right by predicted probability. {text}",
        caption="A larger marker stands for more images. Below the dotted line the head is too "
        "sure of itself.",
    )
    table = element(
        "figure", element("h3", "On test"), scrolling("Calibration on test", titles, rows)
    )
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


def _reliability_series(
    name: str,
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    *,
    style: int,
) -> Series:
    bins = reliability(labels, probabilities)
    filled = bins.rows > 0
    return Series(
        name=name,
        points=np.column_stack([bins.confidence, bins.accuracy])[filled],
        style=style,
        has_dots=True,
        counts=bins.rows[filled],
    )


def learning_section(comparison: Comparison) -> Section | None:
    """Accuracy against the number of training images."""
    curve = comparison.findings.learning_curve if comparison.findings else None
    if curve is None:
        return None
    sizes = curve.sizes.astype(np.float64)
    every_size = np.repeat(sizes, curve.accuracies.shape[1])
    draws = np.column_stack([every_size, curve.accuracies.ravel()])
    means = np.column_stack([sizes, curve.accuracies.mean(axis=1)])
    sentence = name_text(f"{curve.sentence}.")
    chart = chart_figure(
        "Accuracy by number of training images",
        [
            Series(name="a random draw", points=draws, style=1, has_line=False, has_dots=True),
            Series(name="mean of the draws", points=means, style=0),
        ],
        log_axis("training images (logarithmic)", sizes),
        percent_axis("held-out images classified right, %", curve.accuracies),
        label=f"Learning curve. {sentence}",
        caption=f"Classifier: {name_text(curve.head)}.",
    )
    body = joined(element("p", sentence, class_="finding"), side_by_side(chart))
    return Section("learning", "Would more images help", body)
