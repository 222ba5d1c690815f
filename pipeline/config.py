"""Options as fields of a config: one frozen dataclass defines the options of a command, the
parameters of the API and their documentation::

    @documented
    @dataclass(frozen=True, kw_only=True)
    class TrainConfig(Config):
        '''How a head is trained.'''

        epochs: int = option(30, type=whole_number, help="maximum number")
        layers: Sequence[str] = option((), flag="--layer", help="repeatable")  # list
        audit: bool = option(True, flag="--no-audit", help="skip the audit")  # --no-audit
        kernel: str | Kernel = option("linear", flag="", help="...")  # API only

    cli.add_options(parser, TrainConfig)  # one option of the parser for each field
    config = cli.config_from(arguments, TrainConfig)  # the parsed arguments as a config

Creating a config checks choices and whole numbers. A subclass checks more in ``__post_init__``,
after ``super().__post_init__()``.
"""

import argparse
import contextlib
import inspect
import math
import operator
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UsageError

Class = TypeVar("Class", bound=type)
Number = TypeVar("Number", int, float)


def option(
    default: Any,
    *,
    help: str,
    flag: str | None = None,
    type: Callable[[str], Any] | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    group: str = "",
) -> Any:
    """Declare a field of a config that is also an option of a command.

    A default of False or True makes a switch, ``()`` a repeatable option; None with ``type=bool``
    makes ``--name`` and ``--no-name``. ``flag`` defaults to the field's name with hyphens; ``""``
    means no option. ``type`` defaults to that of a default number or path, else to str; creating a
    config converts values of types str, int and Path. ``metavar`` defaults to N for integers.
    ``group`` is ``title`` or ``title: description`` in ``--help``.
    """
    if type is None and isinstance(default, int | float | Path) and not isinstance(default, bool):
        type = Path if isinstance(default, Path) else default.__class__
    if metavar is None and type in (int, whole_number, count):
        metavar = "N"
    settings = {"help": help, "flag": flag, "type": type, "choices": choices}
    return field(default=default, metadata={**settings, "metavar": metavar, "group": group})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base class of configs: check the fields that `option` declares, see the module docstring."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, kind = getattr(self, each.name), each.metadata.get("type")
            choices = each.metadata.get("choices")
            if value is None:
                continue
            if choices and value not in choices:
                expected = ", ".join(choices)
                raise UsageError(f"{flag_of(each)} is one of {expected}; received {value!r}")
            if kind in (str, Path):
                object.__setattr__(self, each.name, kind(value))
            elif kind is int:
                try:  # JSON cannot contain NumPy integers
                    object.__setattr__(self, each.name, operator.index(value))
                except TypeError as error:
                    message = f"{each.name} is a whole number; received {value!r}"
                    raise UsageError(message) from error


def flag_of(field: Any) -> str:
    """Return the option of a dataclass field: ``image_size`` -> ``--image-size``; may be empty."""
    flag = field.metadata.get("flag", "")
    return f"--{field.name.replace('_', '-')}" if flag is None else str(flag)


def documented(config: Class) -> Class:
    """Add the fields of a config to its docstring, as scikit-learn documents parameters."""
    text = inspect.cleandoc(config.__doc__ or "")
    head, examples, tail = text.partition("Examples\n----")
    lines = [head.rstrip(), "", "Parameters", "----------"]
    for each in fields(config):
        kind = each.type if isinstance(each.type, str) else inspect.formatannotation(each.type)
        kind = kind.replace("pathlib.", "").replace("collections.abc.", "")
        if choices := each.metadata.get("choices"):
            kind = f"{{{', '.join(map(repr, choices))}}}"
        default = str(each.default) if isinstance(each.default, Path) else each.default
        lines.append(f"{each.name} : {kind}, default={default!r}")
        text = each.metadata.get("help", "") % {"default": each.default}
        wrapped = textwrap.fill(f"{text[:1].upper()}{text[1:]}.", 88)
        lines.append(textwrap.indent(wrapped, "    "))
    config.__doc__ = "\n".join([*lines, "", examples + tail])
    return config


def path_argument(text: str) -> Path:
    """Parse a path; an empty one is an error, as it would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty: is a variable unset?")
    return Path(text)


def whole_number(text: str) -> int:
    """Parse an integer from 1."""
    return _parse(text, int, lambda value: value >= 1, "a whole number from 1")


def count(text: str) -> int:
    """Parse an integer from 0."""
    return _parse(text, int, lambda value: value >= 0, "a whole number from 0")


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    return _parse(text, float, lambda value: 0 < value < math.inf, "a number above 0")


def fraction(text: str) -> float:
    """Parse a number from 0 to below 1."""
    return _parse(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _parse(
    text: str, kind: Callable[[str], Number], is_valid: Callable[[Number], bool], expected: str
) -> Number:
    with contextlib.suppress(ValueError):
        value = kind(text)
        if is_valid(value):
            return value
    raise argparse.ArgumentTypeError(f"expected {expected}, received {text!r}")
