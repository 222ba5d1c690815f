"""results/<run>/report.html: one file that shows a comparison, with no network and no script."""

import base64
import hashlib
from importlib import resources
from pathlib import Path

from pipeline.evaluation.result import Comparison
from pipeline.evaluation.table import percent
from pipeline.report.figures import (
    curves_section,
    learning_section,
    ranking_section,
    reliability_section,
)
from pipeline.report.galleries import (
    duplicates_section,
    map_section,
    mistakes_section,
    suspects_section,
)
from pipeline.report.markup import (
    Content,
    Markup,
    Section,
    chosen_by,
    element,
    joined,
    name_of,
    name_text,
)
from pipeline.report.provenance import run_section
from pipeline.report.tables import confusion_section, layers_section, table_section


def write_report(
    comparison: Comparison, path: Path, *, command: str | None, smoothing: float = 0.8
) -> None:
    """Write the report of a comparison.

    Parameters
    ----------
    command : what was typed; None where it was called from Python.
    smoothing : factor of the moving average in the training curves, 0 for none.
    """
    path.write_text(report_html(comparison, command=command, smoothing=smoothing), "utf-8")


def report_html(comparison: Comparison, *, command: str | None, smoothing: float = 0.8) -> str:
    """The report as one HTML document; see `write_report`."""
    shown, classes, findings = comparison.shown, comparison.classes, comparison.findings
    found = [
        table_section(comparison),
        layers_section(comparison),
        curves_section(comparison, smoothing),
        confusion_section(shown, classes),
        ranking_section(shown, classes),
        reliability_section(shown),
        learning_section(comparison),
    ]
    if findings is not None:
        galleries = (map_section, mistakes_section, suspects_section, duplicates_section)
        found += [section(comparison, findings) for section in galleries]
    found.append(run_section(comparison.run, command))
    return _page(comparison, [section for section in found if section is not None])


def _page(comparison: Comparison, found: list[Section]) -> str:
    caches = comparison.run.get("caches") or [{}]
    set_name = str(caches[0].get("set", "images"))
    style = resources.files("pipeline.report").joinpath("report.css").read_text("utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{name_text(set_name)}: which classifier"),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        element("a", "Skip to the table", href="#heads", class_="skip"),
        _header(comparison, set_name),
        _navigation(found),
        element("main", *map(_section, found)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _policy(style: str) -> str:
    """Nothing but this very style sheet and pictures that stand in the file itself."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        f"form-action 'none'"
    )


def _header(comparison: Comparison, set_name: str) -> Markup:
    notices = [
        element("li", element("strong", "Note: "), name_text(notice))
        for notice in comparison.notices
    ]
    return element(
        "header",
        element("h1", "Which classifier for ", name_of(set_name)),
        element("p", name_text(comparison.recommendation), class_="recommendation"),
        element("ul", *notices, class_="notices") if notices else None,
        _key_figures(comparison),
    )


def _key_figures(comparison: Comparison) -> Markup:
    result = comparison.shown.result
    measure, value_of = chosen_by(comparison)
    interval = f"{percent(result.test_low)} to {percent(result.test_high)}"
    figures: list[tuple[str, Content, Content]] = [
        ("test accuracy", f"{percent(result.test_accuracy)} %", f"95 %: {interval}"),
        (measure, f"{percent(value_of(result))} %", "chosen by this"),
        ("head", name_of(result.head), name_text(result.params) or None),
        ("features", name_of(result.base), name_text(f"{result.layer}, {result.input}")),
    ]
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", title),
                element("dd", element("b", value), element("small", note)),
            )
            for title, value, note in figures
        ),
        class_="key",
    )


def _navigation(found: list[Section]) -> Markup:
    links = (
        element("li", element("a", section.title, href=f"#{section.anchor}")) for section in found
    )
    return element("nav", element("ul", *links), aria_label="Sections")


def _section(section: Section) -> Markup:
    heading = element("h2", section.title, id=f"{section.anchor}-title")
    return element(
        "section",
        joined(heading, section.body),
        id=section.anchor,
        aria_labelledby=f"{section.anchor}-title",
    )
