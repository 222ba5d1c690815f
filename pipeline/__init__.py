"""A two-stage feature-caching pipeline for image classification.

Stage one runs a frozen convolutional base once over image folders and caches its features in HDF5;
stage two trains classifiers ("heads") on the cached features and compares them.

Each command has a function: ``from pipeline import extract_features``. `FeatureExtractor` extracts
features inside a scikit-learn pipeline.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import extract_features as extract_features
    from pipeline.api import predict_images as predict_images
    from pipeline.cache.config import ExtractConfig as ExtractConfig
    from pipeline.cache.loading import load_features as load_features
    from pipeline.estimator import FeatureExtractor as FeatureExtractor
    from pipeline.estimator import load_model as load_model
    from pipeline.evaluation.compare import compare_heads as compare_heads
    from pipeline.models.config import PredictConfig as PredictConfig

__version__ = "0.1.0"
_MODULES = {
    "ExtractConfig": "pipeline.cache.config",
    "FeatureExtractor": "pipeline.estimator",
    "PredictConfig": "pipeline.models.config",
    "compare_heads": "pipeline.evaluation.compare",
    "extract_features": "pipeline.api",
    "load_features": "pipeline.cache.loading",
    "load_model": "pipeline.estimator",
    "predict_images": "pipeline.api",
}
__all__ = list(_MODULES)


def _end_if_interrupted(kind: type[BaseException], *error: Any) -> None:
    """Print one line for Ctrl-C during the imports of a command, before `pipeline.cli.run`."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    sys.__excepthook__(kind, *error)


if sys.argv[:1] == ["-m"]:  # python -m pipeline.<command> is starting
    sys.excepthook = _end_if_interrupted


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``--help`` loads no library."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that a notebook offers for completion."""
    return sorted([*globals(), *__all__])
