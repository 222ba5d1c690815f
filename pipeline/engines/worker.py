"""Run jobs of engines in another process, which frees TensorFlow's memory when it ends.

`in_subprocess` starts ``python -m pipeline.engines.worker``, which runs one of `JOBS`. Conversions
are in ``<cache>/engines/<base>-<size>-<key>/``, a folder per engine and version, beside the record
of `pipeline.engines.trials`. The key is a digest of the weights, the preprocessing and the layers.
"""

import hashlib
import importlib
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from pipeline import errors
from pipeline.bases import onnx_file
from pipeline.bases.config import BATCH_SIZE, TENSORFLOW, BaseConfig
from pipeline.durable import make_folder, publish_folder, scratch_folder
from pipeline.engines import Engine, pool_maps, relative_errors
from pipeline.engines.network import CannotConvert
from pipeline.errors import PipelineError
from pipeline.spec import POOLING_POLICIES, split_layer_key

CONVERTER = 2  # increase it when conversions change
MANIFEST = "files.json"  # file -> SHA-256
SCRATCH = ".converting-"
RUNTIME_CLASSES = {"onnx": "OnnxEngine", "ncnn": "NcnnEngine"}  # engine, also its module -> class
MIN_SECONDS, MAX_SECONDS, MIN_RUNS = 1.0, 5.0, 3  # of a speed measurement

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

log = logging.getLogger("pipeline")


def runtime_version(package: str) -> str:
    """Return the version of a package and of the conversion: both decide the last bits."""
    return f"{version(package)}-{CONVERTER}"


