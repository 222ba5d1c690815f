"""Draw the plots of a run with matplotlib, without a display: PNG files and SVG for report.html.

pyplot is not used: its import is slow. The colours are those of report.css; in the report they
become CSS variables, so that a drawing follows light and dark mode.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from sklearn.metrics import confusion_matrix

from pipeline.evaluation.learning_curve import LearningCurve
from pipeline.evaluation.metrics import Reliability
from pipeline.evaluation.result import Outcome
from pipeline.report.curves import History, smooth
from pipeline.report.fonts import fonts_for, warn_of_boxes
from pipeline.report.markup import head_name, name_text

DOTS_PER_INCH = 120  # of PNG files
POINTS = 72  # SVG units per inch
MAX_NAME = 22  # characters of a class name in a plot
MAX_NAMED_CLASSES = 40  # more names overlap
MAX_WRITTEN_CLASSES = 16  # more cells are too small for numbers
COLOURS = {
    "ink": "#1c1f23",
    "soft": "#5a6068",
    "rule": "#dfe1e4",
    "paper": "#fcfcfb",
    "s0": "#0072b2",
    "s1": "#bd5200",
    "s2": "#00845f",
    "s3": "#a8508a",
    "s4": "#946800",
    "s5": "#3d4b5c",
}
VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
STYLES = 6  # distinguishable colours, dashes and markers
DASHES = ("-", "--", ":", "-.", (0, (5, 2)), (0, (12, 3, 2, 3, 2, 3)))
MARKERS, GLYPHS = "os^Dv*", "●■▲◆▼★"  # the same shapes as characters
MARGINS: dict[str, dict[str, float]] = {
    "chart": {"left": 0.14, "bottom": 0.15, "right": 0.99, "top": 0.97},
    "matrix": {},
    "bare": {"left": 0, "bottom": 0, "right": 1, "top": 1},
}
SHARES = LinearSegmentedColormap.from_list("shares", [COLOURS["s0"] + "00", COLOURS["s0"] + "80"])
RC = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": COLOURS["ink"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 12,
    "legend.facecolor": COLOURS["paper"],
    "legend.fontsize": 11,
    "lines.linewidth": 2,
    "svg.fonttype": "none",
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # a class may be called $5
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "legend.edgecolor"), "none"),
    **dict.fromkeys(
        ("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), COLOURS["rule"]
    ),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), COLOURS["soft"]),
}

Shares = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def write_curves(outcome: Outcome, path: Path, *, smoothing: float) -> None:
    """Write a PNG file of loss and accuracy by epoch: dots, and their moving averages."""
    history = outcome.history or {}
    average = f", lines are moving averages (factor {smoothing:g})" if smoothing else ""
    title = f"{head_name(outcome.result)}: dots are epochs{average}"
    with rc_context(RC | _font_settings(title, path)):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            draw_epochs(axes, history, measure, smoothing)
            axes.set_title(measure.capitalize())
        _save(figure, path, title=title)


def write_confusion(outcome: Outcome, classes: Sequence[str], path: Path) -> None:
    """Write a PNG file of the confusion matrix."""
    counts = confusion_matrix(
        outcome.test.labels, outcome.test.predicted, labels=range(len(classes))
    )
    correct, total = int(np.trace(counts)), int(counts.sum())
    share = f"{100 * correct / total:.1f} % of {total:,} test images correct"
    share += f" ({outcome.excerpt})" if outcome.excerpt else ""
    title = f"{head_name(outcome.result)}\n{share}"
    names = map(short_name, classes if len(classes) <= MAX_NAMED_CLASSES else ())
    with rc_context(RC | _font_settings("".join([title, *names]), path)):
        figure = Figure(figsize=confusion_size(len(classes)), layout="constrained")
        draw_matrix(figure.subplots(), counts, classes)
        _save(figure, path, title=title)


def _font_settings(text: str, path: Path) -> dict[str, list[str]]:
    """Return the setting of fonts with the letters of a text; warn of letters without one."""
    warn_of_boxes(text, path.name)
    families = []
    for font in fonts_for(text):
        fontManager.addfont(font)
        families.append(FontProperties(fname=font).get_name())
    return {"font.family": families}


def _save(figure: Figure, path: Path, *, title: str) -> None:
    figure.suptitle(title, fontsize=12)
    _render(figure, path, format="png", dpi=DOTS_PER_INCH, facecolor="white")


def _render(figure: Figure, file: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        # letters that no font has: `fonts_for` warns of them in PNG files; browsers have more fonts
        warnings.filterwarnings("ignore", message=".*[Gg]lyph", category=UserWarning)
        figure.savefig(file, **options)


def inline_svg(
    draw: Callable[[Axes], None],
    *,
    label: str,
    size: tuple[float, float] = (5.8, 4.0),
    layout: Literal["chart", "matrix", "bare"] = "chart",
    overlay: str = "",
) -> Markup:
    """Return a drawing as an ``<svg>`` element without style attributes: the page forbids them.

    Parameters
    ----------
    label : description for screen readers.
    size : inches.
    layout : ``chart`` has fixed margins, which is fast; ``matrix`` has space for class names;
        ``bare`` has no axes, and its data are points from the top left. Also the CSS class.
    overlay : SVG elements on top, in points.
    """
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # differs between runs
    with rc_context(RC | {"svg.hashsalt": label}):  # ids are unique in a page
        figure = Figure(figsize=size, layout="constrained" if layout == "matrix" else None)
        axes = figure.subplots(gridspec_kw=MARGINS[layout])
        draw(axes)
        if layout == "bare":
            axes.axis("off")
            axes.set(xlim=(0, POINTS * size[0]), ylim=(POINTS * size[1], 0))
        _render(figure, file, format="svg", metadata=no_metadata)
    root = ElementTree.fromstring(file.getvalue())
    for element in [*root.iter()]:
        for child in element.findall("{*}style"):
            element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.items()}
        # CSS becomes presentation attributes, colours become variables; the page sets the font
        pairs = (each.split(": ", 1) for each in attributes.pop("style", "").split("; ") if each)
        styles = {name: VARIABLES.get(value, value) for name, value in pairs}
        styles.pop("font-family", None)
        element.attrib.clear()
        element.attrib |= attributes | styles
        if element.tag == "g":  # other elements refer to the other ids
            element.attrib.pop("id", None)
    for name in ("height", "version"):
        del root.attrib[name]
    root.attrib |= {
        "width": f"{POINTS * size[0]:g}",
        "class": layout,
        "role": "img",
        "aria-label": label,
    }
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
    return Markup(f"{text.removesuffix('</svg>')}{overlay}</svg>")


def draw_epochs(axes: Axes, history: History, measure: str, smoothing: float) -> None:
    """Draw one measure of training and validation by epoch."""
    for style, (name, prefix) in enumerate((("train", ""), ("validation", "val_"))):
        values, colour = history[prefix + measure], COLOURS[f"s{style}"]
        epochs = range(1, len(values) + 1)
        axes.plot(epochs, values, MARKERS[style], color=colour, alpha=0.5, markersize=4)
        axes.plot(epochs, smooth(values, smoothing), DASHES[style], color=colour, label=name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    if measure == "loss":
        axes.set_ylabel("cross-entropy (nats)")
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylabel("images classified correctly")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))


def confusion_size(class_count: int) -> tuple[float, float]:
    """Return width and height of a confusion matrix in inches."""
    side = min(12.0, 3.2 + 0.75 * min(class_count, MAX_WRITTEN_CLASSES))
    return side + 1.6, side + 0.4


def draw_matrix(axes: Axes, counts: Counts, classes: Sequence[str]) -> None:
    """Draw counts (K, K), coloured by the square root of their share: rare mistakes are visible."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(100 * shares, cmap=SHARES, norm=PowerNorm(0.5, 0, 100))
    axes.grid(visible=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(classes) > MAX_NAMED_CLASSES:
        axes.set(xlabel="predicted class (number)", ylabel="true class (number)")
    else:
        names, positions = [*map(short_name, classes)], range(len(classes))
        is_rotated = max(map(len, names)) > 8 or len(classes) > MAX_WRITTEN_CLASSES
        axes.set_xticks(positions, names)
        if is_rotated:
            axes.tick_params("x", rotation=45)
            for tick in axes.get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(positions, names)
    if len(classes) > MAX_WRITTEN_CLASSES:
        bar = axes.figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
        bar.outline.set_visible(False)
        return
    size = 13 if len(counts) <= 4 else 9
    for (row, column), count in np.ndenumerate(counts):
        share = f"{100 * shares[row, column]:.1f} %"
        texts = [(share, "bottom"), (f"{count:,}", "top")] if count else [("0", "center")]
        for text, align in texts:
            axes.text(column, row, text, ha="center", va=align, fontsize=size)


def draw_lines(
    axes: Axes,
    lines: Sequence[tuple[str, Shares]],
    *,
    titles: tuple[str, str],
    diagonal: str | None = None,
) -> None:
    """Draw named curves of shares (n, 2) and a dotted diagonal."""
    if diagonal:
        axes.plot([0, 1], [0, 1], ":", color=COLOURS["soft"], linewidth=1.3, label=diagonal)
    for style, (name, points) in enumerate(lines):
        axes.plot(*points.T, linestyle=DASHES[style], color=COLOURS[f"s{style}"], label=name)
    _set_percent_axes(axes, *titles)
    axes.legend(loc="lower right" if diagonal else "lower left")


def draw_reliability(axes: Axes, bins: Mapping[str, Reliability]) -> None:
    """Draw accuracy by confidence; the area of a marker grows with its number of rows."""
    axes.plot([0, 1], [0, 1], ":", color=COLOURS["soft"], linewidth=1.3, label="perfect")
    for style, (name, each) in enumerate(bins.items()):
        colour, filled = COLOURS[f"s{style}"], each.rows > 0
        x, y = each.confidence[filled], each.accuracy[filled]
        axes.plot(x, y, DASHES[style], marker=MARKERS[style], markersize=3, color=colour,
                  label=name)  # fmt: skip
        area = 8 + 200 * each.rows[filled] / each.rows.max()
        axes.scatter(x, y, area, marker=MARKERS[style], color=colour, alpha=0.35)
    _set_percent_axes(axes, "probability of the predicted class, %", "accuracy, %")
    axes.legend()


def _set_percent_axes(axes: Axes, x_title: str, y_title: str) -> None:
    axes.set(xlabel=x_title, ylabel=y_title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1, symbol=""))


