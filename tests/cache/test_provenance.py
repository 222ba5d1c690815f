"""A cache keeps the engine that computed its first rows."""

import numpy as np
import pytest

from pipeline import ExtractConfig
from pipeline.bases.config import BaseConfig
from pipeline.cache import provenance
from pipeline.cache.provenance import open_cache_engine
from pipeline.errors import CannotCreateError, UnreachableError


class FakeEngine:
    version = "2"

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the engines that would be opened."""
    names: list[str] = []

    def open_engine(config: BaseConfig, *_: object, **options: object) -> FakeEngine:
        if config.engine == "onnx":
            raise UnreachableError("onnxruntime is missing: pip install onnxruntime")
        names.append(config.engine)
        return FakeEngine(config.engine)

    monkeypatch.setattr(provenance, "open_engine", open_engine)
    return names


def resume(requested: str, recorded: dict[str, str] | None) -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    open_cache_engine(ExtractConfig(engine=requested), ("block5_pool",), images, recorded)


def test_recorded_engine_continues(opened: list[str]) -> None:
    for requested, recorded, engine in (
        ("auto", None, "auto"),
        ("ncnn", None, "ncnn"),
        ("auto", "ncnn", "ncnn"),
        ("ncnn", "ncnn", "ncnn"),
        ("auto", "tensorflow", "tensorflow"),
    ):
        resume(requested, None if recorded is None else {"name": recorded})
        assert opened.pop() == engine


@pytest.mark.usefixtures("opened")
def test_another_or_an_unknown_engine_is_refused() -> None:
    with pytest.raises(CannotCreateError, match=r"ncnn computed the features.*another --out"):
        resume("onnx", {"name": "ncnn"})
    with pytest.raises(UnreachableError, match=r"openvino computed the features.*another --out"):
        resume("auto", {"name": "openvino"})


@pytest.mark.usefixtures("opened")
def test_another_version_of_the_engine_continues_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for version, warned in (("2", False), ("1", True)):
        caplog.clear()
        resume("auto", {"name": "ncnn", "version": version})
        assert ("ncnn 1 computed the features in this cache; ncnn 2" in caplog.text) == warned


@pytest.mark.usefixtures("opened")
def test_missing_engine_names_what_computed_and_what_to_install() -> None:
    with pytest.raises(UnreachableError, match=r"^onnx computed .*pip install.* another --out$"):
        resume("auto", {"name": "onnx"})