def conversions_folder(config: BaseConfig, layers: Sequence[str], weights: str) -> Path:
    """Return the folder of a base's conversions, which output unpooled layers."""
    parts = [weights, config.preprocessing_text, *unpooled_layers(layers)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return config.cache_dir / "engines" / f"{config.network.name}-{config.size}-{key}"


def unpooled_layers(layers: Sequence[str]) -> list[str]:
    """Return the layers of layer keys, without their pooling."""
    return sorted({split_layer_key(key)[0] for key in layers})


def is_complete(folder: Path) -> bool:
    """Return whether a folder contains a conversion in which no byte has changed."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        return bool(digests) and all(_digest(folder / name) == digests[name] for name in digests)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def write_conversion(folder: Path, convert: Callable[[Path], None]) -> None:
    """Let ``convert`` fill a temporary folder, add the manifest, and rename it to ``folder``."""
    make_folder(folder.parent)
    with scratch_folder(folder, prefix=SCRATCH) as filled:
        convert(filled)
        digests = {path.name: _digest(path) for path in filled.iterdir()}
        (filled / MANIFEST).write_text(json.dumps(digests, indent=2))
        with FileLock(f"{folder}.lock"):
            if is_complete(folder):  # another process was faster and may have it open
                return
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            publish_folder(filled, folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:  # in parts: networks have up to 350 million weights
        return hashlib.file_digest(file, "sha256").hexdigest()


class WorkerDied(PipelineError):
    """A process that ended without an answer: killed, or out of memory."""

    exit_code = errors.StorageError.exit_code


def in_subprocess(
    job: str, config: BaseConfig, *, quiet: bool = False, **details: Any
) -> dict[str, Any]:
    """Run one of `JOBS` in a new process, with ``details`` as JSON, and return its answer.

    ``quiet`` : it logs no news, which would disturb a progress bar.

    Raises the PipelineError that the job raised, or WorkerDied if the process gave no answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        request = {
            "job": job,
            "answer": answer,
            "log_level": logging.WARNING if quiet else log.getEffectiveLevel(),
            "config": {field.name: getattr(config, field.name) for field in fields(BaseConfig)},
            "details": details,
            "known": onnx_file.KNOWN,
        }
        package_parent = str(Path(errors.__file__).parents[1])
        paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
        finished = subprocess.run(
            [sys.executable, "-m", "pipeline.engines.worker"],
            input=json.dumps(request, default=os.fspath).encode(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
        try:
            result: dict[str, Any] = json.loads(answer.read_bytes())
        except (OSError, ValueError):
            cause = f"signal {-finished.returncode}" if finished.returncode < 0 else "an error"
            raise WorkerDied(
                f"the process that prepares {config.network.name} ended by {cause}; it may be "
                f"out of memory: use a smaller --batch-size or --image-size"
            ) from None
    if "raised" in result:
        raise getattr(errors, result["raised"])(result["message"])
    return result


def load_runtime(name: str) -> Callable[..., Engine]:
    """Return the class of an engine other than TensorFlow."""
    module = importlib.import_module(f"pipeline.engines.{name}")
    runtime: Callable[..., Engine] = getattr(module, RUNTIME_CLASSES[name])
    return runtime


def measure_speed(
    engine: Callable[[Images], object], images: Images, batch_size: int
) -> dict[str, float]:
    """Run an engine several times on images (n, S, S, 3); return speed and spread of its trial."""
    seconds: list[float] = []
    while sum(seconds) < MAX_SECONDS and (len(seconds) < MIN_RUNS or sum(seconds) < MIN_SECONDS):
        started = time.perf_counter()
        for start in range(0, len(images), batch_size):
            engine(images[start : start + batch_size])
        seconds.append(time.perf_counter() - started)
    middle = statistics.median(seconds)
    return {"images_per_second": len(images) / middle, "spread": middle / min(seconds)}


def run_all(
    engine: Callable[[Images], dict[str, Features]], images: Images, batch_size: int
) -> dict[str, Features]:
    """Compute features of any number of images in batches."""
    starts = range(0, len(images), batch_size)
    parts = [engine(images[start : start + batch_size]) for start in starts]
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}


def _weights_digest(config: BaseConfig) -> dict[str, Any]:
    from pipeline.bases.build import build_base

    return {"weights": build_base(config)[1]}


def _reference(
    config: BaseConfig, layers: Sequence[str], images: str, reference: str, folders: dict[str, str]
) -> dict[str, Any]:
    """Convert the base and save TensorFlow's features; return engine -> fields of its trial."""
    from pipeline.engines.tensorflow import TensorFlowEngine

    engine = TensorFlowEngine(config, layers)
    results: dict[str, Any] = {}  # of `pipeline.engines.trials.EngineTrial`
    # conversion comes first: its memory is free again when TensorFlow needs most
    for name, folder in folders.items():
        try:
            _convert_base(engine.base_model, config, layers, name, Path(folder))
        except Exception as error:  # errors of any library drop only this engine
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            results[name] = {"dropped": reason, "final": isinstance(error, CannotConvert)}
    sample = np.load(images)
    features = run_all(engine, sample, config.batch_size)  # traces the model
    np.savez(reference, allow_pickle=False, **features)
    speed = measure_speed(engine, sample, config.batch_size)
    return {**results, TENSORFLOW: {**speed, "gpus": engine.gpus}}


def _convert(config: BaseConfig, layers: Sequence[str], engine: str, folder: str) -> dict[str, Any]:
    from pipeline.bases.build import build_base

    _convert_base(build_base(config)[0], config, layers, engine, Path(folder))
    return {}


def _convert_base(
    base_model: Any, config: BaseConfig, layers: Sequence[str], engine: str, folder: Path
) -> None:
    """Convert a base for an engine into a folder, unless this contains it already."""
    from pipeline.engines.keras_reader import read_network

    if is_complete(folder):
        return
    network = read_network(base_model, config, unpooled_layers(layers))
    convert = importlib.import_module(f"pipeline.engines.{engine}").convert
    write_conversion(folder, lambda path: convert(network, path))


def _try_runtime(
    config: BaseConfig, layers: list[str], engine: str, folder: str, images: str, reference: str
) -> dict[str, Any]:
    """Measure the speed of another engine and its error against TensorFlow."""
    runtime, sample = load_runtime(engine)(Path(folder), layers=layers), np.load(images)
    features = run_all(runtime, sample, config.batch_size)
    with np.load(reference) as expected:
        error = {layer: largest_error(expected[layer], maps) for layer, maps in features.items()}
    batch = np.resize(sample, (BATCH_SIZE, *sample.shape[1:]))  # the size that extract uses
    return {**measure_speed(runtime, batch, BATCH_SIZE), "error": error}


def largest_error(expected: Features, received: Features) -> float:
    """Return the largest error of a row, pooled or not: averages of both signs have larger ones."""
    return max(
        float(relative_errors(pool_maps(expected, pooling), pool_maps(received, pooling)).max())
        for pooling in POOLING_POLICIES
    )


def _rewrite(config: BaseConfig, layers: Sequence[str], folder: str, images: str) -> dict[str, Any]:
    """Rewrite a base in a .onnx file into a folder, unless this contains it already."""
    from pipeline.engines.onnx_rewriter import convert

    if not is_complete(Path(folder)):
        names, sample = unpooled_layers(layers), np.load(images)
        write_conversion(Path(folder), lambda path: convert(config, names, sample, path))
    return {}


JOBS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "weights_digest": _weights_digest,
    "reference": _reference,
    "convert": _convert,
    "rewrite": _rewrite,
    "try_runtime": _try_runtime,
}


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles the interrupt
    request = json.loads(sys.stdin.buffer.read())
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(request["log_level"])
    onnx_file.KNOWN.update(request["known"])  # before the config opens the file
    try:
        answer = JOBS[request["job"]](BaseConfig(**request["config"]), **request["details"])
    except PipelineError as error:
        kind = next(base for base in type(error).__mro__ if base.__module__ == errors.__name__)
        answer = {"raised": kind.__name__, "message": str(error)}
    Path(request["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    _main()
