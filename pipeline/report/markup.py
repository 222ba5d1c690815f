"""The templates of report.html and results.md, and how text from outside is shown in them."""

import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from pipeline.evaluation.result import Comparison, Result
from pipeline.evaluation.rows import views_suffix
from pipeline.evaluation.table import percent
from pipeline.text import counted, printable

JOINERS = re.compile(r"(?<=[^\x00-\x7f])([\u200c\u200d])")  # after a letter that may need one
RIGHT_TO_LEFT = {"R", "AL", "AN"}  # of Unicode's bidirectional classes
ISOLATE, POP_ISOLATE = "\u2068", "\u2069"


def name_text(name: str | bytes) -> str:
    """A class or file name as text: composed, its control characters visible.

    Hangul from macOS comes decomposed, and many fonts show such letters side by side. The two
    joiners stay: Persian, Indian scripts and emoji are spelled with them.
    """
    parts = JOINERS.split(unicodedata.normalize("NFC", os.fsdecode(name)))
    return "".join(part if place % 2 else printable(part) for place, part in enumerate(parts))


def _isolated(name: str | bytes) -> str:
    """A name for an attribute; one that reads from right to left does not reorder the rest."""
    text = name_text(name)
    if any(unicodedata.bidirectional(character) in RIGHT_TO_LEFT for character in text):
        return f"{ISOLATE}{text}{POP_ISOLATE}"
    return text


def _chance(probability: float) -> str:
    """In percent; only 1 is 100 and only 0 is 0.0."""
    if 0.9995 <= probability < 1:
        return ">99.9"
    return "<0.1" if 0 < probability < 0.0005 else percent(probability)


def _fact(value: Any) -> str:
    """A value of results.json for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


TEMPLATES = Environment(
    loader=PackageLoader("pipeline.report"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {
    "bdi": lambda name: Markup("<bdi>{}</bdi>").format(name_text(name)),  # in running text
    "chance": _chance,
    "counted": counted,
    "fact": _fact,
    "isolated": _isolated,
    "md": lambda text: re.sub(r"([\\`*_<>&|\[\]#])", r"\\\1", printable(text)),  # as plain text
    "name": name_text,
    "percent": percent,
    "printable": printable,
    "views_suffix": views_suffix,
}


def render(template: str, **values: Any) -> str:
    return TEMPLATES.get_template(template).render(values)


def chosen_by(comparison: Comparison) -> tuple[str, str]:
    """What heads are judged by: its name, and the field of a `Result` that holds it."""
    if comparison.run.get("balance"):
        return "balanced validation accuracy", "validation_balanced_accuracy"
    return "validation accuracy", "validation_accuracy"


def head_name(result: Result) -> str:
    """``logistic (C=0.1) on vgg16 block5_pool, pooled``."""
    params = f" ({result.params})" if result.params else ""
    layer = "" if result.layer == result.base else f" {result.layer}"
    return printable(f"{result.head}{params} on {result.base}{layer}, {result.input}")
