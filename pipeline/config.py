"""Options as fields of a config: the command's parser, the API's parameters and their documentation
come from one frozen dataclass::

    @documented
    @dataclass(frozen=True, kw_only=True)
    class TrainConfig(Config):
        '''How a head is trained.'''

        epochs: int = option(30, type=whole_number, metavar="N", help="at most")
        layers: Sequence[str] = option((), flag="--layer", help="repeatable")  # a list
        audit: bool = option(True, flag="--no-audit", help="skip the audit")  # --no-audit
        kernel: str | Kernel = option("linear", flag="", help="...")  # for the API alone

    cli.add_options(parser, TrainConfig)  # one option of the parser for each field
    config = cli.config_from(arguments, TrainConfig)  # the parsed arguments as a config

A config is checked when it is made: choices, whole numbers. A subclass that checks more does so in
``__post_init__``, after ``super().__post_init__()``.
"""

import argparse
import inspect
import operator
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UsageError

Class = TypeVar("Class", bound=type)


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

    The default False or True makes a switch, ``()`` a repeatable option, None with the type bool
    ``--name`` and ``--no-name``. ``flag`` is by default the field's name with hyphens, ``""`` means
    no option; ``type`` that of a default number or path, else str, and a config converts str, int
    and Path, too; ``group`` is ``title`` or ``title: description`` in ``--help``.
    """
    if type is None and isinstance(default, int | float | Path) and not isinstance(default, bool):
        type = Path if isinstance(default, Path) else default.__class__
    settings = {"help": help, "flag": flag, "type": type, "choices": choices}
    return field(default=default, metadata={**settings, "metavar": metavar, "group": group})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fields that are made by `option`, checked; see the module for an example."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, kind = getattr(self, each.name), each.metadata.get("type")
            choices = each.metadata.get("choices")
            if value is None:
                continue
            if choices and value not in choices:
                known = ", ".join(choices)
                raise UsageError(f"{flag_of(each)} is one of {known}; received {value!r}")
            if kind in (str, Path):
                object.__setattr__(self, each.name, kind(value))
            elif kind is int:
                try:  # NumPy's integers become Python's, which JSON has
                    object.__setattr__(self, each.name, operator.index(value))
                except TypeError as error:
                    message = f"{each.name} is a whole number; received {value!r}"
                    raise UsageError(message) from error


def flag_of(each: Any) -> str:
    """The option of a dataclass field: ``image_size`` -> ``--image-size``; may be empty."""
    flag = each.metadata.get("flag", "")
    return f"--{each.name.replace('_', '-')}" if flag is None else str(flag)


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


# argparse shows these names when a value is no number at all
def whole_number(text: str) -> int:
    """An integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text}")
    return value


def count(text: str) -> int:
    """An integer from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, received {text}")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text}")
    return value


def fraction(text: str) -> float:
    """A number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, received {text}")
    return value
