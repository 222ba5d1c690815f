"""HTML that cannot be broken out of: text is escaped unless it is markup already."""

import html
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.evaluation.result import Comparison, Result
from pipeline.text import printable

VOID_ELEMENTS = {"img", "meta"}
JOINERS = re.compile(r"(?<=[^\x00-\x7f])([\u200c\u200d])")  # after a letter that may need one
RIGHT_TO_LEFT = {"R", "AL", "AN"}  # of Unicode's bidirectional classes
ISOLATE, POP_ISOLATE = "\u2068", "\u2069"


class Markup(str):
    """HTML source; any other string is text and gets escaped."""

    __slots__ = ()


Content = str | int | None  # a child or an attribute; None is left out


def element(name: str, /, *children: Content, **attributes: Content) -> Markup:
    """An element; of an attribute's name ``_`` becomes ``-`` and one at the end goes.

    >>> element("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    opening = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID_ELEMENTS:
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{joined(*children)}</{name}>")


def joined(*children: Content, by: str = "") -> Markup:
    """Children one after another, the text among them escaped."""
    return Markup(
        html.escape(by).join(
            child if isinstance(child, Markup) else html.escape(str(child))
            for child in children
            if child is not None
        )
    )


def name_text(name: str | bytes) -> str:
    """A class or file name as text: composed, its control characters visible.

    Hangul from macOS comes decomposed, and many fonts show such letters side by side. The two
    joiners stay: Persian, Indian scripts and emoji are spelled with them.
    """
    parts = JOINERS.split(unicodedata.normalize("NFC", os.fsdecode(name)))
    return "".join(part if place % 2 else printable(part) for place, part in enumerate(parts))


def isolated(name: str | bytes) -> str:
    """A name for an attribute; one that reads from right to left turns nothing else round."""
    text = name_text(name)
    if any(unicodedata.bidirectional(character) in RIGHT_TO_LEFT for character in text):
        return f"{ISOLATE}{text}{POP_ISOLATE}"
    return text


def name_of(name: str | bytes) -> Markup:
    """A class or file name in running text."""
    return element("bdi", name_text(name))


# ---------------------------------------------------------------------- what sections are made of


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


def figure(title: Content, *parts: Content, caption: Content = None) -> Markup:
    """A drawing or a table with its title and caption."""
    below = None if caption is None else element("figcaption", caption)
    return element("figure", element("h3", title), *parts, below)


def side_by_side(*figures: Markup) -> Markup:
    """Figures in two columns where there is room."""
    return element("div", *figures, class_="figures")
