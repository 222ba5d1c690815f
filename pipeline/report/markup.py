"""Render the templates of report.html and results.md; their filters escape text from outside."""

import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from pipeline.evaluation.result import Comparison, Result
from pipeline.evaluation.rows import views_suffix
from pipeline.evaluation.table import percent
from pipeline.evaluation.tasks import TASKS, metric_text
from pipeline.spec import CLASSES
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


class Metric(NamedTuple):
    """A column of the results: its title, whether more is better, and whether it is a share."""

    title: str
    column: str
    is_high: bool = True
    in_percent: bool = True

    @property
    def best(self) -> Callable[..., Any]:
        return max if self.is_high else min

    def value(self, result: Result) -> float:
        return float({**vars(result), **result.metrics}[self.column])

    def text(self, value: float) -> str:
        return metric_text(value, in_percent=self.in_percent)

    def with_unit(self, value: float) -> str:
        return f"{self.text(value)} %" if self.in_percent else self.text(value)


def selection_metric(comparison: Comparison) -> Metric:
    """Return the metric that selects heads."""
    if comparison.task != CLASSES:
        task = TASKS[comparison.task]
        column = f"validation_{task.measure}"
        return Metric(f"validation {task.title}", column, task.sign > 0, task.in_percent)
    if comparison.run.get("balance"):
        return Metric("balanced validation accuracy", "validation_balanced_accuracy")
    return Metric("validation accuracy", "validation_accuracy")


def key_metrics(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return title, value and note of the chosen head's metrics on test and validation."""
    result, selection = comparison.shown.result, selection_metric(comparison)
    title, column, bounds = "test accuracy", "test_accuracy", "test"
    if comparison.task != CLASSES:
        task = TASKS[comparison.task]
        title, column = f"test {task.title}", f"test_{task.measure}"
        bounds = column
    test, low, high = (
        selection._replace(column=name) for name in (column, f"{bounds}_low", f"{bounds}_high")
    )
    interval = " to ".join(each.text(each.value(result)) for each in (low, high))
    return [
        (title, test.with_unit(test.value(result)), f"95 % interval: {interval}"),
        (selection.title, selection.with_unit(selection.value(result)), "used to select the head"),
    ]


def head_name(result: Result) -> str:
    """Return a name such as ``logistic (C=0.1) on vgg16 block5_pool, pooled``."""
    params = f" ({result.params})" if result.params else ""
    layer = "" if result.layer == result.base else f" {result.layer}"
    return printable(f"{result.head}{params} on {result.base}{layer}, {result.input}")
