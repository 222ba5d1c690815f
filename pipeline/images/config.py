"""`AugmentConfig`: the options that decide what random views are drawn from."""

from dataclasses import dataclass
from typing import Any

from pipeline.config import Config, option

_GROUP = "what views are drawn from: a policy; the other flags change parts of it"


def _part(metavar: str, text: str) -> Any:
    """A range of the policy, replaced."""
    return option(None, type=float, metavar=metavar, help=text, group=_GROUP)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Config):
    """The parameters of `pipeline.images.views.choose_augmentation`."""

    policy: str = option(
        "book",
        flag="--augment",
        choices=("light", "book", "strong"),
        help="default: %(default)s",
        group=_GROUP,
    )
    rotation: float | None = _part("DEGREES", "the book: 40")
    shift: float | None = _part("SHARE", "of width and height; the book: 0.2")
    shear: float | None = _part("DEGREES", "the book: 0.2")
    zoom: float | None = _part("SHARE", "the book: 0.2")
    jitter: float | None = _part("SHARE", "of colours; the book: 0")
    flip: bool | None = option(
        None, type=bool, help="mirror every other view, or none", group=_GROUP
    )