def draw_learning_curve(axes: Axes, curve: LearningCurve) -> None:
    """Draw accuracy by number of training images."""
    samples = curve.accuracies.shape[1]
    axes.plot(np.repeat(curve.sizes, samples), curve.accuracies.ravel(), MARKERS[1], alpha=0.6,
              color=COLOURS["s1"], markersize=5, label="random sample")  # fmt: skip
    axes.plot(curve.sizes, curve.accuracies.mean(axis=1), color=COLOURS["s0"],
              label="mean of the samples")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes], rotation=45)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=""))
    axes.set(xlabel="training images (logarithmic)", ylabel="accuracy on held-out images, %")
    axes.legend(loc="lower right")


def draw_dots(axes: Axes, points: Shares, labels: Counts, *, is_styled: bool) -> None:
    """Draw points (n, 2), with a style per class if there are enough styles."""
    if not is_styled:
        axes.plot(*points.T, ".", color=COLOURS["soft"], alpha=0.55)
        return
    for label in np.unique(labels).tolist():
        of_class, colour = points[labels == label], COLOURS[f"s{label}"]
        axes.plot(*of_class.T, MARKERS[label], color=colour, alpha=0.55, markersize=6)


def short_name(name: str) -> str:
    """Return a class name of at most `MAX_NAME` characters."""
    text = name_text(name)
    text = text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"
    return f" {text}" if text.startswith("_") else text  # legends skip names with "_"
