"""The feature spec and engine of a config, and the record of both in a cache file."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.bases.config import AUTO, ENGINES, IMAGENET, BaseConfig, base_options
from pipeline.bases.registry import PIXELS
from pipeline.cache.config import ExtractConfig
from pipeline.cache.file import FORMAT_VERSION, FORMAT_WITH_TARGETS, FeatureTable
from pipeline.engines import Engine, is_installed, open_engine, weights_digest
from pipeline.errors import BadDataError, CannotCreateError, UnreachableError, UsageError
from pipeline.images.decode import pixels_digest
from pipeline.images.reader import Pixels
from pipeline.spec import CLASSES, FeatureSpec
from pipeline.text import printable

log = logging.getLogger(__name__)

RECORDED_VERSIONS = ("tensorflow", "keras", "numpy", "h5py", "pillow")


def feature_spec(config: ExtractConfig) -> FeatureSpec:
    """Return the spec of a config's features; loads the network only to hash unknown weights."""
    base = config.network
    if config.preprocessing == "rescale" and base.preprocessing == "none":
        log.warning("%s rescales its input itself: 1/255 is applied in addition", base.name)
    return FeatureSpec(
        base=base.name,
        weights=weights_digest(config),
        preprocessing=config.preprocessing_text,
        image_size=config.size,
        resize=config.resize,
        pixels=pixels_digest(config.size, config.resize),
        dtype=config.dtype,
        range=config.range,
    )


def open_cache_engine(
    config: ExtractConfig,
    layers: Sequence[str],
    images: Pixels,
    recorded: Mapping[str, Any] | None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Engine:
    """Open the engine for a cache's missing rows: the ``recorded`` one, or that of the config.

    ``recorded`` : the engine in the cache's ``spec``; None for a new cache. ``progress`` : of
    `pipeline.engines.open_engine`.

    Raises CannotCreateError if the config requests another engine, UnreachableError if the recorded
    one is not installed.
    """
    name = config.engine
    if recorded is not None and config.network.name != PIXELS:
        name = str(recorded["name"])
    computed = f"{printable(name)} computed the features in this cache"
    if config.engine not in (AUTO, name):
        raise CannotCreateError(
            f"{computed}; received --engine {config.engine}: omit it, or choose another --out"
        )
    if name != config.engine and name not in ENGINES:
        raise UnreachableError(f"{computed}, but is unknown to this version: choose another --out")
    try:
        engine = open_engine(replace(config, engine=name), layers, images=images, progress=progress)
    except (BadDataError, UnreachableError) as error:
        if name == config.engine:
            raise
        raise type(error)(f"{computed}: {error}; or choose another --out") from error
    earlier = recorded or {}
    if earlier.get("name") == engine.name and earlier.get("version") != engine.version:
        log.warning(
            "%s %s computed the features in this cache; %s %s continues: both agree with "
            "the reference, but differ in the last bits",
            engine.name, printable(str(earlier.get("version"))), engine.name, engine.version,
        )  # fmt: skip
    return engine


def continues_engine(config: BaseConfig, name: str) -> bool:
    """Return whether a config can add rows to those of an engine: else a cache is not a source."""
    if config.network.name == PIXELS:
        return True
    return name == config.engine if config.engine != AUTO else is_installed(name)


def cache_document(
    set_name: str,
    root: str,
    config: ExtractConfig,
    spec: FeatureSpec,
    task: str = CLASSES,
    folders: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the content of a file's ``spec`` dataset: its feature spec and its origin."""
    file = config.file or config.weights_file
    return {
        "format": FORMAT_VERSION if task == CLASSES else FORMAT_WITH_TARGETS,
        **({} if task == CLASSES else {"task": task}),
        "spec": spec.to_dict(),
        "fingerprint": spec.fingerprint,
        "set": set_name,
        "root": root,
        **({"folders": dict(folders)} if folders else {}),
        "weights_from": os.fspath(file.resolve() if file else config.weights),
        "versions": {name: version(name) for name in RECORDED_VERSIONS},
        "created": creation_time().isoformat(timespec="seconds"),
    }


def creation_time() -> datetime:
    """Return the time now, or that of the environment variable SOURCE_DATE_EPOCH.

    With it, runs on the same images write the same bytes (reproducible-builds.org). Raises
    UsageError if it is not a number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        return datetime.fromtimestamp(int(text), UTC) if text else datetime.now(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is a number of seconds since 1970; received {text!r}"
        ) from error


def config_of(
    table: FeatureTable, weights: str | os.PathLike[str] | None, cache_dir: Path
) -> ExtractConfig:
    """Return the config of a cache, to compute its rows again."""
    source = os.fspath(weights or str(table.document.get("weights_from", IMAGENET)))
    return ExtractConfig(
        **base_options(table.spec, source), dtype=table.spec.dtype, cache_dir=cache_dir
    )
