"""Reads which heads ``--heads`` and ``--head`` name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import get_args

from pipeline.errors import UsageError
from pipeline.heads.config import Input
from pipeline.heads.registry import HEADS

PROTOCOLS = ("kornblith",)  # heads that are a protocol of their own, in none of the groups
# Half a second and more on 2,000 × 512 of two classes; the others take up to 0.6 s.
SLOW = ("dense", "svm_rbf", "random_forest")

CUSTOM_HEAD = re.compile(r"(?P<name>[\w.]+:[\w.]+?)(?::(?P<input>flat|pooled))?")


def groups() -> Mapping[str, tuple[str, ...]]:
    """Names for several heads: ``all`` and ``fast``."""
    every = tuple(name for name in HEADS if name not in PROTOCOLS)
    return {"all": every, "fast": tuple(name for name in every if name not in SLOW)}


@dataclass(frozen=True)
class HeadRequest:
    """A head by name, and its input unless the head's default will do."""

    name: str
    input: Input | None = None

    def __str__(self) -> str:
        """As it is typed: ``knn``, ``dense:pooled`` or ``module:factory:flat``."""
        return ":".join(filter(None, (self.name, self.input)))


def parse_heads(text: str | Iterable[str]) -> list[HeadRequest]:
    """Read ``all``, ``fast``, ``logistic,dense:pooled`` or ``module:factory``, without repeats.

    Raises UsageError for an unknown head or input.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    stripped = filter(None, map(str.strip, words))
    requests = [request for word in stripped for request in _parse_word(word)]
    if not requests:
        raise UsageError(f"--heads names no head; {_choices()}")
    return list(dict.fromkeys(requests))


def parse_custom_head(text: str) -> HeadRequest:
    """Read ``module:factory``, with ``:flat`` or ``:pooled`` or without; else raises UsageError."""
    found = CUSTOM_HEAD.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"--head {text}: expected MODULE:FACTORY, MODULE:FACTORY:flat or MODULE:FACTORY:pooled"
        )
    return HeadRequest(found["name"], _input(found["input"]))


def _parse_word(word: str) -> list[HeadRequest]:
    name, _, wanted = word.partition(":")
    names = groups().get(name) or ((name,) if name in HEADS else ())
    if wanted not in ("", *get_args(Input)):
        if names:
            raise UsageError(f"--heads {word}: the input is flat or pooled, not {wanted!r}")
        return [parse_custom_head(word)]
    if not names:
        close = get_close_matches(name, [*HEADS, *groups()], n=1)
        hint = f"did you mean {close[0]}?" if close else _choices()
        raise UsageError(f"--heads: there is no head {name!r}; {hint}")
    return [HeadRequest(each, _input(wanted)) for each in names]


def _input(word: str | None) -> Input | None:
    return next((kind for kind in get_args(Input) if kind == word), None)


def _choices() -> str:
    return f"choose from {', '.join(groups()['all'])}, all or fast"
