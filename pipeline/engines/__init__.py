"""Who computes the features: one protocol, several engines.

TensorFlow is the reference; another engine is used only after it gave the same numbers for some of
the user's own images (`pipeline.engines.trials`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.bases.registry import PIXELS, Base
from pipeline.bases.weights import (
    WeightsChoice,
    digest_note,
    known_digest,
    remember_digest,
)
from pipeline.cores import usable_cores
from pipeline.errors import UsageError

AUTO, TENSORFLOW = "auto", "tensorflow"
RUNTIMES = {"onnx": "onnxruntime", "ncnn": "ncnn"}  # engine -> the package that it needs
ENGINES = (TENSORFLOW, *RUNTIMES)
# Images per call: VGG16 at 150 pixels is on 2 cores as fast with 8 as with 32, in 0.3 GB less
# memory; more cores need two each, as runtimes compute one or two at a time on each.
BATCH_SIZE = min(max(8, 2 * usable_cores()), 32)


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


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What is to be computed.

    Attributes
    ----------
    layers : layer keys, see `pipeline.spec.layer_key`.
    batch_size : images per call, at most.
    cache_folder : ImageNet weights that were fetched are in its ``weights/``, converted bases in
        its ``engines/``.
    """

    base: Base
    image_size: int
    preprocessing: str
    weights: WeightsChoice
    layers: tuple[str, ...]
    batch_size: int
    cache_folder: Path = field(compare=False)

    @property
    def weights_folder(self) -> Path:
        return self.cache_folder / "weights"


def open_engine(
    request: EngineRequest,
    *,
    engine: str = AUTO,
    images: npt.NDArray[np.uint8] | None = None,
) -> Engine:
    """Choose and open an engine; takes seconds where TensorFlow is loaded.

    Parameters
    ----------
    engine : ``tensorflow``, ``onnx``, ``ncnn``, or ``auto`` for the fastest of those that agree
        with TensorFlow.
    images : (n, S, S, 3) uint8 RGB, some of those that are to be computed, to try engines on which
        this machine has not tried yet. None: those stay out, and TensorFlow computes.

    Raises UsageError for an unknown layer or engine, UnreachableError for one that is not
    installed, BadDataError for one asked for that does not agree with TensorFlow, and whatever
    `pipeline.bases.build.build_base` raises.
    """
    if request.base.name == PIXELS:
        from pipeline.engines.pixels import PixelsEngine

        return PixelsEngine(image_size=request.image_size, layers=request.layers)
    if engine not in (AUTO, *ENGINES):
        raise UsageError(f"--engine is one of auto, {', '.join(ENGINES)}; received {engine!r}")
    if engine != TENSORFLOW:
        from pipeline.engines.trials import choose, open_proven

        trial = choose(request, name_weights(request), engine, images)
        if trial is not None:
            return open_proven(request, trial)
    from pipeline.engines.tensorflow import TensorFlowEngine

    return TensorFlowEngine(request)


def is_installed(engine: str) -> bool:
    """Whether something is the name of an engine, and that is here."""
    if engine == TENSORFLOW:
        return True
    try:
        return engine in RUNTIMES and bool(version(RUNTIMES[engine]))
    except PackageNotFoundError:
        return False


def name_weights(request: EngineRequest) -> str:
    """The digest of the weights; a process of its own loads ImageNet weights never met before."""
    note = digest_note(request.base, request.image_size, request.weights_folder)
    digest = known_digest(request.weights, base=request.base, note=note)
    if digest is None:
        from pipeline.engines.worker import in_own_process

        digest = str(in_own_process("name_weights", request)["weights"])
        remember_digest(digest, base=request.base, note=note)
    return digest
