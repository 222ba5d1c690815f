"""Sections that are tables: all heads, layers by heads, what is taken for what."""

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix

from pipeline.evaluation.metrics import per_class
from pipeline.evaluation.result import Comparison, Outcome, Predictions, Result
from pipeline.evaluation.table import IDENTITY, Column, columns_of, explain_views, percent
from pipeline.report.markup import (
    Markup,
    Section,
    chosen_by,
    element,
    figure,
    joined,
    name_of,
    name_text,
    number_cell,
    row_of,
    scroll_box,
    scrolling,
    side_by_side,
    title_cell,
)
from pipeline.report.plots import confusion_size, draw_matrix, inline_svg
from pipeline.text import counted

MOST_IN_ORDER = 12  # classes; of more the worst come first
MOST_CONFUSIONS = 12
BESIDE_THE_HEAD = ("head", "verdict")  # columns that the first cell of a row holds
TEST = "test % (95 %)"
DOUBT = "No head can be recommended"  # how such a recommendation begins
PLACES = {TEST: -1, "params": 1, "ms/image": 2}  # first what a phone shows without scrolling

Counts = npt.NDArray[np.int64]


def table_section(comparison: Comparison) -> Section:
    """All heads, in the columns of the results table."""
    scored = [result for result in comparison.results if not result.status]
    columns = [each for each in columns_of(comparison.results) if each.title not in BESIDE_THE_HEAD]
    columns.sort(key=lambda each: PLACES.get(each.title, 0))
    titles = [
        title_cell("head", is_text=True),
        *(title_cell(_unbroken(each.title), is_text=each.is_text) for each in columns),
    ]
    is_doubted = comparison.recommendation.startswith(DOUBT)
    rows = [_result_row(result, columns, is_doubted) for result in comparison.results]
    note = (
        "Settings were chosen on validation (val), never on test. In brackets stands the 95 % "
        "Wilson interval of the test accuracy"
    )
    if any(not math.isnan(result.test_spread) for result in scored):
        note += ", after ± the standard deviation over the fits"
    if any(not math.isnan(result.p_holm) for result in scored):
        note += (
            "; p compares a head with the best one on the same test images (exact McNemar, "
            "Holm-corrected) and is reported, not used to choose. Above 0.05 the test images do "
            "not tell the two apart"
        )
    note += f".{explain_views(scored)}"
    body = joined(scrolling("All heads compared", titles, rows), element("p", note))
    return Section("heads", "All heads", body)


def _unbroken(title: str) -> str:
    """A title whose percent signs stay with what they belong to."""
    return title.replace(" %", "\u00a0%")


def _result_row(result: Result, columns: Sequence[Column], is_doubted: bool) -> Markup:
    badge = result.verdict
    if result.recommended:
        badge = "choice on validation" if is_doubted else "recommended"
    head = element(
        "th",
        name_of(result.head),
        joined(" ", element("span", badge, class_="badge")) if badge else None,
        scope="row",
    )
    cells = (_cell(result, each) for each in columns)
    return row_of(head, *cells, class_="chosen" if result.recommended else None)


def _cell(result: Result, column: Column) -> Markup:
    if column.title == TEST and result.status:
        return element("td", name_text(result.status), class_="failed")
    if column.title == TEST:
        share, _, interval = column.cell(result).partition(" (")
        return number_cell(joined(share, " ", element("small", f"({interval}")))
    if column.title == "params":  # in full: here is room
        return element("td", name_text(result.params), class_="params")
    if column.is_text:
        return element("td", column.cell(result))
    return number_cell(column.cell(result))


