"""The map of the features as options of an ECharts scatter plot, with pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.review.review import Review, Rows
from pipeline.text import printable

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")  # Okabe-Ito
SYMBOLS = ("circle", "triangle", "rect", "diamond", "pin")
CELLS = (10, 8)  # of the visible part: at most a picture for each, so that they hardly overlap
HIDDEN = {"show": False}
AXIS = {"min": 0, "max": 1, "axisLabel": HIDDEN, "axisTick": HIDDEN, "splitLine": HIDDEN}
PICTURES = {"type": "scatter", "symbolSize": 32, "symbolKeepAspect": True, "z": 3}


class FeatureChart:
    """Options of a chart, and the series of its points, whose data have their ``row``."""

    def __init__(self, review: Review, address: Callable[[int], str]) -> None:
        self._review, self._address = review, address
        self._points, self.rows = review.feature_map()
        self._corners = np.array([[0.0, 0.0], [1.0, 1.0]])  # of the visible part
        self.options: dict[str, Any] = {
            "animation": False,
            "color": list(COLORS),
            "grid": {"left": 12, "right": 12, "top": 40, "bottom": 12},
            "legend": {"type": "scroll", "top": 4},
            "tooltip": {"renderMode": "richText", "formatter": "{b}"},  # on the canvas, never HTML
            "xAxis": AXIS,
            "yAxis": AXIS,
            "dataZoom": [
                {"type": "inside", "id": axis, f"{axis}AxisIndex": 0, "filterMode": "none"}
                for axis in "xy"
            ],
        }

    def zoom(self, axis: str, start: float, end: float) -> None:
        """Set the visible part of the x or y axis, in percent."""
        self._corners[:, "xy".index(axis)] = start / 100, end / 100

    def series(self, selected: Rows, labels: Rows) -> list[dict[str, Any]]:
        """Return the points of selected rows (n,), colored by the labels (N,) of all rows."""
        points, rows = self._points, self.rows
        is_shown = np.isin(rows, selected)
        series: list[dict[str, Any]] = [
            {
                "type": "scatter",
                "name": printable(name),
                "symbol": SYMBOLS[number % len(SYMBOLS)],
                "symbolSize": 8,
                "data": self._data(np.flatnonzero(is_shown & (labels[rows] == number)), labels),
            }
            for number, name in enumerate(self._review.classes)
        ]
        low, high = self._corners
        inside = np.flatnonzero(is_shown & ((points >= low) & (points <= high)).all(axis=1))
        shares = (points[inside] - low) / (high - low)
        cells = (shares * CELLS).astype(int).clip(max=np.subtract(CELLS, 1)) @ (CELLS[1], 1)
        pictures = self._data(inside[np.unique(cells, return_index=True)[1]], labels)
        for each in pictures:
            each["symbol"] = f"image://{self._address(each['row'])}"
        return [*series, PICTURES | {"data": pictures}]

    def _data(self, indices: npt.NDArray[np.intp], labels: Rows) -> list[dict[str, Any]]:
        paths, rows = self._review.table.columns.paths, self.rows[indices].tolist()
        return [
            {
                "value": self._points[index].round(4).tolist(),
                "name": f"{printable(paths[row])}\n{describe(self._review, row, int(labels[row]))}",
                "row": row,
            }
            for index, row in zip(indices, rows, strict=True)
        ]


def describe(review: Review, row: int, label: int) -> str:
    """Return label, -1 for dropped, and prediction of an image: 'cats, predicted dogs 98 %'."""
    name = printable(review.classes[label]) if label >= 0 else "dropped"
    predicted = int(review.predicted[row])
    if predicted < 0:
        return name
    share = f"{100 * review.probability[row]:.0f} %"
    return f"{name}, predicted {printable(review.classes[predicted])} {share}"
