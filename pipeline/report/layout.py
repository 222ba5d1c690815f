"""What the sections of report.html are laid out with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.evaluation.result import Comparison, Result
from pipeline.report.charts import Axis, Series, chart, legend
from pipeline.report.markup import Content, Markup, element
from pipeline.text import printable


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading that the navigation names."""

    anchor: str
    title: str
    body: Markup


def chosen_by(comparison: Comparison) -> tuple[str, Callable[[Result], float]]:
    """What heads are judged by: its name, and its value for one of them."""
    if comparison.run.get("balance"):
        return "balanced validation accuracy", lambda result: result.validation_balanced_accuracy
    return "validation accuracy", lambda result: result.validation_accuracy


def head_name(result: Result) -> str:
    """``logistic (C=0.1) on vgg16 block5_pool, pooled``."""
    params = f" ({result.params})" if result.params else ""
    layer = "" if result.layer == result.base else f" {result.layer}"
    return printable(f"{result.head}{params} on {result.base}{layer}, {result.input}")


def title_cell(title: Content, *, is_text: bool = False) -> Markup:
    """The title of a column of numbers, or of text."""
    return element("th", title, scope="col", class_=None if is_text else "number")


def number_cell(text: Content) -> Markup:
    """A number that stands below others of its kind."""
    return element("td", text, class_="number")


def row_of(*cells: Content, class_: str | None = None) -> Markup:
    """A row of cells."""
    return element("tr", *cells, class_=class_)


def scrolling(
    label: str, titles: Iterable[Markup], rows: Iterable[Markup], *, class_: str | None = None
) -> Markup:
    """A table in a box of its own, which a keyboard can scroll, too."""
    head, body = element("thead", row_of(*titles)), element("tbody", *rows)
    return scroll_box(label, element("table", head, body, class_=class_))


def scroll_box(label: str, content: Markup) -> Markup:
    """What may be wider than the page: only its box scrolls."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def chart_figure(
    title: Content,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    label: str,
    caption: Content = None,
) -> Markup:
    """A chart with its title, legend and caption; ``label`` says in words what it shows."""
    return element(
        "figure",
        element("h3", title),
        chart(series, x=x, y=y, label=label),
        legend(series),
        None if caption is None else element("figcaption", caption),
    )


def side_by_side(*figures: Markup) -> Markup:
    """Figures in two columns where there is room."""
    return element("div", *figures, class_="figures")
