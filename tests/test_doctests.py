"""The examples in docstrings run and print the documented results."""

import doctest
import importlib
from pathlib import Path

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


def test_examples_of_docstrings_run() -> None:
    """They need ``photos/`` with splits, and a run with its saved head."""
    make_image_folder(Path("photos"), splits=("train", "validation", "test"))
    cache = extract_features("photos", base="pixels", cache_dir="run").table.path
    bundle = compare_heads(cache, heads="logistic", audit=False).shown.bundle
    assert bundle is not None
    Path("results").mkdir()
    save_bundle(bundle, Path("results/logistic.skops"))
    for name in MODULES:
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        assert result.attempted > 0, name
        assert result.failed == 0, name


def test_every_public_name_has_an_example() -> None:
    for name in pipeline.__all__:
        assert ">>> " in (getattr(pipeline, name).__doc__ or ""), name
