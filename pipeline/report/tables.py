"""Data of the report's tables: all heads, layers by heads, errors by class."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from pipeline.evaluation.result import Comparison, Outcome
from pipeline.evaluation.table import COLUMNS_OF, IDENTITY, columns_of, explain_views
from pipeline.report.markup import selection_metric
from pipeline.report.plots import confusion_size, draw_matrix, inline_svg
from pipeline.spec import CLASSES

MAX_IN_ORDER = 12  # classes in their order; of more, the worst come first
MAX_CONFUSIONS = 12
COVERAGES = (0.99, 0.95, 0.9, 0.8)
FIRST_CELL = ("head", "verdict")  # columns in the first cell of a row


def heads(comparison: Comparison) -> dict[str, Any]:
    """Tabulate all heads."""
    results = comparison.results
    columns = [each for each in columns_of(results) if each.title not in FIRST_CELL]
    test = next(each.title for each in COLUMNS_OF[comparison.task] if "(95 %)" in each.title)
    return {
        "results": results,
        "columns": sorted(columns, key=lambda each: each.title != test),  # a phone shows the first
        "test": test,
        "has_classes": comparison.task == CLASSES,
        "badge": "recommended" if comparison.recommends else "choice on validation",
        "has_spread": not all(math.isnan(result.test_spread) for result in results),
        "has_p_values": not all(math.isnan(result.p_holm) for result in results),
        "views": explain_views([result for result in results if not result.status]),
    }


def layers(comparison: Comparison) -> dict[str, Any] | None:
    """Tabulate the selection metric by layer and head; None for a single layer."""
    metric = selection_metric(comparison)
    results = [result for result in comparison.results if not result.status]
    columns = [column for column in columns_of(results) if column in IDENTITY]
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for result in results:
        heads = rows.setdefault(tuple(column.cell(result) for column in columns), {})
        value = metric.value(result)
        heads[result.head] = metric.best(heads.get(result.head, value), value)
    if len(rows) < 2:
        return None
    value, layer, head = metric.best(
        (value, layer, head) for layer, heads in rows.items() for head, value in heads.items()
    )
    return {
        "metric": metric,
        "value": value,
        "layer": layer,
        "head": head,
        "titles": [column.title for column in columns],
        "rows": sorted(rows.items(), key=lambda row: [*map(_natural_key, row[0])]),
        "highest": {
            name: metric.best(each[name] for each in rows.values() if name in each)
            for heads in rows.values()
            for name in heads
        },
    }


def _natural_key(text: str) -> list[tuple[str, int]]:
    """Return a key that sorts block_3 before block_13."""
    return [(word, int(digits or 0)) for word, digits in re.findall(r"(\D*)(\d*)", text)]


def confusion(outcome: Outcome, classes: Sequence[str]) -> dict[str, Any]:
    """Plot the confusion matrix; tabulate precision, recall and F1 of each class."""
    test = outcome.test
    labels = range(len(classes))
    counts = confusion_matrix(test.labels, test.predicted, labels=labels)
    drawing = inline_svg(
        lambda axes: draw_matrix(axes, counts, classes),
        label=f"Confusion matrix of {len(classes)} classes; a table names the most frequent "
        f"mistakes.",
        size=confusion_size(len(classes)),
        layout="matrix",
    )
    scores = precision_recall_fscore_support(
        test.labels, test.predicted, labels=labels, zero_division=np.nan
    )
    by_class = list(zip(classes, *scores, strict=True))
    if is_sorted := len(classes) > MAX_IN_ORDER:
        by_class.sort(key=lambda row: float(np.nan_to_num(row[3])))
    wrong = counts * ~np.eye(len(classes), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = [
        (classes[true], classes[predicted], counts[true, predicted], shares[true, predicted])
        for true, predicted in (divmod(int(index), len(classes)) for index in order)
        if wrong[true, predicted]
    ]
    return {
        "right": int(test.correct.sum()),
        "count": len(test),
        "excerpt": outcome.excerpt,
        "drawing": drawing,
        "by_class": by_class,
        "is_sorted": is_sorted,
        "mistakes": mistakes,
    }


def rejection(comparison: Comparison) -> dict[str, Any] | None:
    """Tabulate how many test images are kept, their accuracy, and classes that were left out."""
    outcome, findings = comparison.shown, comparison.findings
    if outcome.conformity is None or math.isnan(outcome.result.coverage):
        return None
    used = ~np.isnan(outcome.conformity)
    p_values, correct = outcome.conformity[used], outcome.test.correct[used]
    images = len(outcome.validation) // max(1, outcome.folds)  # the thresholds are computed from
    kept = []
    for share in COVERAGES:
        is_kept = p_values > 1 - share
        if images + 1 >= round(1 / (1 - share)) and is_kept.any():
            kept.append((share, float(is_kept.mean()), float(correct[is_kept].mean())))
    left_out = () if findings is None else findings.left_out
    return {
        "count": len(p_values),
        "accuracy": float(correct.mean()),
        "coverage": outcome.result.coverage,
        "kept_accuracy": outcome.result.kept_accuracy,
        "kept": kept,
        "skipped": left_out if isinstance(left_out, str) else "",
        "left_out": [
            (comparison.classes[each.label], each) for each in left_out if not isinstance(each, str)
        ],
    }
