"""Choose the fastest engine that agrees with TensorFlow on some of the user's images.

Each engine is tried in another process: TensorFlow's memory is free when extraction begins, and an
engine that crashes ends only its process. Results are stored per machine, beside the conversions.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bases.config import AUTO, RUNTIMES, TENSORFLOW, BaseConfig
from pipeline.cores import usable_cores
from pipeline.durable import make_folder, write_durably
from pipeline.engines import SAMPLE_IMAGES, Engine, is_installed, weights_digest
from pipeline.engines.worker import (
    Images,
    conversions_folder,
    in_subprocess,
    is_complete,
    load_runtime,
    runtime_version,
    unpooled_layers,
)
from pipeline.errors import BadDataError, PipelineError, UnreachableError
from pipeline.text import printable

TOLERANCE = 1e-4  # largest accepted relative error of a row, in the L2 norm
MAX_SPREAD = 1.5  # of the runs of an engine; above, other programs decide the result
BATCH_IMAGES = 4  # per call: TensorFlow needs 0.2 GB less than with 8, at the same speed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineTrial:
    """Speed and agreement of an engine on this machine.

    Attributes
    ----------
    spread : how much slower the median run was than the fastest; high on a busy machine.
    error : layer -> largest relative error of a row against TensorFlow.
    dropped : reason why the engine is not used, or empty.
    final : False if its process was killed or the disk was full; such a trial is not recorded.
    """

    engine: str
    version: str
    images_per_second: float = 0.0
    spread: float = 1.0
    error: Mapping[str, float] = field(default_factory=dict)
    dropped: str = ""
    final: bool = True
    gpus: Sequence[str] = ()

    @property
    def key(self) -> str:
        return f"{self.engine} {self.version}"

    def __str__(self) -> str:
        error = f", error {max(self.error.values()):.0e}" if self.error else ""
        gpus = f" on {printable(', '.join(self.gpus))}" if self.gpus else ""
        return f"{self.engine} {self.images_per_second:.1f} images/s{gpus}{error}"


def open_fastest(
    config: BaseConfig,
    layers: Sequence[str],
    images: Images | None,
    progress: Callable[[int, int], None] | None = None,
) -> Engine | None:
    """Open the engine that ``config`` names, or the fastest; return None for TensorFlow.

    A missing or damaged conversion is made again. ``progress`` receives the numbers of engines
    tried and to try. Raises the errors of `pipeline.engines.open_engine`.
    """
    weights = weights_digest(config)
    versions = _installed_versions(config.engine)
    folder = conversions_folder(config, layers, weights)
    record = folder / f"trials-{_machine_digest()}.json"
    trials = _read_trials(record)
    keys = {f"{name} {version}" for name, version in versions.items()}
    if missing := keys - trials.keys():
        if images is None or not len(images):
            return None
        sample = images[:SAMPLE_IMAGES]
        small = replace(config, batch_size=min(BATCH_IMAGES, config.batch_size))
        # recorded engines are tried again: speeds of different days are not comparable
        log.info(
            "%s: choosing the fastest of %s on %d of the images, once for this machine (half a "
            "minute)",
            config.network.name, " and ".join(versions), len(sample),
        )  # fmt: skip
        trials |= _try_twice_if_disturbed(
            partial(
                _try_engines, small, unpooled_layers(layers), folder, versions, sample, progress
            )
        )
        if len(sample) == SAMPLE_IMAGES:  # fewer may be too similar
            make_folder(folder)
            final = {key: asdict(trial) for key, trial in trials.items() if trial.final}
            text = json.dumps(final, indent=2)
            write_durably(record, lambda file: file.write(text.encode()))
    usable = [trial for key in sorted(keys) if not (trial := trials[key]).dropped]
    if not usable:  # never with auto: TensorFlow is usable
        if images is None:  # the cache recorded the engine, the user did not request it
            return None
        (trial,) = (trials[key] for key in keys)
        raise BadDataError(
            f"--engine {config.engine} cannot compute {config.network.name}: "
            f"{printable(trial.dropped)}; leave it out, or use --engine tensorflow"
        )
    best = max(usable, key=lambda trial: trial.images_per_second)
    if missing and config.engine == AUTO:
        log.info("engine %s (%s)", best.engine, "; ".join(map(str, usable)))
    if best.engine == TENSORFLOW:
        return None
    conversion = folder / best.key.replace(" ", "-")
    if not is_complete(conversion):
        in_subprocess("convert", config, layers=layers, engine=best.engine, folder=conversion)
    engine = load_runtime(best.engine)(conversion, layers=layers)
    engine.version, engine.weights, engine.error = best.version, weights, best.error
    return engine


def _try_twice_if_disturbed(
    try_engines: Callable[[], dict[str, EngineTrial]],
) -> dict[str, EngineTrial]:
    """Run the trials, a second time if their runs disagree; keep the higher speeds."""
    trials = try_engines()
    if any(trial.spread > MAX_SPREAD for trial in trials.values()):
        log.info("their runs disagree, as on a busy machine: trying them again")
        for key, again in try_engines().items():
            if again.dropped or again.images_per_second > trials[key].images_per_second:
                trials[key] = again
    for trial in trials.values():
        if trial.dropped:
            log.warning("engine %s is not used: %s", trial.engine, printable(trial.dropped))
    return trials


def _try_engines(
    config: BaseConfig,
    layers: list[str],
    folder: Path,
    versions: dict[str, str],
    images: Images,
    progress: Callable[[int, int], None] | None,
) -> dict[str, EngineTrial]:
    """Convert the base, then run each engine on the images; TensorFlow is the reference."""
    report = progress or (lambda done, total: None)
    report(0, len(versions))
    trials: dict[str, EngineTrial] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sample, reference = Path(scratch) / "images.npy", Path(scratch) / "reference.npz"
        np.save(sample, images)
        runtimes = [name for name in versions if name != TENSORFLOW]
        folders = {name: folder / f"{name}-{versions[name]}" for name in runtimes}
        shared = {"layers": layers, "images": sample, "reference": reference}
        # engine -> fields of its trial
        results = in_subprocess("reference", config, quiet=True, folders=folders, **shared)
        for done, name in enumerate(folders, len(versions) - len(folders)):
            report(done, len(versions))
            if name not in results:
                results[name] = _try_runtime(config, engine=name, folder=folders[name], **shared)
    for name, version in versions.items():
        trial = EngineTrial(engine=name, version=version, **results[name])
        trials[trial.key] = trial
    report(len(versions), len(versions))
    return trials


def _try_runtime(config: BaseConfig, **details: Any) -> dict[str, Any]:
    """Try an engine other than TensorFlow; return the fields of its trial."""
    try:
        result = in_subprocess("try_runtime", config, quiet=True, **details)
    except PipelineError as failure:
        return {"dropped": str(failure), "final": False}
    error: dict[str, float] = result["error"]
    worst = max(error, key=lambda layer: error[layer])
    if not error[worst] <= TOLERANCE:
        reason = f"differs from TensorFlow's by {error[worst]:.1e}, more than {TOLERANCE:.0e}"
        return {"dropped": f"its {worst} {reason}"}
    return result


def _installed_versions(engine: str) -> dict[str, str]:
    """Map engines to versions; raises UnreachableError if the requested one is not installed."""
    versions = {}
    if engine == AUTO:
        versions[TENSORFLOW] = "of another name"  # tensorflow-cpu, a nightly build
        with contextlib.suppress(PackageNotFoundError):
            versions[TENSORFLOW] = installed_version("tensorflow")
    elif not is_installed(engine):
        package = RUNTIMES[engine]
        raise UnreachableError(
            f"--engine {engine}: {package} is missing: pip install {package}, or leave --engine out"
        )
    runtimes = RUNTIMES if engine == AUTO else (engine,)
    return versions | {
        name: runtime_version(RUNTIMES[name]) for name in runtimes if is_installed(name)
    }


def _read_trials(record: Path) -> dict[str, EngineTrial]:
    """Return the recorded trials of this machine; none if the record is missing or damaged."""
    try:
        trials = [EngineTrial(**values) for values in json.loads(record.read_text()).values()]
        return {trial.key: trial for trial in trials}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _machine_digest() -> str:
    """Return eight digits of the SHA-256 of what decides the speed of engines on this machine."""
    fields = ("model name", "CPU implementer", "CPU part")  # x86; ARM
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").split("\n")
        names = [line.partition(":")[2].strip() for line in lines if line.startswith(fields)]
        processor = " ".join(dict.fromkeys(names))
    except OSError:  # not Linux
        processor = platform.processor()
    parts = [platform.system(), platform.machine(), processor, str(usable_cores())]
    parts.append(os.environ.get("CUDA_VISIBLE_DEVICES", "") + str(Path("/dev/nvidia0").exists()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
