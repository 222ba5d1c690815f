"""The values of ``--heads`` and ``--head``: names, groups and inputs of heads."""

import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from typing import get_args

from pipeline.errors import UsageError
from pipeline.heads.config import Input
from pipeline.heads.registry import HEADS, NOVELTY_HEADS, TARGET_HEADS
from pipeline.spec import CLASSES

PROTOCOLS = ("kornblith",)  # evaluation protocols; no group contains them
# The slowest on 2,000 × 512 features of two classes; the others take at most 0.6 s.
SLOW = ("dense", "svm_rbf", "random_forest", "novelty")
NOT_NETWORKS = ("svm_rbf", "knn", "random_forest", "naive_bayes")  # no Keras layer equals them

AGAINST = "not "  # in the name of the class of all images that are not normal

CUSTOM_HEAD = re.compile(r"(?P<name>[\w.]+:[\w.]+?)(?::(?P<input>flat|pooled))?")


def groups(task: str = CLASSES, *, has_normal: bool = False) -> Mapping[str, tuple[str, ...]]:
    """Return the groups of a task's heads, ``all`` and ``fast``, with the names in each.

    With a normal class they include the heads that learn from it alone.
    """
    heads = HEADS if task == CLASSES else TARGET_HEADS[task]
    names = tuple(name for name in heads if name not in PROTOCOLS)
    if has_normal:
        names += tuple(NOVELTY_HEADS)
    return {"all": names, "fast": tuple(name for name in names if name not in SLOW)}


def classes_of_normal(normal: str) -> tuple[str, str]:
    """Return the classes of a comparison with a normal class: ``good`` and ``not good``."""
    return normal, AGAINST + normal


@dataclass(frozen=True)
class HeadRequest:
    """The name of a head and its input; None for the head's default input."""

    name: str
    input: Input | None = None

    def __str__(self) -> str:
        """Return the text of the option: ``knn``, ``dense:pooled`` or ``module:factory:flat``."""
        return ":".join(filter(None, (self.name, self.input)))


def parse_heads(
    text: str | Iterable[str], task: str | None = CLASSES, *, has_normal: bool = False
) -> list[HeadRequest]:
    """Parse ``all``, ``fast``, ``logistic,dense:pooled`` or ``module:factory``; drop repeats.

    Raises UsageError for a head that the task does not have (None: that no task has) or that needs
    a normal class, or an unknown input.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    stripped = filter(None, map(str.strip, words))
    requests = [request for word in stripped for request in _parse_word(word, task, has_normal)]
    if not requests:
        raise UsageError(f"--heads is empty; {_list_choices(task)}")
    return list(dict.fromkeys(requests))


def parse_custom_head(text: str) -> HeadRequest:
    """Parse ``module:factory[:flat|:pooled]``; raises UsageError for other text."""
    match = CUSTOM_HEAD.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--head {text}: expected MODULE:FACTORY, MODULE:FACTORY:flat or MODULE:FACTORY:pooled"
        )
    return HeadRequest(match["name"], _parse_input(match["input"]))


def check_importable(request: HeadRequest) -> None:
    """Raise UsageError if the package of a custom head is not installed, without an import."""
    module, is_custom, _ = request.name.partition(":")
    package = module.partition(".")[0]
    if not (is_custom and package) or package in sys.modules:
        return
    # the current folder may not be on the path of the process
    if not (importlib.util.find_spec(package) or PathFinder.find_spec(package, [str(Path.cwd())])):
        raise UsageError(
            f"--head {request}: there is no module {package} in {Path.cwd()} or among the "
            f"installed packages: run the command where {package}.py is"
        )


def _parse_word(word: str, task: str | None, has_normal: bool) -> list[HeadRequest]:
    name, _, input_name = word.partition(":")
    if name in NOVELTY_HEADS and not has_normal:
        raise UsageError(
            f"--heads: {name} learns from one class, that of normal images: name it with --normal"
        )
    heads = TARGET_HEADS | {CLASSES: HEADS | NOVELTY_HEADS}
    known = {each for table in heads.values() for each in table}
    of_task = heads[task] if task else known
    group = groups(task or CLASSES, has_normal=has_normal).get(name)
    names = group or ((name,) if name in of_task else ())
    if input_name not in ("", *get_args(Input)):
        if names:
            raise UsageError(f"--heads {word}: expected flat or pooled; received {input_name!r}")
        return [parse_custom_head(word)]
    if not names:
        if name in known:
            raise UsageError(f"--heads: {name} is no head for {task}; {_list_choices(task)}")
        close = get_close_matches(name, [*known, *groups()], n=1)
        hint = f"did you mean {close[0]}?" if close else _list_choices(task)
        raise UsageError(f"--heads: unknown head {name!r}; {hint}")
    return [HeadRequest(each, _parse_input(input_name)) for each in names]


def _parse_input(word: str | None) -> Input | None:
    return next((kind for kind in get_args(Input) if kind == word), None)


def _list_choices(task: str | None) -> str:
    return f"choose from {', '.join(groups(task or CLASSES)['all'])}, all or fast"
