"""The heads by name. To add one: a class in a file of this folder, a line in `HEADS`."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.heads.head import Head, Input

# name -> class; imported when it is used, so that a run loads only the libraries of its heads
HEADS: Mapping[str, str] = {
    "dense": "pipeline.heads.dense:Dense",
    "logistic": "pipeline.heads.linear:Logistic",
    "linear_svm": "pipeline.heads.linear:LinearSvm",
    "ridge": "pipeline.heads.linear:Ridge",
    "lda": "pipeline.heads.discriminant:Lda",
    "knn": "pipeline.heads.neighbors:Knn",
    "random_forest": "pipeline.heads.forest:RandomForest",
    "naive_bayes": "pipeline.heads.bayes:NaiveBayes",
    "majority": "pipeline.heads.majority:Majority",
}
INPUTS: tuple["Input", ...] = ("flat", "pooled")


@dataclass(frozen=True)
class HeadRequest:
    """A head that was asked for, and its input unless the head's default will do."""

    name: str
    input: "Input | None" = None


def load_head(name: str) -> "Head":
    """The head of that name; imports what it needs."""
    module, _, attribute = HEADS[name].partition(":")
    head: Head = getattr(importlib.import_module(module), attribute)()
    return head


def parse_heads(text: str | Iterable[str]) -> list[HeadRequest]:
    """Read ``all`` or ``logistic,dense:pooled``: NAME, NAME:flat or NAME:pooled, without repeats.

    Raises UsageError for an unknown head or input.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    requests: dict[HeadRequest, None] = {}
    for word in filter(None, (word.strip() for word in words)):
        name, _, wanted = word.partition(":")
        if wanted not in ("", *INPUTS):
            raise UsageError(f"--heads {word}: the input is flat or pooled, not {wanted!r}")
        for each in HEADS if name == "all" else (name,):
            if each not in HEADS:
                raise UsageError(f"--heads: there is no head {name!r}; {_suggestion(name)}")
            requests[HeadRequest(each, next((kind for kind in INPUTS if kind == wanted), None))] = (
                None
            )
    if not requests:
        raise UsageError(f"--heads names no head; choose from {', '.join(HEADS)} or all")
    return list(requests)


def _suggestion(name: str) -> str:
    close = get_close_matches(name, HEADS, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(HEADS)}"
