"""The protocol of the engines, which compute features, and the choice of an engine.

TensorFlow is the reference; another engine is used only after it computes the same numbers for some
of the user's images (`pipeline.engines.trials`). A .onnx file has ONNX Runtime without optimisation
as its reference (`pipeline.engines.onnx_rewriter`).
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.bases.config import RUNTIMES, TENSORFLOW, BaseConfig
from pipeline.bases.package_index import fetch_imagenet
from pipeline.bases.registry import PIXELS
from pipeline.bases.weights import file_digest, known_digest, remember_digest
from pipeline.errors import UsageError
from pipeline.spec import split_layer_key

SAMPLE_IMAGES = 8  # number of images that engines are tried on


class Engine(Protocol):
    """An open base that computes features of images.

    Attributes
    ----------
    name, version : recorded in the cache.
    weights : digest of the weights, as `pipeline.bases.weights` defines it.
    row_shapes : layer key -> shape of one row, (H, W, C) or (C,).
    error : layer -> largest `relative_errors` against TensorFlow; empty for TensorFlow itself.
    calls_at_once : number of threads that should call it at the same time.
    """

    name: str
    version: str
    weights: str
    row_shapes: Mapping[str, tuple[int, ...]]
    error: Mapping[str, float]
    calls_at_once: int

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Compute the rows of each layer key: (B, H, W, 3) uint8 RGB -> (B, *row shape) float32."""
        ...


def open_engine(
    config: BaseConfig,
    layers: Sequence[str],
    *,
    images: npt.NDArray[np.uint8] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Engine:
    """Choose and open an engine for layer keys; takes seconds if it imports TensorFlow.

    ``auto`` chooses the fastest engine that agrees with TensorFlow. Engines without a trial on this
    machine are tried on ``images``, (n, S, S, 3) uint8 RGB; without images, TensorFlow is used.
    ``progress`` receives the numbers of engines tried and to try.

    Raises UsageError for an unknown layer, UnreachableError for an engine that is not installed,
    BadDataError for one that does not agree with TensorFlow, and the errors of `build_base`.
    """
    if config.network.name == PIXELS:
        return PixelsEngine(image_size=config.size, layers=layers)
    if config.onnx_file:
        from pipeline.engines.onnx_rewriter import open_file

        return open_file(config, layers, images)
    if config.engine != TENSORFLOW:
        from pipeline.engines.trials import open_fastest

        if engine := open_fastest(config, layers, images, progress):
            return engine
    from pipeline.engines.tensorflow import TensorFlowEngine

    return TensorFlowEngine(config, layers)


def is_installed(engine: str) -> bool:
    """Return whether an engine of this name exists and its package is installed."""
    try:
        return engine == TENSORFLOW or (engine in RUNTIMES and bool(version(RUNTIMES[engine])))
    except PackageNotFoundError:
        return False


def weights_digest(config: BaseConfig) -> str:
    """Return the digest of the weights; if it is not known, load them in another process."""
    digest = known_digest(config)
    if digest is None:
        if config.network.is_in_keras:
            from pipeline.engines.worker import in_subprocess

            digest = str(in_subprocess("weights_digest", config)["weights"])
        else:
            digest = file_digest(fetch_imagenet(config.network, config.weights_folder))
        remember_digest(digest, config)
    return digest


def pool_maps(maps: npt.NDArray[np.float32], pooling: str) -> npt.NDArray[np.float32]:
    """Pool feature maps over H and W, unless ``pooling`` is ``none``: (B, H, W, C) -> (B, C).

    Vectors (B, C) are their own average and maximum.
    """
    if pooling == "none":
        return maps
    if maps.ndim == 2:  # a vector per image
        return maps
    reduced = maps.mean(axis=(1, 2)) if pooling == "avg" else maps.max(axis=(1, 2))
    return np.asarray(reduced, np.float32)


def pooled_shape(shape: tuple[int, ...], key: str) -> tuple[int, ...]:
    """Return the row shape of a layer key for maps (H, W, C) of its layer: (H, W, C) or (C,)."""
    return shape if split_layer_key(key)[1] == "none" else shape[-1:]


def relative_errors(
    expected: npt.NDArray[np.floating[Any]], received: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float64]:
    """Compute ‖received - expected‖ / ‖expected‖ of each row, in the L2 norm: two (n, ...) -> (n,).

    Elementwise errors would be large where a feature is nearly 0. The error is infinite where a
    value is not finite or the shapes differ.
    """
    if expected.shape != received.shape:
        return np.full(len(expected), np.inf)
    rows = expected.reshape(len(expected), -1).astype(np.float64)
    distances = np.linalg.norm(received.reshape(len(received), -1) - rows, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(distances == 0, 0.0, distances / np.linalg.norm(rows, axis=1))
    return np.where(np.isfinite(errors), errors, np.inf)


class PixelsEngine(Engine):
    """Return the pixels themselves: uint8 RGB 0..255 -> float32 0..1."""

    name = PIXELS
    version = np.__version__
    weights = "none"
    calls_at_once = 1

    def __init__(self, *, image_size: int, layers: Sequence[str]) -> None:
        for key in layers:
            if split_layer_key(key)[0] != PIXELS:
                raise UsageError(f"the base pixels has one layer, pixels; received --layer {key}")
        self.error = {}
        shape = (image_size, image_size, 3)
        self.row_shapes = {key: pooled_shape(shape, key) for key in layers}

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        values = images.astype(np.float32) / np.float32(255)  # (B, H, W, 3)
        return {key: pool_maps(values, split_layer_key(key)[1]) for key in self.row_shapes}
