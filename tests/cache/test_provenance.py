"""A cache keeps the engine that it was begun with."""

from typing import Any

import numpy as np
import pytest

from pipeline import ExtractConfig
from pipeline.bases.config import BaseConfig
from pipeline.cache import provenance
from pipeline.cache.provenance import continue_engine
from pipeline.errors import CannotCreateError, UnreachableError


class FakeEngine:
    version = "2"

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that were asked for, none of which is opened."""
    names: list[str] = []

    def open_engine(config: BaseConfig, layers: object, *, images: np.ndarray) -> FakeEngine:
        names.append(config.engine)
        return FakeEngine(config.engine)

    monkeypatch.setattr(provenance, "open_engine", open_engine)
    return names


def go_on(wanted: str, recorded: dict[str, str] | None) -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    continue_engine(ExtractConfig(engine=wanted), ("block5_pool",), images, recorded)


@pytest.mark.parametrize(
    ("wanted", "recorded", "engine"),
    [
        ("auto", None, "auto"),
        ("onnx", None, "onnx"),
        ("auto", "ncnn", "ncnn"),
        ("ncnn", "ncnn", "ncnn"),
        ("auto", "tensorflow", "tensorflow"),
    ],
)
def test_recorded_engine_goes_on(
    asked: list[str], wanted: str, recorded: str | None, engine: str
) -> None:
    go_on(wanted, None if recorded is None else {"name": recorded})
    assert asked == [engine]


@pytest.mark.usefixtures("asked")
def test_another_engine_is_refused() -> None:
    with pytest.raises(CannotCreateError, match=r"ncnn computed the features.*another --out"):
        go_on("onnx", {"name": "ncnn"})


@pytest.mark.usefixtures("asked")
def test_engine_that_nobody_knows_here_is_refused() -> None:
    with pytest.raises(UnreachableError, match=r"openvino computed the features.*another --out"):
        go_on("auto", {"name": "openvino"})


def test_another_version_of_the_engine_goes_on_and_says_so(
    asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for version, told in (("2", False), ("1", True)):
        caplog.clear()
        go_on("auto", {"name": "ncnn", "version": version})
        assert ("ncnn 1 computed the features that are there, 2 goes on" in caplog.text) == told


def test_cure_is_for_what_the_user_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise UnreachableError("ncnn is missing: pip install ncnn")

    monkeypatch.setattr(provenance, "open_engine", missing)
    with pytest.raises(UnreachableError, match=r"^ncnn computed .*pip install.* another --out$"):
        go_on("auto", {"name": "ncnn", "version": "1"})
