"""Which engine computes: the fastest that agrees with TensorFlow on some of the user's images.

Each is tried in another process, so that TensorFlow's memory is gone when the work begins and an
engine that crashes takes nothing with it. Results are kept per machine, beside the conversions.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.config import AUTO, RUNTIMES, TENSORFLOW, BaseConfig
from pipeline.cores import usable_cores
from pipeline.durable import make_folder, write_durably
from pipeline.engines import Engine, name_weights
from pipeline.engines.worker import (
    conversions_folder,
    in_subprocess,
    is_complete,
    load_runtime,
    maps_of,
    runtime_version,
)
from pipeline.errors import BadDataError, PipelineError, UnreachableError
from pipeline.text import printable

TOLERANCE = 1e-4  # relative error of a row, in the L2 norm, from which an engine is out
SAMPLE = 8  # images that engines are tried on
BATCH = 4  # of them at once: TensorFlow stays 0.2 GB below what it takes for 8, at the same speed

log = logging.getLogger(__name__)

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class EngineTrial:
    """What an engine did on this machine.

    ``error`` is the largest relative error of a row against TensorFlow, by layer.
    """

    engine: str
    version: str
    images_per_second: float = 0.0
    error: Mapping[str, float] = field(default_factory=dict)
    dropped: str = ""  # why it is not used
    final: bool = True  # False where a process was killed or the disk was full
    gpus: Sequence[str] = ()

    @property
    def key(self) -> str:
        return f"{self.engine} {self.version}"

    def __str__(self) -> str:
        error = f", error {max(self.error.values()):.0e}" if self.error else ""
        gpus = f" on {printable(', '.join(self.gpus))}" if self.gpus else ""
        return f"{self.engine} {self.images_per_second:.1f} images/s{gpus}{error}"


def open_fastest(config: BaseConfig, layers: Sequence[str], images: Images | None) -> Engine | None:
    """Open the engine that ``config`` names, or the fastest; None for TensorFlow.

    A conversion that is gone or damaged is made anew. Raises as `pipeline.engines.open_engine`.
    """
    wanted, weights = config.engine, name_weights(config)
    versions = _installed(wanted)
    folder = conversions_folder(config, layers, weights)
    record = folder / f"trials-{_machine()}.json"
    known = _read(record)
    names = {f"{name} {version}" for name, version in versions.items()}
    if missing := names - known.keys():
        if images is None or not len(images):
            return None
        sample = images[:SAMPLE]
        small = replace(config, batch_size=min(BATCH, config.batch_size))
        # all of them, though some may be known: speeds of another day do not compare
        known |= _try(small, maps_of(layers), folder, versions, sample)
        if len(sample) == SAMPLE:  # fewer may be too alike
            make_folder(folder)
            kept = {key: asdict(trial) for key, trial in known.items() if trial.final}
            text = json.dumps(kept, indent=2)
            write_durably(record, lambda file: file.write(text.encode()))
    usable = [trial for name in sorted(names) if not (trial := known[name]).dropped]
    if not usable:  # with auto, TensorFlow is
        if images is None:  # a cache's engine, not one that somebody asked for
            return None
        (trial,) = (known[name] for name in names)
        raise BadDataError(
            f"--engine {wanted} cannot compute {config.network.name}: "
            f"{printable(trial.dropped)}; leave it out, or use --engine tensorflow"
        )
    best = max(usable, key=lambda trial: trial.images_per_second)
    if missing and wanted == AUTO:
        log.info("engine %s (%s)", best.engine, "; ".join(map(str, usable)))
    if best.engine == TENSORFLOW:
        return None
    converted = folder / best.key.replace(" ", "-")
    if not is_complete(converted):
        in_subprocess("convert", config, layers=layers, engine=best.engine, folder=converted)
    engine = load_runtime(best.engine)(converted, layers=layers)
    engine.version, engine.weights, engine.error = best.version, weights, best.error
    return engine


def _try(
    config: BaseConfig, layers: list[str], folder: Path, versions: dict[str, str], images: Images
) -> dict[str, EngineTrial]:
    """Convert, then run each engine on the images; TensorFlow's features are the reference."""
    names = " and ".join(versions)
    log.info("trying %s on %d of the images, once for this machine", names, len(images))
    trials: dict[str, EngineTrial] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sample, reference = Path(scratch) / "images.npy", Path(scratch) / "reference.npz"
        np.save(sample, images)
        runtimes = [name for name in versions if name != TENSORFLOW]
        folders = {name: folder / f"{name}-{versions[name]}" for name in runtimes}
        shared = {"layers": layers, "images": sample, "reference": reference}
        # engine -> fields of its trial
        facts = in_subprocess("reference", config, folders=folders, **shared)
        for name in folders:
            if name not in facts:
                facts[name] = _run(config, engine=name, folder=folders[name], **shared)
    for name, version in versions.items():
        trial = EngineTrial(engine=name, version=version, **facts[name])
        if trial.dropped:
            log.warning("engine %s is not used: %s", name, printable(trial.dropped))
        trials[trial.key] = trial
    return trials


def _run(config: BaseConfig, **details: Any) -> dict[str, Any]:
    """Fields of a trial of an engine that is not TensorFlow."""
    try:
        found = in_subprocess("try_runtime", config, **details)
    except PipelineError as problem:
        return {"dropped": str(problem), "final": False}
    error: dict[str, float] = found["error"]
    worst = max(error, key=lambda layer: error[layer])
    if not error[worst] <= TOLERANCE:
        reason = f"differs from TensorFlow's by {error[worst]:.1e}, more than {TOLERANCE:.0e}"
        return {"dropped": f"its {worst} {reason}"}
    return found


def _installed(wanted: str) -> dict[str, str]:
    """Engine -> version of those to choose among; raises UnreachableError if the wanted is not."""
    versions = {}
    if wanted == AUTO:
        with contextlib.suppress(PackageNotFoundError):  # tensorflow-cpu, a nightly build
            versions[TENSORFLOW] = installed_version("tensorflow")
        versions.setdefault(TENSORFLOW, "of another name")
    for name, package in RUNTIMES.items():
        if wanted in (AUTO, name):
            try:
                versions[name] = runtime_version(package)
            except PackageNotFoundError:
                if wanted == name:
                    raise UnreachableError(
                        f"--engine {name}: {package} is missing: pip install {package}, or leave "
                        f"--engine out"
                    ) from None
    return versions


def _read(record: Path) -> dict[str, EngineTrial]:
    """What was found out on this machine; nothing if that cannot be read."""
    try:
        trials = [EngineTrial(**each) for each in json.loads(record.read_text()).values()]
        return {trial.key: trial for trial in trials}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _machine() -> str:
    """Eight digits that stand for what decides how fast engines are here."""
    parts = [platform.system(), platform.machine(), _processor(), str(usable_cores())]
    parts.append(os.environ.get("CUDA_VISIBLE_DEVICES", "") + str(Path("/dev/nvidia0").exists()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _processor() -> str:
    named_by = ("model name", "CPU implementer", "CPU part")  # x86; ARM
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").split("\n")
        names = [line.partition(":")[2].strip() for line in lines if line.startswith(named_by)]
        return " ".join(dict.fromkeys(names))
    except OSError:  # not Linux
        return platform.processor()
