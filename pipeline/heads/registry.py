"""The heads by name. To add one: a class in a file of this folder, a line in `HEADS`."""

import importlib
import re
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
    "logistic": "pipeline.heads.logistic:Logistic",
    "linear_svm": "pipeline.heads.linear_svm:LinearSvm",
    "ridge": "pipeline.heads.ridge:Ridge",
    "lda": "pipeline.heads.discriminant:Lda",
    "svm_rbf": "pipeline.heads.svm_rbf:SvmRbf",
    "knn": "pipeline.heads.neighbors:Knn",
    "prototype": "pipeline.heads.prototype:Prototype",
    "random_forest": "pipeline.heads.forest:RandomForest",
    "naive_bayes": "pipeline.heads.bayes:NaiveBayes",
    "majority": "pipeline.heads.majority:Majority",
    "kornblith": "pipeline.heads.logistic:Kornblith",
}
PROTOCOLS = ("kornblith",)  # heads that are a protocol of their own, in none of the groups
# Half a second and more on 2,000 × 512 of two classes; the others take up to 0.4 s.
SLOW = ("dense", "svm_rbf", "random_forest")

ALL = tuple(name for name in HEADS if name not in PROTOCOLS)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": ALL,
    "fast": tuple(name for name in ALL if name not in SLOW),
}
INPUTS: tuple["Input", ...] = ("flat", "pooled")
OWN_HEAD = re.compile(r"(?P<name>[\w.]+:[\w.]+?)(?::(?P<input>flat|pooled))?")
_CHOICES = f"{', '.join(ALL)}, all or fast"


@dataclass(frozen=True)
class HeadRequest:
    """A head that was asked for, and its input unless the head's default will do."""

    name: str
    input: "Input | None" = None

    def __str__(self) -> str:
        """As it is typed: ``knn``, ``dense:pooled`` or ``module:factory:flat``."""
        return ":".join(filter(None, (self.name, self.input)))


def load_head(name: str) -> "Head":
    """The head of that name, or of ``module:factory``; imports what it needs.

    Raises UsageError where a module or factory of the user's own cannot be found.
    """
    if name not in HEADS:
        from pipeline.heads.own import load_own_head

        return load_own_head(name)
    module, _, attribute = HEADS[name].partition(":")
    head: Head = getattr(importlib.import_module(module), attribute)()
    return head


def parse_heads(text: str | Iterable[str]) -> list[HeadRequest]:
    """Read ``all``, ``fast`` or ``logistic,dense:pooled``, without repeats.

    Each word is a NAME or a MODULE:FACTORY of the user's own, either with ``:flat`` or ``:pooled``
    behind it.

    Raises UsageError for an unknown head or input.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    requests = [
        request
        for word in filter(None, (word.strip() for word in words))
        for request in _parse_word(word)
    ]
    if not requests:
        raise UsageError(f"--heads names no head; choose from {_CHOICES}")
    return list(dict.fromkeys(requests))


def parse_own_head(text: str) -> HeadRequest:
    """Read ``module:factory``, ``module:factory:flat`` or ``module:factory:pooled``.

    Raises UsageError for anything else.
    """
    found = OWN_HEAD.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"--head {text}: expected MODULE:FACTORY, MODULE:FACTORY:flat or MODULE:FACTORY:pooled"
        )
    return HeadRequest(found["name"], _input(found["input"]))


def _parse_word(word: str) -> list[HeadRequest]:
    name, _, wanted = word.partition(":")
    names = GROUPS.get(name) or ((name,) if name in HEADS else ())
    if wanted not in ("", *INPUTS):
        if names:
            raise UsageError(f"--heads {word}: the input is flat or pooled, not {wanted!r}")
        return [parse_own_head(word)]
    if not names:
        raise UsageError(f"--heads: there is no head {name!r}; {_suggestion(name)}")
    return [HeadRequest(each, _input(wanted)) for each in names]


def _input(word: str | None) -> "Input | None":
    return next((kind for kind in INPUTS if kind == word), None)


def _suggestion(name: str) -> str:
    close = get_close_matches(name, [*HEADS, *GROUPS], n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {_CHOICES}"
