"""One dataclass defines the options of a command, the parameters and their documentation."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import cli
from pipeline.config import Config, documented, option, whole_number
from pipeline.errors import UsageError


@documented
@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a head is trained."""

    epochs: int = option(30, type=whole_number, metavar="N", help="at most")
    image_size: int | None = option(None, type=int, group="the base", help="in pixels")
    layers: Sequence[str] = option((), flag="--layer", help="repeatable")
    mode: str = option("fast", choices=("fast", "exact"), help="how (default: %(default)s)")
    strict: bool = option(False, help="stop at the first error")
    audit: bool = option(True, flag="--no-audit", help="skip the audit")
    flip: bool | None = option(None, type=bool, help="mirror")
    out: Path | None = option(None, type=Path, help="a file")
    folder: Path = option(Path("cache"), help="where files go")
    patience: int = option(5, help="epochs")
    kernel: object = option("linear", flag="", help="for the API alone")


def parsed(*words: str, **values: Any) -> TrainConfig:
    parser = argparse.ArgumentParser()
    cli.add_options(parser, TrainConfig)
    return cli.config_from(parser.parse_args(words), TrainConfig, **values)


def test_no_options_give_the_defaults() -> None:
    assert parsed() == TrainConfig(layers=[])


def test_options_set_the_fields() -> None:
    words = "--epochs 3 --image-size 64 --layer a --layer b --mode exact --strict --no-audit"
    assert parsed(*words.split(), "--no-flip", "--out", "x.h5", kernel=1) == TrainConfig(
        epochs=3, image_size=64, layers=["a", "b"], mode="exact", strict=True, audit=False,
        flip=False, out=Path("x.h5"), kernel=1,
    )  # fmt: skip


def test_values_of_the_caller_override_those_of_the_command() -> None:
    assert parsed("--epochs", "3", epochs=5).epochs == 5


def test_excluded_fields_are_not_options() -> None:
    parser = argparse.ArgumentParser()
    cli.add_options(parser, TrainConfig, exclude=["mode", "epochs"])
    text = parser.format_help()
    assert "--image-size" in text
    assert not {"--mode", "--epochs", "--kernel"} & set(text.split())


def test_invalid_values_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"^--mode is one of fast, exact; received 'slow'$"):
        TrainConfig(mode="slow")
    with pytest.raises(UsageError, match=r"^image_size is a whole number; received 1\.5$"):
        TrainConfig(image_size=1.5)  # type: ignore[arg-type]


def test_values_become_plain_python() -> None:
    values: dict[str, Any] = {"image_size": np.int64(64), "patience": np.int64(3)}
    config = TrainConfig(out="x.h5", folder="x", **values)  # type: ignore[arg-type]
    assert type(config.image_size) is type(config.patience) is int
    assert (config.out, config.folder) == (Path("x.h5"), Path("x"))


def test_options_have_the_type_of_their_default() -> None:
    config = parsed("--patience", "3", "--folder", "x")
    assert (config.patience, config.folder) == (3, Path("x"))


def test_fields_are_documented_as_parameters() -> None:
    text = str(TrainConfig.__doc__)
    assert text.startswith(
        "How a head is trained.\n\nParameters\n----------\nepochs : int, default="
    )
    assert "mode : {'fast', 'exact'}, default='fast'\n    How (default: fast).\n" in text
    assert "image_size : int | None, default=None\n    In pixels.\n" in text
