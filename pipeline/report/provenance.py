"""The section that says what exactly was run."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.evaluation.rows import times_views
from pipeline.report.markup import Markup, Section, element, joined, name_of, name_text
from pipeline.text import counted

# of results.json's "run": what has a place of its own here
TOLD_APART = {"created", "versions", "caches", "classes", "command", "folder"}


def run_section(run: Mapping[str, Any], command: str | None) -> Section:
    """Command, versions, seeds, caches with their fingerprints and splits; all may be missing."""
    facts = [
        ("date", run.get("created")),
        *((key, value) for key, value in run.items() if key not in TOLD_APART),
        ("versions", run.get("versions")),
    ]
    typed = None
    if command is not None:
        typed = element("pre", element("code", name_text(command)))
    caches = (
        joined(element("h3", name_of(str(cache.get("path", "cache")))), _facts(_of_cache(cache)))
        for cache in run.get("caches") or ()
    )
    return Section("run", "What exactly was run", joined(typed, _facts(facts), *caches))


def _of_cache(cache: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """A cache's facts: its own, what its features are, how many images each split has."""
    apart = ("path", "spec", "split_counts")
    yield from ((key, value) for key, value in cache.items() if key not in apart)
    yield from (cache.get("spec") or {}).items()
    for split, counts in (cache.get("split_counts") or {}).items():
        views = cache.get("views" if split == "train" else "tta") or 0
        yield split, f"{_counts_text(counts)}{times_views(views)}"


def _counts_text(counts: Mapping[str, int]) -> str:
    """``1,000 images of 2 classes, 400 to 600 each``."""
    images = counted(sum(counts.values()), "image")
    classes = counted(len(counts), "class", "classes")
    low, high = min(counts.values(), default=0), max(counts.values(), default=0)
    return f"{images} of {classes}, {low:,}{f' to {high:,}' if high > low else ''} each"


def _facts(facts: Iterable[tuple[str, Any]]) -> Markup:
    """A list of names and values; without those that are empty or not set."""
    entries = (
        element(
            "div",
            element("dt", name_text(name.replace("_", " "))),
            element("dd", name_text(_value(value))),
        )
        for name, value in facts
        if value is not None and value not in ("", [], {})
    )
    return element("dl", *entries, class_="facts")


def _value(value: Any) -> str:
    """A value of results.json for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
