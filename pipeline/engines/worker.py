"""What engines do in a process of their own, so that its memory, TensorFlow's above all, is gone
when it ends: ``python -m pipeline.engines.worker``, started by `in_subprocess`.

Converted bases are kept in ``<cache>/engines/<base>-<size>-<key>/``, where the key is a digest of
the weights, the preprocessing and the layers; below it a folder per engine and version, and what
`pipeline.engines.trials` found out about them.
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
from pipeline.bases.config import BATCH_SIZE, TENSORFLOW, BaseConfig
from pipeline.durable import make_folder, publish_folder, scratch_folder
from pipeline.engines import Engine, pooled, relative_errors
from pipeline.engines.network import CannotConvert
from pipeline.errors import PipelineError
from pipeline.spec import POOLING_POLICIES, split_layer_key

CONVERTER = 2  # raised when the same base is converted otherwise
MANIFEST = "files.json"  # file -> SHA-256
SCRATCH = ".converting-"
RUNTIME_CLASSES = {"onnx": "OnnxEngine", "ncnn": "NcnnEngine"}  # modules: name -> class
SHORTEST, LONGEST = 1.0, 5.0  # seconds that a speed is measured for, at least and at most
LEAST_RUNS = 3

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

log = logging.getLogger("pipeline")


def runtime_version(package: str) -> str:
    """Of an engine's package and of its conversion: both decide on the last bits."""
    return f"{version(package)}-{CONVERTER}"


def conversions_folder(config: BaseConfig, layers: Sequence[str], weights: str) -> Path:
    """Where the conversions of a base stand; pooling is done outside of them."""
    what = [weights, config.preprocessing, *maps_of(layers)]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    return config.cache_dir / "engines" / f"{config.network.name}-{config.size}-{key}"


def maps_of(layers: Sequence[str]) -> list[str]:
    """The layers of layer keys, without their pooling."""
    return sorted({split_layer_key(key)[0] for key in layers})


