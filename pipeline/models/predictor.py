"""A bundle at work: from pixels to class probabilities, the way that its head was trained."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from pipeline.bases.config import AUTO, BATCH_SIZE, IMAGENET, RANDOM, BaseConfig
from pipeline.bases.registry import find_base
from pipeline.bases.weights import known_digest
from pipeline.cache.file import RowKey
from pipeline.engines import Engine, is_installed, open_engine
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.heads.calibration import class_scores
from pipeline.heads.inputs import flatten_or_pool
from pipeline.images.decode import pixels_digest
from pipeline.images.reader import Pixels
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.cached_features import CachedFeatures
from pipeline.models.config import PredictConfig
from pipeline.models.runs import find_bundle, newest_run
from pipeline.models.serialization import TOLERANCE
from pipeline.text import counted, printable

RESULTS = Path("results")  # where classify puts its runs

log = logging.getLogger(__name__)


class Predictor:
    """A trained head behind its base, a `Model`; the first image that needs the base loads it.

    Parameters
    ----------
    weights : ``imagenet`` or a Keras weights file; None for those that the bundle names.
    cache_dir : ImageNet weights that were fetched earlier are in its ``weights/``.
    use_cache : look for features in the cache of the training, and in ``cache_dir``.

    Raises BadDataError if images become other pixels here than where the head was trained, or if
    ``weights`` are not those it was trained with.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        weights: str | None = None,
        cache_dir: Path,
        batch_size: int = BATCH_SIZE,
        use_cache: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"--batch-size needs at least 1; received {batch_size}")
        self.bundle = bundle
        self.batch_size = batch_size
        self._weights = weights
        self._cache_folder = cache_dir
        here = pixels_digest(bundle.spec.image_size, bundle.spec.resize)
        if here != bundle.spec.pixels:  # this machine's decoder gives others than the training's
            versions = bundle.document.get("versions")
            there = versions.get("pillow", "unknown") if isinstance(versions, dict) else "unknown"
            raise BadDataError(
                f"the model was trained on images decoded with Pillow {printable(str(there))} "
                f"(pixels {_short(bundle.spec.pixels)}); received pixels {_short(here)} of Pillow "
                f"{PIL.__version__}: install that Pillow, or extract and classify again here"
            )
        if weights is not None:  # said to be the right ones: looked at even if no image needs them
            self.base_config()
        self._features = CachedFeatures(bundle, cache_dir) if use_cache else None

    @property
    def name(self) -> str:
        """For people: ``logistic on vgg16``."""
        return f"{self.bundle.head} on {self.bundle.spec.base}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.bundle.classes

    @property
    def image_size(self) -> int:
        return self.bundle.spec.image_size

    @property
    def resize(self) -> str:
        return self.bundle.spec.resize

    def describe(self) -> dict[str, Any]:
        bundle, spec = self.bundle, self.bundle.spec
        return {
            "head": bundle.head,
            "params": bundle.params,
            "base": spec.base,
            "layer": bundle.layer,
            "input": bundle.input,
            "tta": bundle.plan.views,
            "image_size": spec.image_size,
            "preprocessing": spec.preprocessing,
            "resize": spec.resize,
            "fingerprint": spec.fingerprint,
            "classes": list(bundle.classes),
        }

    def probabilities(self, pixels: Pixels, digests: Sequence[bytes]) -> npt.NDArray[np.float64]:
        """Class probabilities of decoded images: (B, S, S, 3) uint8 RGB -> (B, K) float64.

        B is at least 1; the SHA-256 of the B files decide what their views are.

        Raises BadDataError if the weights here are not those of the training, or the features are
        not finite; UnreachableError if ImageNet weights cannot be had.
        """
        views = self.views(pixels, digests)
        return mean_over_views(self.classify(self.features(view)) for view in views)

    def views(self, pixels: Pixels, digests: Sequence[bytes]) -> Iterator[Pixels]:
        """What probabilities are means over: the images, then each further view of them."""
        yield pixels
        plan = self.bundle.plan
        for view in range(1, plan.views + 1):
            keys = [RowKey(digest, view) for digest in digests]
            yield np.stack([plan.draw(*each) for each in zip(keys, pixels, strict=True)])

    def features(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """(B, S, S, 3) uint8 RGB -> (B, *shape) float32; raises like `probabilities`."""
        size = self.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3):
            raise UsageError(
                f"expected pixels (B, {size}, {size}, 3) uint8; received {pixels.shape} "
                f"{pixels.dtype}"
            )
        parts = [
            self._engine(pixels[start : start + self.batch_size])[self.bundle.layer]
            for start in range(0, len(pixels), self.batch_size)
        ]
        return np.concatenate(parts)

    def cached_probabilities(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], npt.NDArray[np.float64]]]:
        """From cached features, in blocks: digests, (b, K) float64; others are passed over."""
        if self._features is not None:
            for found, views in self._features.features(digests):
                yield found, mean_over_views(map(self.classify, views))

    def classify(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Class probabilities of the bundle's layer: (B, *shape) float32 -> (B, K) float64.

        Features are rounded as in the cache of the training: cached or not, an image has the same
        probabilities. Raises BadDataError if they are not finite, or the scores no probabilities.
        """
        spec = self.bundle.spec
        with np.errstate(over="ignore"):
            rounded = features.astype(spec.dtype).astype(np.float32)
        if not np.isfinite(rounded).all():
            raise BadDataError(
                f"features of {printable(self.bundle.layer)} are not finite as {spec.dtype}: "
                f"extract with --dtype float32 and classify again"
            )
        with np.errstate(all="ignore"):  # of weights that no training gives
            rows = flatten_or_pool(rounded, self.bundle.input)
            scores = class_scores(self.bundle.estimator, rows, len(self.classes))
            whole = (scores >= 0).all() and (abs(scores.sum(axis=1) - 1) < TOLERANCE).all()
        if not whole:  # NaN is neither
            raise BadDataError(
                f"the model {printable(self.name)} gives scores that are no probabilities: "
                f"classify again"
            )
        return scores

    @cached_property
    def _engine(self) -> Engine:
        """The cache's engine where it was tried on this machine, else TensorFlow."""
        bundle = self.bundle
        try:
            made_by = str((bundle.document.get("engine") or {}).get("name"))
            name = made_by if is_installed(made_by) else AUTO
            engine = open_engine(replace(self.base_config(), engine=name), (bundle.layer,))
        except UsageError as error:  # nobody typed it: the bundle says so
            raise BadDataError(f"the model cannot be used: {error}") from error
        self._check_weights(engine.weights)
        if engine.row_shapes[bundle.layer] != bundle.shape:
            raise BadDataError(
                f"the model takes {printable(bundle.layer)} of shape {bundle.shape}; "
                f"{bundle.spec.base} gives {engine.row_shapes[bundle.layer]}"
            )
        return engine

    def base_config(self) -> BaseConfig:
        """The base, with its weights; a file is read before it takes seconds to load TensorFlow."""
        spec = self.bundle.spec
        drawn = re.fullmatch(rf"{RANDOM}-([0-9]{{1,10}})", spec.weights)
        weights = self._weights or RANDOM
        if self._weights is None and not drawn:
            weights = str(self.bundle.document["weights_from"])
            if weights != IMAGENET and not Path(weights).is_file():
                raise NoInputError(
                    f"the weights that the model was trained with are gone from "
                    f"{printable(weights)}: name them with --weights FILE"
                )
        try:
            config = BaseConfig(
                base=spec.base,
                image_size=spec.image_size,
                preprocessing=spec.preprocessing,
                weights=weights,
                seed=int(drawn[1]) if drawn else 0,
                batch_size=self.batch_size,
                cache_dir=self._cache_folder,
            )
        except UsageError as error:  # nobody typed it: the bundle says so
            raise BadDataError(f"the model cannot be used: {error}") from error
        if config.weights != IMAGENET:  # which are in doubt until they are loaded
            self._check_weights(known_digest(config) or "unknown")
        return config

    def _check_weights(self, received: str) -> None:
        spec = self.bundle.spec
        if received != spec.weights:
            raise BadDataError(
                f"the model was trained on {spec.base} with weights {_short(spec.weights)}; "
                f"received {_short(received)} "
                f"({printable(self._weights or str(self.bundle.document['weights_from']))}): "
                f"name those of the training with --weights FILE"
            )


def open_predictor(config: PredictConfig) -> Predictor:
    """Load a head that classify saved, in its ``model`` or the newest run in ``results/``.

    Raises NoInputError if there is no such run, UsageError if it has no such head or the head was
    trained otherwise than expected, and what `load_bundle` and `Predictor` raise.
    """
    run = newest_run(RESULTS) if config.model is None else Path(str(config.model))
    path = find_bundle(run, config.head)
    bundle = load_bundle(path)
    spec, views = bundle.spec, bundle.plan.views
    log.info(
        "model %s: %s on %s %s, %s classes%s", printable(path), printable(bundle.head), spec.base,
        printable(bundle.layer), f"{len(bundle.classes):,}",
        f", mean over {counted(views + 1, 'view')}" if views else "",
    )  # fmt: skip
    expected = {
        "base": find_base(config.base).name if config.base else None,
        "image-size": config.image_size,
        "preprocessing": config.preprocessing,
    }
    for option, received in expected.items():
        there = getattr(spec, option.replace("-", "_"))
        if received not in (None, there):
            raise UsageError(
                f"{printable(path)} was trained with --{option} {there}; received --{option} "
                f"{received}: leave it out, or choose another --model"
            )
    return Predictor(
        bundle,
        weights=config.weights,
        cache_dir=config.cache_dir,
        batch_size=config.batch_size,
        use_cache=config.use_cache,
    )


def mean_over_views(
    probabilities: Iterable[npt.NDArray[np.floating[Any]]],
) -> npt.NDArray[np.float64]:
    """V times (B, K) -> (B, K)."""
    return np.asarray(np.mean(list(probabilities), axis=0))


def _short(digest: str) -> str:
    return printable(digest if len(digest) <= 20 else f"{digest[:12]}…")
