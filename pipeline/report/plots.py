"""The plots of a run, drawn without a display and without pyplot, which is slow to import."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.evaluation.metrics import confusion_matrix
from pipeline.evaluation.result import Outcome
from pipeline.report.curves import smooth
from pipeline.report.layout import head_name
from pipeline.report.markup import name_text

DOTS_PER_INCH = 120
LONGEST_NAME = 22  # characters of a class name beside the matrix
MOST_NAMED_CLASSES = 40  # more names would overlap
MOST_WRITTEN_CLASSES = 16  # more cells are too small to write in
TRAIN_COLOUR, VALIDATION_COLOUR = "#1f77b4", "#d95f02"  # told apart by colour-blind readers, too


def draw_curves(outcome: Outcome, path: Path, *, smoothing: float) -> None:
    """Loss and accuracy by epoch of a head that is trained so: dots, with their moving average."""
    history = outcome.history or {}
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axes, measure in ((loss, "loss"), (accuracy, "accuracy")):
        _draw_measure(axes, history[measure], "train", TRAIN_COLOUR, smoothing)
        _draw_measure(axes, history[f"val_{measure}"], "validation", VALIDATION_COLOUR, smoothing)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    loss.set(title="Loss", ylabel="cross-entropy (nats)")
    loss.set_ylim(bottom=0)
    accuracy.set(title="Accuracy", ylabel="images classified correctly")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    average = f", lines their moving average (factor {smoothing:g})" if smoothing else ""
    _title(figure, f"{head_name(outcome.result)}: dots are epochs{average}")
    _save(figure, path)


def _draw_measure(
    axes: Axes, values: Sequence[float], label: str, colour: str, smoothing: float
) -> None:
    epochs = range(1, len(values) + 1)
    axes.plot(epochs, values, "o", color=colour, alpha=0.4, markersize=4)
    axes.plot(epochs, smooth(values, smoothing), color=colour, linewidth=2, label=label)


def draw_confusion(outcome: Outcome, classes: Sequence[str], path: Path) -> None:
    """How often each true class was taken for which: share of the true class, and count."""
    if outcome.test is None:
        raise ValueError(f"{outcome.result.head} has no test predictions to draw")
    class_count = len(classes)
    counts = confusion_matrix(outcome.test.labels, outcome.test.predicted, class_count)
    side = min(12.0, 3.2 + 0.75 * min(class_count, MOST_WRITTEN_CLASSES))
    figure = Figure(figsize=(side + 1.6, side + 0.4), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    _name_classes(axes, classes)
    if class_count <= MOST_WRITTEN_CLASSES:
        _write_cells(axes, counts, shares)
    correct, total = int(np.trace(counts)), int(counts.sum())
    share = f"{100 * correct / total:.1f} % of {total:,} test images correct"
    _title(figure, f"{head_name(outcome.result)}\n{share}")
    _save(figure, path)


def _name_classes(axes: Axes, classes: Sequence[str]) -> None:
    if len(classes) > MOST_NAMED_CLASSES:
        axes.set(xlabel="predicted class (number)", ylabel="true class (number)")
        return
    names = [_shorten(name_text(name)) for name in classes]
    places = range(len(classes))
    steep = max(map(len, names)) > 8 or len(classes) > MOST_WRITTEN_CLASSES
    axes.set_xticks(places, names, rotation=45 if steep else 0, ha="right" if steep else "center")
    axes.set_yticks(places, names)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a class may be called $5


def _write_cells(
    axes: Axes, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> None:
    size = 13 if len(counts) <= 4 else 8
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{100 * share:.1f} %\n{count:,}" if count else "0",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if share > 0.5 else "black",
        )


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=12).set_parse_math(False)


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes; results.json has it in full
        warnings.filterwarnings("ignore", message=".*[Gg]lyph", category=UserWarning)
        figure.savefig(path, format="png", dpi=DOTS_PER_INCH)
