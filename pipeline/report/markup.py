"""HTML and SVG that cannot be broken out of: text is escaped unless it is markup already."""

import html
import os
import re
import unicodedata

from pipeline.text import printable

VOID_ELEMENTS = {"img", "meta"}
JOINERS = re.compile(r"(?<=[^\x00-\x7f])([\u200c\u200d])")  # after a letter that may need one
RIGHT_TO_LEFT = {"R", "AL", "AN"}  # of Unicode's bidirectional classes
ISOLATE, POP_ISOLATE = "\u2068", "\u2069"


class Markup(str):
    """HTML or SVG source; any other string is text and gets escaped."""

    __slots__ = ()


Content = str | int | None  # a child or an attribute; None is left out
NOTHING = Markup()


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
