"""Data of the report's sections on sets without classes: precision by label, predicted numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from sklearn.metrics import precision_recall_fscore_support

from pipeline.evaluation.audit import AuditResult
from pipeline.evaluation.result import Comparison, HeadPredictions, Outcome
from pipeline.evaluation.tasks import TASKS
from pipeline.heads.config import THRESHOLD
from pipeline.report.galleries import MAX_MISTAKES, read_images
from pipeline.report.markup import name_text
from pipeline.report.plots import COLOURS, MARKERS, inline_svg, short_name
from pipeline.spec import MULTILABEL
from pipeline.text import counted

MAX_BARS = 30  # labels in the chart; the table has all
MAX_DOTS = 3000  # images in a chart of numbers

Numbers = npt.NDArray[np.float64]


def precision(outcome: Outcome, classes: Sequence[str]) -> dict[str, Any]:
    """Plot the average precision of each label; tabulate precision, recall and F1 above 0.5."""
    test, task = outcome.test, TASKS[MULTILABEL]
    average = np.array(
        [
            task.value(test.labels[:, [label]], test.scores[:, [label]])
            for label in range(len(classes))
        ]
    )
    scores = precision_recall_fscore_support(
        test.labels, test.scores > THRESHOLD, zero_division=np.nan
    )
    order = np.argsort(np.nan_to_num(average, nan=np.inf), kind="stable")
    shown = order[:MAX_BARS][::-1]
    return {
        "count": len(test),
        "excerpt": outcome.excerpt,
        "lowest": len(shown) if len(shown) < len(classes) else 0,
        "drawing": inline_svg(
            lambda axes: _draw_bars(
                axes,
                [short_name(classes[label]) for label in shown],
                np.nan_to_num(average[shown]),
                test.labels.mean(axis=0)[shown],
            ),
            label=f"Average precision of {counted(len(shown), 'label')}; a table has the numbers.",
            size=(5.8, 1.2 + 0.3 * len(shown)),
            layout="matrix",
        ),
        "rows": [
            (classes[label], average[label], *(column[label] for column in scores))
            for label in order
        ],
    }


def _draw_bars(axes: Axes, names: Sequence[str], values: Numbers, guesses: Numbers) -> None:
    places = range(len(names))
    axes.barh(places, 100 * values, height=0.6, color=COLOURS["s0"], alpha=0.6)
    axes.plot(100 * guesses, places, "|", color=COLOURS["ink"], markersize=12, label="share")
    axes.set_yticks(places, names)
    axes.set(xlim=(0, 100), xlabel="average precision, %")
    axes.grid(visible=False, axis="y")


def predicted(outcome: Outcome, name: str) -> dict[str, Any]:
    """Plot predicted against true numbers, and their differences."""
    test = outcome.test
    order = np.linspace(0, len(test) - 1, min(len(test), MAX_DOTS)).round().astype(np.int64)
    truth, numbers = test.labels[order], test.scores[order, 0]
    within = np.abs(test.scores[:, 0] - test.labels)
    half, most = np.quantile(within, (0.5, 0.9))
    sentence = name_text(
        f"Half of {counted(len(test), 'test image')} are predicted within {half:.4g} of their "
        f"{name}, 90 % within {most:.4g}."
    )
    return {
        "sentence": sentence,
        "excerpt": outcome.excerpt,
        "drawn": len(order) if len(order) < len(test) else 0,
        "predicted": inline_svg(
            lambda axes: _draw_dots(axes, truth, numbers, ("true", "predicted"), diagonal=True),
            label=f"Predicted against true numbers. {sentence}",
        ),
        "residuals": inline_svg(
            lambda axes: _draw_dots(
                axes, numbers, numbers - truth, ("predicted", "predicted - true"), diagonal=False
            ),
            label=f"Differences of predicted and true numbers. {sentence}",
        ),
    }


def _draw_dots(
    axes: Axes, x: Numbers, y: Numbers, titles: tuple[str, str], *, diagonal: bool
) -> None:
    low, high = float(x.min()), float(x.max())
    ends = (low, high) if diagonal else (0, 0)
    axes.plot((low, high), ends, ":", color=COLOURS["soft"], linewidth=1.3, label="exact")
    axes.plot(x, y, MARKERS[0], color=COLOURS["s0"], alpha=0.5, markersize=4)
    axes.set(xlabel=titles[0], ylabel=titles[1])
    axes.legend()


def worst(comparison: Comparison, findings: AuditResult) -> dict[str, Any]:
    """Show the test images with the largest errors, the worst first."""
    test, classes = comparison.shown.test, comparison.classes
    errors = _errors(test)
    shown = np.argsort(-errors, kind="stable")[:MAX_MISTAKES]
    images = read_images(findings.table, test.rows[shown].tolist())
    for image, index in zip(images, shown.tolist(), strict=True):
        scores, truth = test.scores[index], np.atleast_1d(test.labels[index])
        if test.labels.ndim == 1:
            image["facts"] = [("predicted", f"{scores[0]:.6g}"), ("true", f"{truth[0]:.6g}")]
            continue
        found = [
            f"{classes[label]} {100 * scores[label]:.0f} %"
            for label in np.argsort(-scores, kind="stable")
            if scores[label] > THRESHOLD
        ]
        missed = [
            f"{classes[label]} {100 * scores[label]:.0f} %"
            for label in np.flatnonzero((truth == 1) & (scores <= THRESHOLD))
        ]
        true = [classes[label] for label in np.flatnonzero(truth)]
        named = (("predicted", found), ("labelled", true), ("missed", missed))
        image["facts"] = [(what, ", ".join(names) or "none") for what, names in named]
    return {"count": len(test), "images": images, "is_number": test.labels.ndim == 1}


def _errors(test: HeadPredictions) -> Numbers:
    """Return the error of each image (n,): the distance, or the mean log loss of its labels."""
    if test.labels.ndim == 1:
        return np.asarray(np.abs(test.scores[:, 0] - test.labels))
    right = np.where(test.labels == 1, test.scores, 1 - test.scores)
    return np.asarray(-np.log(np.maximum(right, 1e-6)).mean(axis=1))
