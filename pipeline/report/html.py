"""report.html of a run: a comparison in one file, without network access or scripts."""

import base64
import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from typing import Any

from markupsafe import Markup

from pipeline.evaluation.audit import tolerate
from pipeline.evaluation.result import Comparison
from pipeline.evaluation.rows import views_suffix
from pipeline.evaluation.splits import IMAGES
from pipeline.evaluation.tasks import TASKS
from pipeline.report import figures, galleries, tables, targets
from pipeline.report.markup import key_metrics, name_text, render
from pipeline.spec import MULTILABEL
from pipeline.text import counted

# facts of a run that other parts of the report show
SHOWN_SEPARATELY = {"created", "versions", "caches", "classes", "command", "folder"}

log = logging.getLogger("pipeline")


def report_html(comparison: Comparison, *, command: str | None, smoothing: float = 0.8) -> str:
    """Return the report; ``command`` is the command line, ``smoothing`` that of `curves.smooth`."""
    task = TASKS.get(comparison.task)
    shown, classes, findings = comparison.shown, comparison.classes, comparison.findings
    sections: list[tuple[str, str, Markup]] = []
    failures = {} if findings is None else dict(findings.failures)

    def fail(anchor: str, line: str) -> None:
        log.warning(line)
        failures[anchor] = line

    def add(anchor: str, title: str, compute: Callable[..., Any], *arguments: Any) -> None:
        """Append a section that has data, or in its place the line that says why it failed."""
        html = None
        if anchor not in failures:  # else the audit has already said so
            with tolerate(f"the section {title} of the report", partial(fail, anchor)):
                data = compute(*arguments)
                html = None if data is None else Markup(render(f"{anchor}.html", data=data))
        if anchor in failures:
            html = Markup('<p class="failed">{}</p>').format(name_text(failures[anchor]))
        if html is not None:
            sections.append((anchor, title, html))

    add("heads", "All heads", tables.heads, comparison)
    add("layers", "Comparison of layers", tables.layers, comparison)
    if task is None:
        add("curves", "Training curves", figures.curves, comparison, smoothing)
        add("confusion", "Errors by class", tables.confusion, shown, classes)
        add("roc", "ROC and precision-recall", figures.roc, shown, classes)
        add("reliability", "Calibration", figures.reliability, shown)
        add("rejection", "None of these", tables.rejection, comparison)
    elif task.name == MULTILABEL:
        add("precision", "Precision by label", targets.precision, shown, classes)
    else:
        add("predicted", "Predicted numbers", targets.predicted, shown, classes[0])
    if findings is not None:
        add("learning", "Learning curve", figures.learning, comparison, findings)
        add("map", "Map of the features", galleries.feature_map, findings)
        if task is None:
            add("mistakes", "Most confident mistakes", galleries.mistakes, comparison, findings)
        else:
            add("worst", "Largest errors", targets.worst, comparison, findings)
        add("suspects", "Likely label errors", galleries.suspects, findings)
        add("duplicates", "Duplicates", galleries.duplicates, comparison, findings)
    add("run", "Settings of this run", _run_facts, comparison.run, command)
    caches = comparison.run.get("caches") or [{}]
    style = resources.files("pipeline.report").joinpath("report.css").read_text("utf-8")
    return render(
        "report.html",
        sections=sections,
        set_name=str(caches[0].get("set", "images")),
        recommendation=comparison.recommendation,
        notices=comparison.notices,
        result=shown.result,
        title="Models" if task else "Classifiers",
        metrics=key_metrics(comparison),
        style=Markup(style),
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
    )


def _run_facts(run: Mapping[str, Any], command: str | None) -> dict[str, Any]:
    """Return the command, versions, seeds and caches of a run; each may be missing."""
    facts = {name: value for name, value in run.items() if name not in SHOWN_SEPARATELY}
    return {
        "command": command,
        "facts": {"date": run.get("created"), **facts, "versions": run.get("versions")},
        "caches": [
            (str(each.get("path", "cache")), _cache_facts(each)) for each in run.get("caches") or ()
        ],
    }


def _cache_facts(cache: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a cache, its features and its splits."""
    nested = ("path", "spec", "split_counts")
    facts = {name: value for name, value in cache.items() if name not in nested}
    facts |= cache.get("spec") or {}
    for split, counts in (cache.get("split_counts") or {}).items():
        views = cache.get("views" if split == "train" else "tta") or 0
        images = counted(sum(counts.values()), "image")
        if tuple(counts) == IMAGES:  # a set without classes
            facts[split] = f"{images}{views_suffix(views)}"
            continue
        classes = counted(len(counts), "class", "classes")
        low, high = min(counts.values(), default=0), max(counts.values(), default=0)
        each = f"{low:,} to {high:,}" if high > low else f"{low:,}"
        facts[split] = f"{images} of {classes}, {each} each{views_suffix(views)}"
    return facts
