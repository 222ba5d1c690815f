"""Format predictions as text, one by one: an aligned table, CSV or JSON."""

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from pipeline.cache.fill import RowProgress
from pipeline.images.scan import Skipped
from pipeline.models.image_predictions import ImagePredictions, Prediction
from pipeline.report.sheets import MAX_PICTURES
from pipeline.text import printable

log = logging.getLogger("pipeline")

GAP = "  "


class Tally:
    """Iterate over predictions and count them; log and collect skipped files."""

    def __init__(self, predictions: ImagePredictions, progress: RowProgress | None = None) -> None:
        self.predictions = predictions
        self.images = 0
        self.cached = 0
        self.first: list[Prediction] = []  # for a contact sheet
        self.skipped: list[Skipped] = []
        self._progress = progress

    def __iter__(self) -> Iterator[Prediction]:
        for item in self.predictions:
            if isinstance(item, Skipped):
                log.warning("skipped %s: %s", printable(item.path), item.reason)
                self.skipped.append(item)
            else:
                self.images += 1
                self.cached += item.cached
                if len(self.first) < MAX_PICTURES:
                    self.first.append(item)
                if self._progress:  # only from the first result on: the network loads before
                    self._progress(self.images + len(self.skipped), self.predictions.total)
                yield item


def table_lines(
    predictions: Iterable[Prediction], *, paths: Sequence[bytes], classes: Sequence[str], top: int
) -> Iterator[str]:
    """Yield aligned lines, titles first; all paths and classes determine the widths."""
    path_width = max(len("path"), *(cell_len(printable(path)) for path in paths))
    label_width = max(len("label"), *(cell_len(printable(name)) for name in classes))
    titles = f"{set_cell_size('path', path_width)}{GAP}{set_cell_size('label', label_width)}{GAP}"
    titles += f"probability{GAP}margin{GAP * (top > 1)}{'then' if top > 1 else ''}\n"
    for prediction in predictions:
        (label, probability), *others = prediction.top(top)
        cells = [
            set_cell_size(printable(prediction.path), path_width),
            set_cell_size(printable(label), label_width),
            f"{probability:11.4f}",
            f"{prediction.margin:6.4f}",
            *(
                f"{set_cell_size(printable(name), label_width)} {share:.4f}"
                for name, share in others
            ),
        ]
        yield titles + GAP.join(cells) + "\n"
        titles = ""


def csv_lines(
    predictions: Iterable[Prediction], *, top: int, named: Callable[[str | bytes], str]
) -> Iterator[str]:
    """Yield CSV lines, column names first; ``named`` converts paths and labels to text."""
    names = ["path", "label", "probability", "margin"]
    names += [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("label", "probability")]
    titles = _to_csv(names)
    for prediction in predictions:
        (label, probability), *others = prediction.top(top)
        values = [named(prediction.path), named(label), probability, prediction.margin]
        for name, share in others:
            values += [named(name), share]
        yield titles + _to_csv(values)
        titles = ""


def json_parts(
    predictions: Iterable[Prediction],
    *,
    top: int,
    head: Mapping[str, Any],
    tail: Callable[[], Mapping[str, Any]],
) -> Iterator[str]:
    """Yield parts of one JSON document: ``head``, ``images``, and ``tail`` after the last image."""
    prefix = _to_json(head)[:-1] + ', "images": [\n'
    for prediction in predictions:
        (label, probability), *_ = best = prediction.top(top)
        yield prefix + _to_json(
            {
                "path": os.fsdecode(prediction.path),
                "label": label,
                "probability": probability,
                "margin": prediction.margin,
                "top": [{"label": name, "probability": share} for name, share in best],
                "cached": prediction.cached,
            }
        )
        prefix = ",\n"
    yield "\n], " + _to_json(tail())[1:] + "\n"


def _to_json(value: Mapping[str, Any]) -> str:
    """Return one line of JSON; escapes preserve names that are not UTF-8."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    return text


def _to_csv(values: Sequence[Any]) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
