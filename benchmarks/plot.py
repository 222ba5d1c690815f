"""Plot the results of `benchmarks.speed`: bars with quartile whiskers, without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOTS_PER_INCH = 120
OURS, OTHERS, LIMIT = "#1f77b4", "#9a9a9a", "#d95f02"  # distinguishable for colour-blind readers
OUR_SIDES = ("extract", "dense head")

Document = Mapping[str, Any]


def draw_benchmark(document: Document, path: Path) -> None:
    """Write a PNG: images/s of stage one and seconds of stage two, by side."""
    panels = [part for part in ("stage_one", "stage_two") if part in document]
    figure = Figure(figsize=(10, 3.9 * len(panels)), layout="constrained")
    for part, axes in zip(panels, figure.subplots(len(panels), squeeze=False)[:, 0], strict=True):
        (_draw_stage_one if part == "stage_one" else _draw_stage_two)(axes, document[part])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    rounds, cores = document["run"]["rounds"], document["run"]["cores"]
    figure.suptitle(f"Medians and quartiles of {rounds} alternating rounds on {cores} cores")
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH)


def _draw_stage_one(axes: Axes, stage: Document) -> None:
    sides = [side for side in stage["sides"] if side["share_of_matrix_product"]]
    _bars(axes, sides, "images_per_second", "against_book", digits=1)
    ceiling = stage["ceiling"]["images_per_second"]["median"]
    axes.axvline(ceiling, color=LIMIT, linestyle="--", label="ceiling: 1/(1/engine + 1/decoding)")
    axes.set_xlim(right=max(1.2 * ceiling, axes.get_xlim()[1]))
    axes.legend(loc="upper right")
    axes.set_xlabel("images/s")
    axes.set_title(f"{stage['base']} at {stage['image_size']} pixels")


def _draw_stage_two(axes: Axes, stage: Document) -> None:
    _bars(axes, stage["sides"], "seconds_per_epoch", "times_faster", digits=2)
    axes.set_xlabel("seconds per epoch")
    axes.set_title(f"Dense head on {stage['rows']:,} × {stage['features']:,} features")


def _bars(axes: Axes, sides: Sequence[Document], value: str, ratio: str, *, digits: int) -> None:
    """Draw the value of each side, labelled with its ratio to the first side."""
    spreads = [side[value] for side in sides]
    medians = [spread["median"] for spread in spreads]
    whiskers = [
        [spread["median"] - spread["low"] for spread in spreads],
        [spread["high"] - spread["median"] for spread in spreads],
    ]
    names = [side["side"] for side in sides]
    colours = [OURS if name in OUR_SIDES else OTHERS for name in names]
    axes.barh(range(len(names)), medians, height=0.7, color=colours, xerr=whiskers, capsize=4)
    axes.set_yticks(range(len(names)), names)
    for index, (side, spread) in enumerate(zip(sides, spreads, strict=True)):
        times = f" (× {side[ratio]['median']:.1f})" if index else ""
        axes.text(spread["high"], index, f"  {spread['median']:.{digits}f}{times}", va="center")
    axes.set_xlim(right=1.25 * max(spread["high"] for spread in spreads))
