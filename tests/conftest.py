"""Fixtures that every test may use: synthetic images, tiny and offline."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_images import make_image_folder

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime
os.environ["PYTHONPATH"] = os.fspath(Path(__file__).parents[1])  # for ``python -m benchmarks.…``

ASSETS = os.environ.get("PIPELINE_TEST_ASSETS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real photographs say why they are skipped where there are none."""
    if ASSETS and Path(ASSETS).is_dir():
        return
    reason = "needs real photographs: set PIPELINE_TEST_ASSETS to the folder with data/, weights/"
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder that holds ``data/`` and ``weights/``; for tests marked real_data."""
    assert ASSETS
    return Path(ASSETS).resolve()


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test stands in an empty folder: cache/, results/ and modules there are its own."""
    monkeypatch.chdir(tmp_path)
    search, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = search
    for name in set(sys.modules) - modules:  # of thousands, few are new
        if Path(getattr(sys.modules[name], "__file__", None) or "").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def synthetic_set(tmp_path: Path) -> Path:
    """``synthetic/`` with train, validation and test of 12 images per class each."""
    return make_image_folder(tmp_path / "synthetic", splits=("train", "validation", "test"))


@pytest.fixture
def synthetic_classes(tmp_path: Path) -> Path:
    """``synthetic/`` with two class folders of 40 images each and no splits."""
    return make_image_folder(tmp_path / "synthetic", per_class=40)
