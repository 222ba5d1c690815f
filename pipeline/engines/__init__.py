"""Who computes the features: one protocol, several engines.

TensorFlow is the reference; another engine is used only after it gave the same numbers for some of
the user's own images (`pipeline.engines.trials`).
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.bases.config import RUNTIMES, TENSORFLOW, BaseConfig
from pipeline.bases.registry import PIXELS
from pipeline.bases.weights import known_digest, remember_digest


class Engine(Protocol):
    """Computes features of images.

    Attributes
    ----------
    name : recorded with the cache, e.g. ``tensorflow``.
    version : of the library that computes.
    weights : digest of the weights in use, as `pipeline.bases.weights` defines it.
    row_shapes : layer key -> shape of one row, (H, W, C) or (C,).
    error : layer -> largest relative error against TensorFlow that was measured, L2 norm of a row;
        empty for TensorFlow itself.
    calls_at_once : how many threads may call it at a time, and to some use.
    """

    name: str
    version: str
    weights: str
    row_shapes: Mapping[str, tuple[int, ...]]
    error: Mapping[str, float]
    calls_at_once: int

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """(B, H, W, 3) uint8 RGB -> layer key -> (B, *row shape) float32."""
        ...


def open_engine(
    config: BaseConfig,
    layers: Sequence[str],
    *,
    images: npt.NDArray[np.uint8] | None = None,
) -> Engine:
    """Choose and open an engine; takes seconds where TensorFlow is loaded.

    Parameters
    ----------
    config : its ``engine`` is the one to open, or ``auto`` for the fastest of those that agree with
        TensorFlow.
    layers : layer keys, see `pipeline.spec.layer_key`.
    images : (n, S, S, 3) uint8 RGB, some of those that are to be computed, to try engines on which
        this machine has not tried yet. None: those stay out, and TensorFlow computes.

    Raises UsageError for an unknown layer, UnreachableError for an engine that is not installed,
    BadDataError for one asked for that does not agree with TensorFlow, and whatever
    `pipeline.bases.build.build_base` raises.
    """
    if config.network.name == PIXELS:
        from pipeline.engines.pixels import PixelsEngine

        return PixelsEngine(image_size=config.size, layers=layers)
    if config.engine != TENSORFLOW:
        from pipeline.engines.trials import choose, open_proven

        weights = name_weights(config)
        trial = choose(config, layers, weights, images)
        if trial is not None:
            return open_proven(config, layers, weights, trial)
    from pipeline.engines.tensorflow import TensorFlowEngine

    return TensorFlowEngine(config, layers)


def is_installed(engine: str) -> bool:
    """Whether something is the name of an engine, and that is here."""
    if engine == TENSORFLOW:
        return True
    try:
        return engine in RUNTIMES and bool(version(RUNTIMES[engine]))
    except PackageNotFoundError:
        return False


def name_weights(config: BaseConfig) -> str:
    """The digest of the weights; a process of its own loads ImageNet weights never met before."""
    digest = known_digest(config)
    if digest is None:
        from pipeline.engines.worker import in_own_process

        digest = str(in_own_process("name_weights", config)["weights"])
        remember_digest(digest, config)
    return digest
