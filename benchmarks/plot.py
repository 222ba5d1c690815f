"""The picture of a benchmark: bars with quartile whiskers, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOTS_PER_INCH = 120
OURS, OTHERS, LIMIT = "#1f77b4", "#9a9a9a", "#d95f02"  # told apart by colour-blind readers, too
OUR_SIDES = ("extract", "dense head")

Document = Mapping[str, Any]


def draw_benchmark(document: Document, path: Path) -> None:
    """Write a PNG: stage one as images/s by side, stage two as seconds, ours beside the usual."""
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


def _draw_stage_one(axes: Axes, found: Document) -> None:
    sides = found["sides"]
    spreads = [side["images_per_second"] for side in sides]
    shown = [(side, spread) for side, spread in zip(sides, spreads, strict=True)
             if side["share_of_matrix_product"]]  # fmt: skip
    names = [side["side"] for side, _ in shown]
    _bars(axes, names, [spread for _, spread in shown])
    for place, (side, spread) in enumerate(shown):
        times = side["against_book"]["median"]
        text = f"  {spread['median']:.1f}" + (f" (× {times:.1f})" if place else "")
        axes.text(spread["high"], place, text, va="center")
    ceiling = found["ceiling"]["images_per_second"]["median"]
    axes.axvline(ceiling, color=LIMIT, linestyle="--", label="ceiling: 1/(1/engine + 1/decoding)")
    axes.set_xlim(right=1.2 * max(ceiling, *(spread["high"] for _, spread in shown)))
    axes.legend(loc="upper right")
    axes.set_xlabel("images/s")
    axes.set_title(f"{found['base']} at {found['image_size']} pixels")


def _draw_stage_two(axes: Axes, found: Document) -> None:
    sides = found["sides"]
    spreads = [side["seconds_per_epoch"] for side in sides]
    names = [side["side"] for side in sides]
    _bars(axes, names, spreads)
    for place, (side, spread) in enumerate(zip(sides, spreads, strict=True)):
        times = side["times_faster"]["median"]
        text = f"  {spread['median']:.2f}" + (f" (× {times:.1f})" if place else "")
        axes.text(spread["high"], place, text, va="center")
    axes.set_xlim(right=1.25 * max(spread["high"] for spread in spreads))
    axes.set_xlabel("seconds an epoch")
    axes.set_title(f"Dense head on {found['rows']:,} × {found['features']:,} features")


def _bars(axes: Axes, names: Sequence[str], spreads: Sequence[Mapping[str, float]]) -> None:
    medians = [spread["median"] for spread in spreads]
    whiskers = [
        [spread["median"] - spread["low"] for spread in spreads],
        [spread["high"] - spread["median"] for spread in spreads],
    ]
    colours = [OURS if name in OUR_SIDES else OTHERS for name in names]
    axes.barh(range(len(names)), medians, height=0.7, color=colours, xerr=whiskers, capsize=4)
    axes.set_yticks(range(len(names)), names)
