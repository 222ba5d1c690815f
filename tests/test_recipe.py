"""A cache keeps the engine that it was begun with, unless the user allows others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import recipe as recipe_module
from pipeline.bases.registry import find_base
from pipeline.bases.weights import WeightsChoice
from pipeline.engines import EngineRequest
from pipeline.errors import CannotCreateError, UnreachableError, UsageError
from pipeline.recipe import Recipe

IMAGES = np.zeros((1, 32, 32, 3), np.uint8)


def recipe(**options: Any) -> Recipe:
    settings: dict[str, Any] = {
        "base": find_base("vgg16"),
        "image_size": 32,
        "preprocessing": "native",
        "resize": "squash",
        "dtype": "float32",
        "weights": WeightsChoice("random"),
        "cache_folder": Path("cache"),
        "batch_size": 8,
    }
    return Recipe(**(settings | options))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that were asked for, none of which is opened."""
    names: list[str] = []

    def open_engine(request: EngineRequest, *, engine: str, images: np.ndarray) -> SimpleNamespace:
        names.append(engine)
        return SimpleNamespace(name=engine, version="2")

    monkeypatch.setattr(recipe_module, "open_engine", open_engine)
    return names


@pytest.mark.parametrize(
    ("wanted", "recorded", "mixed", "engine"),
    [
        ("auto", None, False, "auto"),
        ("onnx", None, False, "onnx"),
        ("auto", "ncnn", False, "ncnn"),
        ("ncnn", "ncnn", False, "ncnn"),
        ("auto", "tensorflow", False, "tensorflow"),
        ("onnx", "ncnn", True, "onnx"),
        ("auto", "ncnn", True, "auto"),
        ("auto", "openvino", True, "auto"),
    ],
)
def test_recorded_engine_goes_on(
    asked: list[str], wanted: str, recorded: str | None, mixed: bool, engine: str
) -> None:
    made = recipe(engine_name=wanted, mix_engines=mixed)
    made.engine(("block5_pool",), IMAGES, None if recorded is None else {"name": recorded})
    assert asked == [engine]


@pytest.mark.usefixtures("asked")
def test_another_engine_is_refused() -> None:
    with pytest.raises(CannotCreateError, match=r"ncnn computed the features.*--mix-engines"):
        recipe(engine_name="onnx").engine(("block5_pool",), IMAGES, {"name": "ncnn"})


@pytest.mark.usefixtures("asked")
def test_engine_that_nobody_knows_here_is_refused() -> None:
    with pytest.raises(UnreachableError, match=r"openvino computed the features.*--mix-engines"):
        recipe().engine(("block5_pool",), IMAGES, {"name": "openvino"})


def test_engine_is_checked_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="--engine is one of auto, tensorflow, onnx, ncnn"):
        recipe(engine_name="keras")


def test_another_version_of_the_engine_goes_on_and_says_so(
    asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for version, told in (("2", False), ("1", True)):
        caplog.clear()
        recipe().engine(("block5_pool",), IMAGES, {"name": "ncnn", "version": version})
        assert ("ncnn 1 computed the features that are there, 2 goes on" in caplog.text) == told


def test_cure_is_for_what_the_user_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise UnreachableError("ncnn is missing: pip install ncnn")

    monkeypatch.setattr(recipe_module, "open_engine", missing)
    with pytest.raises(UnreachableError, match=r"^ncnn computed .*pip install.* --mix-engines$"):
        recipe().engine(("block5_pool",), IMAGES, {"name": "ncnn", "version": "1"})
