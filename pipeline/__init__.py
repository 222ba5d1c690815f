"""A two-stage feature-caching pipeline for image classification.

Stage one runs a frozen convolutional base once over image folders and keeps its features in HDF5;
stage two trains classifiers ("heads") on the cached arrays and compares them.

The functions behind the commands are importable: ``from pipeline import extract_features``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import compare_heads, extract_features, load_features

__version__ = "0.1.0"
__all__ = ["compare_heads", "extract_features", "load_features"]


def __getattr__(name: str) -> Any:
    """Import the library on first use, so that ``--help`` answers at once."""
    if name in __all__:
        from pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
