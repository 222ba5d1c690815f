"""Charts as SVG. Colours are classes of report.css, so that they follow light and dark.

Names of classes stay out of the drawings: legends are HTML, where text of any script and
direction is set right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.report.markup import NOTHING, Content, Markup, element, joined

STYLES = 6  # colours, dashes and markers that can be told apart: s0 … s5
WIDTH, HEIGHT = 420, 290  # of a chart, in units of which its text is 12.5 high
LEFT, RIGHT, TOP, BOTTOM = 46, 404, 30, 248  # of the plotting area
DOT, WIDEST_BUBBLE = 2.4, 6.0  # radius, and what the largest count adds to it

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale with its title and ticks; ``text`` writes a tick."""

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    text: Callable[[float], str]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands: 0 at ``low``, 1 at ``high``."""
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (n, 2) of one kind, as a line, as dots, or both; those not finite are left out.

    Attributes
    ----------
    name : for the legend, text or markup; None for none.
    style : 0 … `STYLES` - 1, or ``reference`` for a line to compare with.
    counts : (n,) int64; the area of a dot grows with what it stands for.
    """

    points: Points
    style: int | str
    name: Content = None
    has_line: bool = True
    has_dots: bool = False
    counts: npt.NDArray[np.int64] | None = None


def number_axis(title: str, values: Points, *, from_zero: bool = False) -> Axis:
    """An axis with about five round ticks that holds all finite values."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if from_zero:
        low = min(low, 0.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - (0.0 if from_zero else 0.5), high + 0.5
    step = _round_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(
        title=title,
        low=first * step,
        high=last * step,
        ticks=[number * step for number in range(first, last + 1)],
        text=lambda value: f"{value + 0.0:,.{decimals}f}",
    )


def percent_axis(title: str, values: Points | None = None) -> Axis:
    """Shares as percent: 0 … 100, or just what the values need."""
    if values is None:
        values = np.array([0.0, 1.0])
    axis = number_axis(title, 100 * values)
    return Axis(
        title=title,
        low=axis.low / 100,
        high=min(axis.high / 100, 1.0) if values.max(initial=0) <= 1 else axis.high / 100,
        ticks=[tick / 100 for tick in axis.ticks if tick <= 100],
        text=lambda value: axis.text(100 * value),
    )


def log_axis(title: str, values: Points) -> Axis:
    """A logarithmic axis whose ticks are the values themselves, as far as they have room."""
    ticks: list[float] = []
    for value in sorted(values.tolist(), reverse=True):
        if not ticks or ticks[-1] / value > 1.35:
            ticks.append(value)
    margin = 1.08
    return Axis(
        title=title,
        low=float(values.min()) / margin,
        high=float(values.max()) * margin,
        ticks=ticks[::-1],
        text=lambda value: f"{value:,.0f}",
        is_log=True,
    )


def _round_step(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(power * nice for nice in (1, 2, 5, 10) if power * nice >= step * 0.999))


def chart(series: Sequence[Series], *, x: Axis, y: Axis, label: str) -> Markup:
    """A chart of two axes; ``label`` is read aloud in its place."""
    return element(
        "svg",
        _grid(x, y),
        *(_draw(each, x, y) for each in series),
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
    )


def legend(series: Sequence[Series]) -> Markup:
    """What each named series looks like."""
    entries = [
        element("li", swatch(each), element("span", each.name))
        for each in series
        if each.name is not None
    ]
    return element("ul", *entries, class_="legend")


def swatch(series: Series) -> Markup:
    """A piece of the series: line, marker or both."""
    middle = np.array([[14.0, 7.0]])
    return element(
        "svg",
        _line("M2 7H26", series.style) if series.has_line else None,
        markers(middle, series.style, 3.2) if series.has_dots else None,
        class_="swatch",
        viewBox="0 0 28 14",
        aria_hidden="true",
    )


def _grid(x: Axis, y: Axis) -> Markup:
    parts: list[Markup] = []
    for tick in y.ticks:
        at = BOTTOM - y.place(tick) * (BOTTOM - TOP)
        parts.append(element("path", d=f"M{LEFT} {at:.1f}H{RIGHT}", class_="grid"))
        parts.append(_text(y.text(tick), LEFT - 7, at + 4, "end"))
    for tick in x.ticks:
        at = LEFT + x.place(tick) * (RIGHT - LEFT)
        parts.append(element("path", d=f"M{at:.1f} {BOTTOM}v4", class_="tick"))
        parts.append(_text(x.text(tick), at, BOTTOM + 18, "middle"))
    parts.append(_text(y.title, 0, 14, "start", class_="title"))
    parts.append(_text(x.title, RIGHT, HEIGHT - 6, "end", class_="title"))
    return joined(*parts)


def _text(text: str, x: float, y: float, anchor: str, class_: str | None = None) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _draw(series: Series, x: Axis, y: Axis) -> Markup:
    finite = np.isfinite(series.points).all(axis=1)
    places = np.array(
        [
            (
                LEFT + x.place(horizontal) * (RIGHT - LEFT),
                BOTTOM - y.place(vertical) * (BOTTOM - TOP),
            )
            for horizontal, vertical in series.points[finite].tolist()
        ]
    ).reshape(-1, 2)
    line = dots = NOTHING
    if series.has_line and len(places) > 1:
        line = _line("M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places), series.style)
    if series.counts is not None:
        shares = series.counts[finite] / max(series.counts.max(initial=0), 1)
        dots = joined(
            *(
                markers(place[None], series.style, DOT + WIDEST_BUBBLE * math.sqrt(share), "bubble")
                for place, share in zip(places, shares.tolist(), strict=True)
            )
        )
    elif series.has_dots:
        dots = markers(places, series.style, DOT)
    return joined(line, dots)


def _line(path: str, style: int | str) -> Markup:
    return element("path", d=path, class_=f"line {_style_class(style)}")


def markers(places: Points, style: int | str, radius: float, kind: str = "dots") -> Markup:
    """One path for all points (n, 2) of a style; each number of a style has its own shape."""
    number = style % STYLES if isinstance(style, int) else 0
    shape = _shape(number, radius)
    path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in places.tolist())
    return element("path", d=path, class_=f"{kind} {_style_class(style)}")


def _style_class(style: int | str) -> str:
    return style if isinstance(style, str) else f"s{style % STYLES}"


def _shape(number: int, r: float) -> str:
    """A closed outline around the current point, in SVG's relative commands."""
    s = 0.9 * r
    return (
        f"m{-r:.2g} 0a{r:.2g} {r:.2g} 0 1 0 {2 * r:.2g} 0a{r:.2g} {r:.2g} 0 1 0 {-2 * r:.2g} 0",
        f"m{-s:.2g} {-s:.2g}h{2 * s:.2g}v{2 * s:.2g}h{-2 * s:.2g}z",
        f"m0 {-1.2 * r:.2g}l{1.15 * r:.2g} {2 * r:.2g}h{-2.3 * r:.2g}z",
        f"m0 {-1.3 * r:.2g}l{1.3 * r:.2g} {1.3 * r:.2g}l{-1.3 * r:.2g} {1.3 * r:.2g}"
        f"l{-1.3 * r:.2g} {-1.3 * r:.2g}z",
        f"m0 {1.2 * r:.2g}l{1.15 * r:.2g} {-2 * r:.2g}h{-2.3 * r:.2g}z",
        f"m{-0.4 * r:.2g} {-1.2 * r:.2g}h{0.8 * r:.2g}v{0.8 * r:.2g}h{0.8 * r:.2g}v{0.8 * r:.2g}"
        f"h{-0.8 * r:.2g}v{0.8 * r:.2g}h{-0.8 * r:.2g}v{-0.8 * r:.2g}h{-0.8 * r:.2g}"
        f"v{-0.8 * r:.2g}h{0.8 * r:.2g}z",
    )[number]


def shade(share: float, *, steps: int = 10) -> int:
    """0 … 10 for a share of 0 … 1: what is not nothing is at least 1, and little shows, too."""
    return 0 if share <= 0 else max(1, round(steps * math.sqrt(share)))


def heat_map(shares: Points, *, label: str) -> Markup:
    """Cells (K, K) of shares, right answers on the diagonal; for more classes than fit a table."""
    count = len(shares)
    cells = (
        element(
            "rect",
            x=int(column),
            y=int(row),
            width=1,
            height=1,
            class_=f"{'right' if row == column else 'wrong'} h{shade(float(shares[row, column]))}",
        )
        for row, column in zip(*np.nonzero(shares), strict=True)
    )
    frame = element("rect", width=count, height=count, class_="frame")
    return element(
        "svg",
        frame,
        *cells,
        class_="heat",
        viewBox=f"-.5 -.5 {count + 1} {count + 1}",
        role="img",
        aria_label=label,
    )
