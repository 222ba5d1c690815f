"""How pixels become features: what is asked for, checked, and what a cache file says of it."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.bases.registry import (
    PIXELS,
    PREPROCESSING_POLICIES,
    Base,
    check_image_size,
    find_base,
)
from pipeline.bases.weights import IMAGENET, RANDOM, WeightsChoice
from pipeline.cache.file import FORMAT_VERSION, FeatureTable
from pipeline.engines import (
    AUTO,
    ENGINES,
    Engine,
    EngineRequest,
    name_weights,
    open_engine,
)
from pipeline.errors import BadDataError, CannotCreateError, UnreachableError, UsageError
from pipeline.images.decode import RESIZE_POLICIES, pixels_digest
from pipeline.images.reader import Pixels
from pipeline.spec import FeatureSpec
from pipeline.text import printable

log = logging.getLogger(__name__)

RECORDED_VERSIONS = ("tensorflow", "keras", "numpy", "h5py", "pillow")
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How pixels become features, before the weights have been seen."""

    base: Base
    image_size: int
    preprocessing: str
    resize: str
    dtype: str
    weights: WeightsChoice
    cache_folder: Path
    batch_size: int
    engine_name: str = AUTO
    mix_engines: bool = False
    _engines: dict[tuple[str, ...], Engine] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("preprocessing", self.preprocessing, PREPROCESSING_POLICIES)
        check_choice("resize", self.resize, RESIZE_POLICIES)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("engine", self.engine_name, (AUTO, *ENGINES))
        if self.batch_size < 1:
            raise UsageError(f"--batch-size needs at least 1; received {self.batch_size}")
        check_image_size(self.base, self.image_size)
        if self.preprocessing == "rescale" and self.base.preprocessing == "none":
            log.warning("%s rescales its input by itself: 1/255 comes on top", self.base.name)

    def engine(
        self, keys: tuple[str, ...], images: Pixels, recorded: Mapping[str, Any] | None
    ) -> Engine:
        """The engine for these layer keys, opened once.

        Parameters
        ----------
        images : (n, S, S, 3) uint8 RGB, some of those to be computed; engines are tried on them.
        recorded : the engine that computed what the cache holds already, None for an empty one.

        Raises CannotCreateError for another engine than the recorded one, UnreachableError where
        that is not installed.
        """
        if keys not in self._engines:
            self._engines.clear()  # one network at a time in memory
            self._engines[keys] = self._open(keys, images, recorded)
        return self._engines[keys]

    def _open(
        self, keys: tuple[str, ...], images: Pixels, recorded: Mapping[str, Any] | None
    ) -> Engine:
        name = self._allowed(recorded)
        try:
            engine = open_engine(self._request(keys), engine=name, images=images)
        except (BadDataError, UnreachableError) as error:
            if recorded is None or self.engine_name != AUTO or name == AUTO:
                raise
            raise type(error)(
                f"{name} computed the features that are there: {error}; or choose another --out, "
                f"or go on with another engine by --mix-engines"
            ) from error
        there = recorded or {}
        if there.get("name") == engine.name and there.get("version") != engine.version:
            log.warning(
                "%s %s computed the features that are there, %s goes on: each agrees with "
                "TensorFlow, but they are not the same to the last bit",
                engine.name, printable(str(there.get("version"))), engine.version,
            )  # fmt: skip
        return engine

    def _allowed(self, recorded: Mapping[str, Any] | None) -> str:
        """A cache keeps its engine unless the user allows others."""
        if recorded is None or self.mix_engines or self.base.name == PIXELS:
            return self.engine_name
        there = str(recorded["name"])
        if self.engine_name not in (AUTO, there):
            raise CannotCreateError(
                f"{there} computed the features that are there; received --engine "
                f"{self.engine_name}: leave it out, choose another --out, or allow both in one "
                f"file with --mix-engines"
            )
        if there not in ENGINES:
            raise UnreachableError(
                f"{printable(there)} computed the features that are there, an engine that is not "
                f"known here: choose another --out, or go on with another engine by --mix-engines"
            )
        return there

    def _request(self, keys: tuple[str, ...]) -> EngineRequest:
        return EngineRequest(
            base=self.base,
            image_size=self.image_size,
            preprocessing=self.preprocessing,
            weights=self.weights,
            layers=keys,
            batch_size=self.batch_size,
            cache_folder=self.cache_folder,
        )

    def spec(self, keys: tuple[str, ...]) -> FeatureSpec:
        """What the features are; loads the network only to name weights never met before."""
        digest = name_weights(self._request(keys))
        return FeatureSpec(
            base=self.base.name,
            weights=digest,
            preprocessing=self.preprocessing,
            image_size=self.image_size,
            resize=self.resize,
            pixels=pixels_digest(self.image_size, self.resize),
            dtype=self.dtype,
        )


def cache_document(set_name: str, root: Path, recipe: Recipe, spec: FeatureSpec) -> dict[str, Any]:
    """The file's ``spec`` dataset: what the features are and where they come from."""
    return {
        "format": FORMAT_VERSION,
        "spec": asdict(spec),
        "fingerprint": spec.fingerprint,
        "set": set_name,
        "root": os.fsdecode(root),
        "weights_from": os.fspath(
            recipe.weights.path.resolve() if recipe.weights.path else recipe.weights.kind
        ),
        "versions": {name: version(name) for name in RECORDED_VERSIONS},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def recipe_of(
    table: FeatureTable, weights: str | os.PathLike[str] | None, folder: Path, batch_size: int
) -> Recipe:
    """How a cache was made, to compute rows of it again."""
    spec = table.spec
    kind, _, seed = spec.weights.partition("-")
    source = os.fspath(weights) if weights else str(table.document.get("weights_from", IMAGENET))
    choice = WeightsChoice(RANDOM, int(seed)) if kind == RANDOM else WeightsChoice.parse(source)
    return Recipe(
        base=find_base(spec.base),
        image_size=spec.image_size,
        preprocessing=spec.preprocessing,
        resize=spec.resize,
        dtype=spec.dtype,
        weights=choice,
        cache_folder=folder,
        batch_size=batch_size,
    )


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"--{name} is one of {', '.join(allowed)}; received {value!r}")
