"""Predict with a bundle: from pixels to class probabilities, as in training."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from pipeline.bases.config import AUTO, BATCH_SIZE, IMAGENET, RANDOM, BaseConfig, base_options
from pipeline.bases.file_base import base_name, options_in
from pipeline.bases.registry import FILE_SUFFIXES
from pipeline.bases.weights import known_digest
from pipeline.cache.file import RowKey
from pipeline.engines import Engine, is_installed, open_engine
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.heads.calibration import head_outputs
from pipeline.heads.inputs import flatten_or_pool
from pipeline.images.decode import pixels_digest
from pipeline.images.reader import Pixels
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.cached_features import CachedFeatures, training_table
from pipeline.models.config import PredictConfig
from pipeline.models.heatmaps import choose_method, heatmaps, maps_layer
from pipeline.models.image_predictions import Output
from pipeline.models.neighbors import CachedNeighbors
from pipeline.models.rejection import Rejector
from pipeline.models.top_block import TopBlockClassifier
from pipeline.spec import CLASSES, REGRESSION
from pipeline.text import counted, printable

log = logging.getLogger(__name__)

Inspection = Callable[
    [npt.NDArray[np.float32], npt.NDArray[np.float64], Sequence[bytes]], Sequence[Mapping[str, Any]]
]


class Predictor:
    """A base and its trained head, an `ImageClassifier`; the first uncached image loads the base.

    Parameters
    ----------
    weights : ``imagenet`` or a Keras weights file; None for those that the bundle names.
    cache_dir : its ``weights/`` contains fetched ImageNet weights.
    use_cache : use features from the cache of the training, and from ``cache_dir``.
    inspections : functions of features (B, *shape), probabilities (B, K) and the digests of the B
        files that return fields of `Output` for each image.
    explain : the method of `heatmaps` for the predicted class; empty for no heat maps. Those of a
        head on pooled features need the maps: these are computed, if the cache lacks them.

    Raises BadDataError if the decoder gives other pixels here than in training, or if ``weights``
    are not those of the training.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        weights: str | None = None,
        cache_dir: Path,
        batch_size: int = BATCH_SIZE,
        use_cache: bool = False,
        inspections: Iterable[Inspection] = (),
        explain: str = "",
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"--batch-size needs at least 1; received {batch_size}")
        self.bundle = bundle
        self.name = f"{bundle.head} on {bundle.spec.base}"
        self.classes = bundle.classes
        self.task = bundle.task
        self.image_size = bundle.spec.image_size
        self.resize = bundle.spec.resize
        self.range = bundle.spec.range
        self.batch_size = batch_size
        self._weights = weights
        self._cache_dir = cache_dir
        self._inspections = tuple(inspections)
        self._explain = explain and choose_method(bundle, explain)
        self._maps_layer = maps_layer(bundle) if explain else bundle.layer
        pixels = pixels_digest(bundle.spec.image_size, bundle.spec.resize)
        if pixels != bundle.spec.pixels:  # of the decoder of the training
            versions = bundle.document.get("versions")
            pillow = versions.get("pillow", "unknown") if isinstance(versions, dict) else "unknown"
            raise BadDataError(
                f"the model was trained on images decoded with Pillow {printable(str(pillow))} "
                f"(pixels {_short_digest(bundle.spec.pixels)}); received pixels "
                f"{_short_digest(pixels)} of Pillow {PIL.__version__}: install that Pillow, or "
                f"extract and classify again here"
            )
        is_tuned = isinstance(bundle.estimator, TopBlockClassifier)
        if is_tuned and options_in(bundle.spec.preprocessing):  # its layers are in the file
            bundle.estimator.find_layers_in(self.base_config().base)
        elif weights is not None:  # a wrong file is refused even if every image is cached
            self.base_config()
        self._cached_features = None
        if use_cache and self._maps_layer != bundle.layer:
            log.info("heat maps need %s: cached features are not used", printable(self._maps_layer))
        elif use_cache:
            self._cached_features = CachedFeatures(bundle, cache_dir)

    def describe(self) -> dict[str, Any]:
        bundle, spec = self.bundle, self.bundle.spec
        return {
            "head": bundle.head, "params": bundle.params, "base": spec.base, "layer": bundle.layer,
            "input": bundle.input, "tta": bundle.plan.views, "image_size": spec.image_size,
            "preprocessing": spec.preprocessing, "resize": spec.resize,
            "range": spec.range,
            "fingerprint": spec.fingerprint, "classes": list(bundle.classes),
        } | ({} if self.task == CLASSES else {"task": self.task})  # fmt: skip

    def probabilities(self, pixels: Pixels, digests: Sequence[bytes]) -> npt.NDArray[np.float64]:
        """Compute class probabilities: (B, S, S, 3) uint8 RGB -> (B, K) float64.

        B is at least 1; the SHA-256 digests of the B files seed their augmented views.

        Raises BadDataError for other weights than in training or features that are not finite;
        UnreachableError if ImageNet weights cannot be fetched.
        """
        views = self.views(pixels, digests)
        return mean_over_views(self.classify(self.features(view)) for view in views)

    def outputs(self, pixels: Pixels, digests: Sequence[bytes]) -> list[Output]:
        """Compute probabilities as `probabilities` does, and what ``inspections`` add.

        Heat maps and inspections are of the unaugmented images.
        """
        views = self.views(pixels, digests)
        layers = self._layers(next(views))
        features = chain([layers[self.bundle.layer]], map(self.features, views))
        return self._outputs(features, layers[self._maps_layer], digests)

    def _outputs(
        self,
        views: Iterable[npt.NDArray[np.float32]],
        maps: npt.NDArray[np.float32],
        digests: Sequence[bytes],
    ) -> list[Output]:
        """Return the output of each image from the features (B, *shape) of its views.

        ``maps`` (B, H, W, C), for heat maps, are those of the unaugmented images.
        """
        original, *others = views
        probabilities = mean_over_views(map(self.classify, (original, *others)))
        details = [inspect(original, probabilities, digests) for inspect in self._inspections]
        if self._explain:
            found = heatmaps(self.bundle, maps, probabilities.argmax(axis=1), self._explain)
            details.append([{"heatmap": each} for each in found])
        return [
            Output(row, **{name: value for each in of_image for name, value in each.items()})
            for row, *of_image in zip(probabilities, *details, strict=True)
        ]

    def views(self, pixels: Pixels, digests: Sequence[bytes]) -> Iterator[Pixels]:
        """Return the images, then each of their augmented views to average over."""
        yield pixels
        plan = self.bundle.plan
        for view in range(1, plan.views + 1):
            keys = [RowKey(digest, view) for digest in digests]
            yield np.stack([plan.draw(key, image) for key, image in zip(keys, pixels, strict=True)])

    def features(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Compute features: (B, S, S, 3) uint8 RGB -> (B, *shape) float32.

        Raises as `probabilities` does.
        """
        return self._layers(pixels)[self.bundle.layer]

    def _layers(self, pixels: Pixels) -> dict[str, npt.NDArray[np.float32]]:
        """Compute the features of the layer, and of `maps_layer` for heat maps."""
        size = self.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3):
            raise UsageError(
                f"expected pixels (B, {size}, {size}, 3) uint8; received {pixels.shape} "
                f"{pixels.dtype}"
            )
        parts = [
            self._engine(pixels[start : start + self.batch_size])
            for start in range(0, len(pixels), self.batch_size)
        ]
        layers = dict.fromkeys((self.bundle.layer, self._maps_layer))
        return {layer: np.concatenate([part[layer] for part in parts]) for layer in layers}

    def cached_outputs(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], list[Output]]]:
        """Classify cached images in blocks: digests and outputs; skip uncached ones."""
        if self._cached_features is not None:
            for cached, views in self._cached_features.features(digests):
                yield cached, self._outputs(views, views[0], cached)

    def classify(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Compute class probabilities of features: (B, *shape) float32 -> (B, K) float64.

        Features are rounded as in the cache of the training, so that cached and computed images
        have equal probabilities. Raises BadDataError for features that are not finite, or scores
        that are not probabilities.
        """
        spec = self.bundle.spec
        with np.errstate(over="ignore"):
            rounded = features.astype(spec.dtype).astype(np.float32)
        if not np.isfinite(rounded).all():
            raise BadDataError(
                f"features of {printable(self.bundle.layer)} are not finite as {spec.dtype}: "
                f"extract with --dtype float32 and classify again"
            )
        try:
            with np.errstate(all="ignore"):  # of invalid weights
                rows = flatten_or_pool(rounded, self.bundle.input)
                scores = head_outputs(self.bundle.estimator, rows, len(self.classes), self.task)
            if not np.isfinite(scores).all():
                raise BadDataError("gave scores that are not finite")
        except BadDataError as error:
            raise BadDataError(
                f"the model {printable(self.name)} {error}: classify again"
            ) from error
        return scores

    @cached_property
    def _engine(self) -> Engine:
        """Open the engine of the cache if it is installed, else TensorFlow."""
        bundle = self.bundle
        try:
            name = str((bundle.document.get("engine") or {}).get("name"))
            name = name if is_installed(name) else AUTO
            layers = tuple(dict.fromkeys((bundle.layer, self._maps_layer)))
            engine = open_engine(replace(self.base_config(), engine=name), layers)
        except UsageError as error:  # the bundle's value, not the user's
            raise BadDataError(f"the model cannot be used: {error}") from error
        self._check_weights(engine.weights)
        if engine.row_shapes[bundle.layer] != bundle.shape:
            raise BadDataError(
                f"the model takes {printable(bundle.layer)} of shape {bundle.shape}; "
                f"{bundle.spec.base} gives {engine.row_shapes[bundle.layer]}"
            )
        return engine

    def base_config(self) -> BaseConfig:
        """Return the base's config; check a weights file before TensorFlow loads, which is slow."""
        spec = self.bundle.spec
        weights = self._weights or str(self.bundle.document["weights_from"])
        is_named = weights == IMAGENET or spec.weights.startswith(RANDOM)
        if self._weights is None and not is_named and not Path(weights).is_file():
            raise NoInputError(
                f"the weights of the training, {printable(weights)}, do not exist: "
                f"pass their new path with --weights FILE"
            )
        try:
            options = base_options(spec, weights)
            if self._weights and "weights" in options:
                options["weights"] = self._weights
            config = BaseConfig(**options, batch_size=self.batch_size, cache_dir=self._cache_dir)
        except UsageError as error:  # the bundle's value, not the user's
            raise BadDataError(f"the model cannot be used: {error}") from error
        if config.file or config.weights != IMAGENET:  # these are checked when they are loaded
            self._check_weights(known_digest(config) or "unknown")
        return config

    def _check_weights(self, received: str) -> None:
        spec = self.bundle.spec
        if received != spec.weights:
            raise BadDataError(
                f"the model was trained on {spec.base} with weights {_short_digest(spec.weights)}; "
                f"received {_short_digest(received)} "
                f"({printable(self._weights or str(self.bundle.document['weights_from']))}): "
                f"pass those of the training with --weights FILE"
            )


def open_predictor(path: Path, config: PredictConfig) -> Predictor:
    """Load a saved head from its file, see `find_bundle`.

    Raises UsageError for one that was trained with other options than the expected ones, and the
    errors of `load_bundle` and `Predictor`.
    """
    bundle = load_bundle(path)
    spec, views = bundle.spec, bundle.plan.views
    log.info(
        "model %s: %s on %s %s, %s%s", printable(path), printable(bundle.head), spec.base,
        printable(bundle.layer), _describe_outputs(bundle),
        f", mean over {counted(views + 1, 'view')}" if views else "",
    )  # fmt: skip
    is_file = config.base is not None and config.base.endswith(FILE_SUFFIXES)
    expected = {
        "base": base_name(Path(str(config.base))) if is_file else config.base,
        "image-size": config.image_size,
        "preprocessing": config.preprocessing,
    }
    for option, received in expected.items():
        trained_with = getattr(spec, option.replace("-", "_"))
        if received not in (None, trained_with):
            raise UsageError(
                f"{printable(path)} was trained with --{option} {trained_with}; received "
                f"--{option} {received}: leave it out, or choose another --model"
            )
    return Predictor(
        bundle,
        weights=config.weights,
        cache_dir=config.cache_dir,
        batch_size=config.batch_size,
        use_cache=config.use_cache,
        inspections=_inspections(bundle, path, config),
        explain=config.explain_method if config.explain else "",
    )


def _inspections(bundle: Bundle, path: Path, config: PredictConfig) -> Iterator[Inspection]:
    """Yield the functions that find neighbors and reject images, as requested.

    Raises NoInputError if the cache of the training is gone, without which there are no neighbors;
    UsageError or BadDataError if the model cannot reject images.
    """
    if not (config.neighbors or config.reject):
        return
    table = training_table(bundle, config.cache_dir)
    cached = None if table is None else CachedNeighbors(table, bundle.layer)
    name = printable(str(bundle.document["cache"]))
    missing = f"the cache of the training, {name}, is missing or cannot be used"
    cure = "pass its folder with --cache-dir, or extract and classify again"
    if config.neighbors:
        if cached is None:
            raise NoInputError(f"--neighbors: {missing}; {cure}")
        yield lambda features, _, digests: [
            {"neighbors": each} for each in cached.find(features, config.neighbors, digests)
        ]
    if config.reject:
        if bundle.task != CLASSES:
            raise UsageError(f"--reject is for classes; {printable(path)} is of {bundle.task}")
        if (calibration := bundle.calibration_set) is None:
            raise BadDataError(
                f"--reject: {printable(path)} is of a version that kept no predictions of "
                f"validation images: classify again"
            )
        if cached is None:
            log.warning(
                "--reject: %s; only the head's doubt is used. To use distances, %s", missing, cure
            )
        yield Rejector(
            calibration,
            bundle.classes,
            cached,
            coverage=config.coverage,
            max_error=config.max_error,
            per_class=config.per_class,
        )


def _describe_outputs(bundle: Bundle) -> str:
    if bundle.task == REGRESSION:
        return printable(bundle.classes[0])
    return f"{len(bundle.classes):,} {'classes' if bundle.task == CLASSES else 'labels'}"


def mean_over_views(
    probabilities: Iterable[npt.NDArray[np.floating[Any]]],
) -> npt.NDArray[np.float64]:
    """Average V arrays (B, K) -> (B, K)."""
    return np.asarray(np.mean(list(probabilities), axis=0))


def _short_digest(digest: str) -> str:
    return printable(digest if len(digest) <= 20 else f"{digest[:12]}…")
