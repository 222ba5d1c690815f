"""Render the templates of report.html and results.md; their filters escape text from outside."""

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

JOINERS = re.compile(r"(?<=[^\x00-\x7f])([\u200c\u200d])")  # after a non-ASCII letter
RIGHT_TO_LEFT = {"R", "AL", "AN"}  # of Unicode's bidirectional classes
ISOLATE, POP_ISOLATE = "\u2068", "\u2069"


def name_text(name: str | bytes) -> str:
    """Return a class or file name in Unicode form NFC, with control characters escaped.

    macOS decomposes Hangul, and many fonts show decomposed letters side by side. The two joiners
    stay: Persian, Indian scripts and emoji need them.
    """
    parts = JOINERS.split(unicodedata.normalize("NFC", os.fsdecode(name)))
    return "".join(part if index % 2 else printable(part) for index, part in enumerate(parts))


def _isolate(name: str | bytes) -> str:
    """Return a name for an HTML attribute; right-to-left names do not reorder other text."""
    text = name_text(name)
    if any(unicodedata.bidirectional(character) in RIGHT_TO_LEFT for character in text):
        return f"{ISOLATE}{text}{POP_ISOLATE}"
    return text


def _format_probability(probability: float) -> str:
    """Return a probability in percent; only 1 shows as 100 and only 0 as 0.0."""
    if 0.9995 <= probability < 1:
        return ">99.9"
    return "<0.1" if 0 < probability < 0.0005 else percent(probability)


def _format_value(value: Any) -> str:
    """Return a value of results.json as readable text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_format_value(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_format_value, value))
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
    "bdi": lambda name: Markup("<bdi>{}</bdi>").format(name_text(name)),
    "counted": counted,
    "isolated": _isolate,
    "md": lambda text: re.sub(r"([\\`*_<>&|\[\]#])", r"\\\1", printable(text)),  # escapes Markdown
    "name": name_text,
    "percent": percent,
    "printable": printable,
    "probability": _format_probability,
    "value": _format_value,
    "views_suffix": views_suffix,
}


def render(template: str, **values: Any) -> str:
    """Return the text of a template with these values."""
    return TEMPLATES.get_template(template).render(values)


def selection_metric(comparison: Comparison) -> tuple[str, str]:
    """Return the name of the metric that selects heads, and its field of `Result`."""
    if comparison.run.get("balance"):
        return "balanced validation accuracy", "validation_balanced_accuracy"
    return "validation accuracy", "validation_accuracy"


def head_name(result: Result) -> str:
    """Return a name such as ``logistic (C=0.1) on vgg16 block5_pool, pooled``."""
    params = f" ({result.params})" if result.params else ""
    layer = "" if result.layer == result.base else f" {result.layer}"
    return printable(f"{result.head}{params} on {result.base}{layer}, {result.input}")
