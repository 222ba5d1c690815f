"""The examples in docstrings run and give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest
from synthetic_images import make_image_folder

import pipeline
from pipeline import compare_heads, extract_features
from pipeline.models.bundle import save_bundle

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "pipeline").rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.fixture
def _photos() -> None:
    """What the examples speak of: ``photos/`` with splits, and a run with its saved head."""
    make_image_folder(Path("photos"), splits=("train", "validation", "test"))
    cache = extract_features("photos", base="pixels", cache_dir="run").table.path
    bundle = compare_heads(cache, heads="logistic", audit=False).shown.bundle
    assert bundle is not None
    Path("results").mkdir()
    save_bundle(bundle, Path("results/logistic.skops"))


@pytest.mark.usefixtures("_photos")
@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_everything_that_a_notebook_imports_has_an_example() -> None:
    for name in pipeline.__all__:
        assert ">>> " in (getattr(pipeline, name).__doc__ or ""), name