def layers_section(comparison: Comparison) -> Section | None:
    """What heads are judged by, by layer and head, where several layers were compared."""
    measure, value_of = chosen_by(comparison)
    results = [result for result in comparison.results if not result.status]
    telling = [column for column in columns_of(results) if column in IDENTITY]
    best: dict[tuple[str, ...], dict[str, float]] = {}
    for result in results:
        of_layer = best.setdefault(tuple(column.cell(result) for column in telling), {})
        of_layer[result.head] = max(of_layer.get(result.head, 0), value_of(result))
    if len(best) < 2:
        return None
    highest: dict[str, float] = {}
    for of_layer in best.values():
        for head, accuracy in of_layer.items():
            highest[head] = max(highest.get(head, 0), accuracy)
    titles = [title_cell(column.title, is_text=True) for column in telling]
    titles += [title_cell(name_of(head)) for head in highest]
    rows = [
        row_of(
            *(element("th", name_of(part), scope="row") for part in place),
            *(_accuracy_cell(best[place].get(head), highest[head]) for head in highest),
        )
        for place in sorted(best, key=lambda place: [_natural(part) for part in place])
    ]
    accuracy, place, head = max(
        (accuracy, place, head) for place in best for head, accuracy in best[place].items()
    )
    text = joined(
        f"The highest {measure}, {percent(accuracy)} %, has ",
        name_of(head),
        " on ",
        name_of(" ".join(place)),
        ". In bold the best of each head, in %.",
    )
    table = scrolling(f"{measure.capitalize()} by layer and head", titles, rows)
    return Section("layers", "Which layer suits this data", joined(element("p", text), table))


def _accuracy_cell(accuracy: float | None, highest: float) -> Markup:
    if accuracy is None:
        return number_cell("–")
    text = percent(accuracy)
    return number_cell(element("strong", text) if accuracy == highest else text)


def _natural(text: str) -> list[tuple[str, int]]:
    """A key that sorts block_3 before block_13."""
    return [(word, int(digits or 0)) for word, digits in re.findall(r"(\D*)(\d*)", text)]


def confusion_section(outcome: Outcome, classes: Sequence[str]) -> Section | None:
    """What is taken for what, and precision and recall of each class."""
    test = outcome.test
    counts = confusion_matrix(test.labels, test.predicted, labels=range(len(classes)))
    wrong = len(test) - int(test.correct.sum())
    text = f"{len(test) - wrong:,} of {counted(len(test), 'test image')} are classified right."
    drawing = inline_svg(
        lambda axes: draw_matrix(axes, counts, classes),
        label=f"Confusion matrix of {len(classes)} classes; a table names the most frequent "
        f"mistakes.",
        size=confusion_size(len(classes)),
        layout="matrix",
    )
    matrix = figure(
        "Confusion matrix",
        scroll_box("Confusion matrix", drawing),
        caption="Test images, and their share of the true class.",
    )
    tables = [_class_table(test, classes), *([_mistakes_table(counts, classes)] if wrong else [])]
    body = joined(element("p", text), matrix, side_by_side(*tables))
    return Section("confusion", "Where it errs", body)


def _mistakes_table(counts: Counts, classes: Sequence[str]) -> Markup:
    wrong = counts * ~np.eye(len(classes), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    rows = [
        row_of(
            element("td", name_of(classes[true])),
            element("td", name_of(classes[taken])),
            number_cell(f"{counts[true, taken]:,}"),
            number_cell(f"{percent(counts[true, taken] / counts[true].sum())} %"),
        )
        for true, taken in (divmod(int(place), len(classes)) for place in order)
        if wrong[true, taken]
    ]
    titles = [title_cell(title, is_text=True) for title in ("true class", "taken for")]
    titles += [title_cell(title) for title in ("images", "of the class")]
    title = "The most frequent mistakes"
    return figure(title, scrolling(title, titles, rows))


def _class_table(test: Predictions, classes: Sequence[str]) -> Markup:
    """Precision, recall and F1; of many classes the worst first."""
    measured = per_class(test.labels, test.predicted, len(classes))
    order = list(range(len(classes)))
    caption = (
        "Precision: how many of the images taken for the class are of it. Recall: how many of the "
        "images of the class are found. F1: their harmonic mean."
    )
    if len(classes) > MOST_IN_ORDER:
        order.sort(key=lambda label: float(np.nan_to_num(measured.f1[label])))
        caption += " The lowest F1 first."
    rows = [
        row_of(
            element("th", name_of(classes[label]), scope="row"),
            *(
                number_cell(percent(float(values[label])) or "–")
                for values in (measured.precision, measured.recall, measured.f1)
            ),
            number_cell(f"{measured.support[label]:,}"),
        )
        for label in order
    ]
    titles = [title_cell("class", is_text=True)]
    titles += [title_cell(title) for title in ("precision %", "recall %", "F1 %", "images")]
    table = scrolling("Precision and recall by class", titles, rows, class_="tall")
    return figure("By class", table, caption=caption)