def is_complete(folder: Path) -> bool:
    """Whether a conversion is there, every byte as it was written."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        return bool(digests) and all(_digest(folder / name) == digests[name] for name in digests)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def write_conversion(folder: Path, convert: Callable[[Path], None]) -> None:
    """Let ``convert`` fill a folder, and give that its name once all in it is on the disk."""
    make_folder(folder.parent)
    with scratch_folder(folder, prefix=SCRATCH) as made:
        convert(made)
        digests = {path.name: _digest(path) for path in made.iterdir()}
        (made / MANIFEST).write_text(json.dumps(digests, indent=2))
        with FileLock(f"{folder}.lock"):
            if is_complete(folder):  # another process was faster, and may have it open
                return
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            publish_folder(made, folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:  # of a network of 350 million weights not all at once
        return hashlib.file_digest(file, "sha256").hexdigest()


class WorkerDied(PipelineError):
    """The process ended without an answer: killed, or out of memory."""

    exit_code = errors.StorageError.exit_code


def in_subprocess(job: str, config: BaseConfig, **details: Any) -> dict[str, Any]:
    """Run one of `JOBS` in a new process and return its answer; ``details`` travel as JSON.

    Raises the PipelineError that the job raised, WorkerDied if the process ended otherwise.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        order = {
            "job": job,
            "answer": answer,
            "log_level": log.getEffectiveLevel(),
            "config": {each.name: getattr(config, each.name) for each in fields(BaseConfig)},
            "details": details,
        }
        here = str(Path(errors.__file__).parents[1])
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        finished = subprocess.run(
            [sys.executable, "-m", "pipeline.engines.worker"],
            input=json.dumps(order, default=os.fspath).encode(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
        try:
            found: dict[str, Any] = json.loads(answer.read_bytes())
        except (OSError, ValueError):
            how = f"signal {-finished.returncode}" if finished.returncode < 0 else "an error"
            raise WorkerDied(
                f"the process that prepares {config.network.name} ended by {how}: it may need more "
                f"memory than there is; a smaller --batch-size or --image-size needs less"
            ) from None
    if "raised" in found:
        raise getattr(errors, found["raised"])(found["message"])
    return found


def load_runtime(name: str) -> Callable[..., Engine]:
    """The class of an engine that is not TensorFlow."""
    module = importlib.import_module(f"pipeline.engines.{name}")
    runtime: Callable[..., Engine] = getattr(module, RUNTIME_CLASSES[name])
    return runtime


def images_per_second(engine: Callable[[Images], object], images: Images, batch_size: int) -> float:
    """How fast an engine computes images (n, S, S, 3) again and again; the median of runs."""
    seconds: list[float] = []
    while sum(seconds) < LONGEST and (len(seconds) < LEAST_RUNS or sum(seconds) < SHORTEST):
        started = time.perf_counter()
        for start in range(0, len(images), batch_size):
            engine(images[start : start + batch_size])
        seconds.append(time.perf_counter() - started)
    return len(images) / statistics.median(seconds)


def run_all(
    engine: Callable[[Images], dict[str, Features]], images: Images, batch_size: int
) -> dict[str, Features]:
    """Features of any number of images, computed in batches."""
    starts = range(0, len(images), batch_size)
    parts = [engine(images[start : start + batch_size]) for start in starts]
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}


def _name_weights(config: BaseConfig) -> dict[str, Any]:
    from pipeline.bases.build import build_base

    return {"weights": build_base(config)[1]}


def _reference(
    config: BaseConfig, layers: Sequence[str], images: str, reference: str, folders: dict[str, str]
) -> dict[str, Any]:
    """TensorFlow's features; converts the base. Engine -> what is known of its trial by now."""
    from pipeline.engines.tensorflow import TensorFlowEngine

    engine = TensorFlowEngine(config, layers)
    facts: dict[str, Any] = {}  # of a `pipeline.engines.trials.EngineTrial`
    # converted first: what that takes is free again when TensorFlow needs the most
    for name, folder in folders.items():
        try:
            _convert_base(engine.base_model, config, layers, name, Path(folder))
        except Exception as error:  # it is this engine that is out, whatever its libraries raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            facts[name] = {"dropped": reason, "final": isinstance(error, CannotConvert)}
    sample = np.load(images)
    features = run_all(engine, sample, config.batch_size)  # traces it, too
    np.savez(reference, allow_pickle=False, **features)
    speed = images_per_second(engine, sample, config.batch_size)
    return {**facts, TENSORFLOW: {"images_per_second": speed, "gpus": engine.gpus}}


def _convert(config: BaseConfig, layers: Sequence[str], engine: str, folder: str) -> dict[str, Any]:
    from pipeline.bases.build import build_base

    _convert_base(build_base(config)[0], config, layers, engine, Path(folder))
    return {}


def _convert_base(
    base_model: Any, config: BaseConfig, layers: Sequence[str], engine: str, folder: Path
) -> None:
    from pipeline.engines.keras_reader import read_network

    if is_complete(folder):
        return
    network = read_network(base_model, config, maps_of(layers))
    convert = importlib.import_module(f"pipeline.engines.{engine}").convert
    write_conversion(folder, lambda made: convert(network, made))


def _try_runtime(
    config: BaseConfig, layers: list[str], engine: str, folder: str, images: str, reference: str
) -> dict[str, Any]:
    """How fast another engine is, and how far from TensorFlow."""
    runtime, sample = load_runtime(engine)(Path(folder), layers=layers), np.load(images)
    features = run_all(runtime, sample, config.batch_size)
    with np.load(reference) as expected:
        error = {layer: _worst(expected[layer], maps) for layer, maps in features.items()}
    whole_batch = np.resize(sample, (BATCH_SIZE, *sample.shape[1:]))  # as extract has them
    speed = images_per_second(runtime, whole_batch, BATCH_SIZE)
    return {"images_per_second": speed, "error": error}


def _worst(expected: Features, found: Features) -> float:
    """The largest error of any row, pooled or not: where signs cancel, a mean has a larger one."""
    return max(
        float(relative_errors(pooled(expected, pooling), pooled(found, pooling)).max())
        for pooling in POOLING_POLICIES
    )


JOBS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "name_weights": _name_weights,
    "reference": _reference,
    "convert": _convert,
    "try_runtime": _try_runtime,
}


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this is interrupted, and ends it
    order = json.loads(sys.stdin.buffer.read())
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(order["log_level"])
    try:
        answer = JOBS[order["job"]](BaseConfig(**order["config"]), **order["details"])
    except PipelineError as error:
        kind = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
        answer = {"raised": kind.__name__, "message": str(error)}
    Path(order["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    _main()
