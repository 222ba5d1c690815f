"""What the report's tables show: all heads, layers by heads, what is taken for what."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from pipeline.evaluation.result import Comparison, HeadPredictions
from pipeline.evaluation.table import IDENTITY, columns_of, explain_views
from pipeline.report.markup import chosen_by
from pipeline.report.plots import confusion_size, draw_matrix, inline_svg

MOST_IN_ORDER = 12  # classes; of more the worst come first
MOST_CONFUSIONS = 12
BESIDE_THE_HEAD = ("head", "verdict")  # columns that the first cell of a row holds
TEST = "test % (95 %)"
DOUBT = "No head can be recommended"  # how such a recommendation begins
PLACES = {TEST: -1, "params": 1, "ms/image": 2}  # first what a phone shows without scrolling


def heads(comparison: Comparison) -> dict[str, Any]:
    results = comparison.results
    columns = [each for each in columns_of(results) if each.title not in BESIDE_THE_HEAD]
    is_doubted = comparison.recommendation.startswith(DOUBT)
    return {
        "results": results,
        "columns": sorted(columns, key=lambda each: PLACES.get(each.title, 0)),
        "test": TEST,
        "badge": "choice on validation" if is_doubted else "recommended",
        "has_spread": not all(math.isnan(result.test_spread) for result in results),
        "has_p_values": not all(math.isnan(result.p_holm) for result in results),
        "views": explain_views([result for result in results if not result.status]),
    }


def layers(comparison: Comparison) -> dict[str, Any] | None:
    """What heads are judged by, by layer and head, where several layers were compared."""
    measure, field = chosen_by(comparison)
    results = [result for result in comparison.results if not result.status]
    columns = [column for column in columns_of(results) if column in IDENTITY]
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for result in results:
        heads = rows.setdefault(tuple(column.cell(result) for column in columns), {})
        heads[result.head] = max(heads.get(result.head, 0), getattr(result, field))
    if len(rows) < 2:
        return None
    accuracy, place, head = max(
        (accuracy, place, head) for place, heads in rows.items() for head, accuracy in heads.items()
    )
    return {
        "measure": measure,
        "accuracy": accuracy,
        "place": place,
        "head": head,
        "titles": [column.title for column in columns],
        "rows": sorted(rows.items(), key=lambda row: [*map(_natural, row[0])]),
        "highest": {
            name: max(each.get(name, 0) for each in rows.values())
            for heads in rows.values()
            for name in heads
        },
    }


def _natural(text: str) -> list[tuple[str, int]]:
    """A key that sorts block_3 before block_13."""
    return [(word, int(digits or 0)) for word, digits in re.findall(r"(\D*)(\d*)", text)]


def confusion(test: HeadPredictions, classes: Sequence[str]) -> dict[str, Any]:
    """What is taken for what, and precision, recall and F1 of each class."""
    every = range(len(classes))
    counts = confusion_matrix(test.labels, test.predicted, labels=every)
    drawing = inline_svg(
        lambda axes: draw_matrix(axes, counts, classes),
        label=f"Confusion matrix of {len(classes)} classes; a table names the most frequent "
        f"mistakes.",
        size=confusion_size(len(classes)),
        layout="matrix",
    )
    measured = precision_recall_fscore_support(
        test.labels, test.predicted, labels=every, zero_division=np.nan
    )
    by_class = list(zip(classes, *measured, strict=True))
    if is_sorted := len(classes) > MOST_IN_ORDER:
        by_class.sort(key=lambda row: float(np.nan_to_num(row[3])))
    wrong = counts * ~np.eye(len(classes), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = [
        (classes[true], classes[taken], counts[true, taken], shares[true, taken])
        for true, taken in (divmod(int(place), len(classes)) for place in order)
        if wrong[true, taken]
    ]
    return {
        "right": int(test.correct.sum()),
        "count": len(test),
        "drawing": drawing,
        "by_class": by_class,
        "is_sorted": is_sorted,
        "mistakes": mistakes,
    }
