"""What a notebook calls: the functions behind the commands."""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from pipeline.cache.file import FORMAT_VERSION, NO_FILE, FeatureTable, cache_file, read_all_rows
from pipeline.cache.fill import SKIPPED_SUFFIX, Progress, fill_cache
from pipeline.cache.lock import writer_lock
from pipeline.cache.seal import Damage, find_damage
from pipeline.cache.upkeep import (
    bad_rows,
    check_ours,
    mend_metadata,
    remove_damaged_shards,
    skipped_files,
)
from pipeline.durable import make_folder, sync_folder
from pipeline.engines import (
    AUTO,
    ENGINES,
    Engine,
    EngineRequest,
    name_weights,
    open_engine,
)
from pipeline.errors import (
    BadDataError,
    CannotCreateError,
    NoInputError,
    UnreachableError,
    UsageError,
)
from pipeline.evaluation.compare import compare_heads
from pipeline.frames import load_features
from pipeline.images.decode import RESIZE_POLICIES, pixels_digest
from pipeline.images.find import find_images
from pipeline.images.hashes import hash_files
from pipeline.images.reader import Pixels
from pipeline.images.scan import ImageRef, ImageSet, Skipped, scan_folder
from pipeline.models.predicting import Model, Predictions
from pipeline.models.predictor import open_predictor
from pipeline.spec import POOLING_POLICIES, FeatureSpec, check_seed, layer_key
from pipeline.text import counted, printable

log = logging.getLogger(__name__)

__all__ = [
    "Extraction",
    "FeatureTable",
    "Repair",
    "compare_heads",
    "extract_features",
    "load_features",
    "predict_images",
    "repair_cache",
]

BATCH_SIZE = 8  # VGG16 at 150 pixels: as fast as 32 on 2 cores, peak memory 1.0 instead of 1.3 GB
RECORDED_VERSIONS = ("tensorflow", "keras", "numpy", "h5py", "pillow")
DTYPES = ("float32", "float16")
LISTED = 10  # duplicates named in a warning


@dataclass(frozen=True)
class Extraction:
    """What stage one did.

    Attributes
    ----------
    table : the cache, to read features from.
    images : the image folder as found.
    computed : forward passes of this run.
    skipped : files without a row, each with the reason; also in ``skipped_file``.
    seconds : wall time.
    """

    table: FeatureTable
    images: ImageSet
    computed: int
    skipped: tuple[Skipped, ...]
    skipped_file: Path
    seconds: float


def extract_features(
    data: str | os.PathLike[str],
    *,
    base: str = "vgg16",
    image_size: int | None = None,
    layers: Sequence[str] = (),
    pooling: str = "none",
    weights: str | os.PathLike[str] = IMAGENET,
    preprocessing: str = "native",
    resize: str = "squash",
    dtype: str = "float32",
    batch_size: int = BATCH_SIZE,
    engine: str = AUTO,
    mix_engines: bool = False,
    limit_per_class: int | None = None,
    seed: int = 0,
    strict: bool = False,
    rehash: bool = False,
    wait: bool = False,
    out: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] = "cache",
    progress: Progress | None = None,
    on_scan: Callable[[ImageSet], None] | None = None,
) -> Extraction:
    """Run a frozen base once over an image folder and cache its features in HDF5.

    Only what the cache lacks is computed; asking again for the same is answered from the file.

    Parameters
    ----------
    data : folder with ``train/ validation/ test/`` of class folders, or class folders alone.
    base : a model of keras.applications in any usual spelling, or ``pixels``.
    image_size : pixels; None for the base's default (150 for VGG16).
    layers : layer names; none for the base's last.
    pooling : ``none`` keeps maps (N, H, W, C); ``avg`` and ``max`` give (N, C).
    weights : ``imagenet``, ``random`` (drawn with ``seed``) or a Keras weights file.
    preprocessing : ``native`` or the book's ``rescale`` (1/255).
    resize : ``squash``, ``crop`` or ``pad`` to the square.
    dtype : stored type, ``float32`` or ``float16``.
    batch_size : images per forward pass.
    engine : ``tensorflow``, ``onnx``, ``ncnn``, or ``auto``: the one that computed what the cache
        holds; for a new one the fastest of those that agree with TensorFlow on its images.
    mix_engines : let another engine than the recorded one compute what the cache lacks.
    limit_per_class : only the first so many files of each class (of each split), by path.
    strict : raise for the first unreadable image instead of skipping it.
    rehash : read every file to hash it, even those that look unchanged.
    wait : wait for another process that writes the same file.
    out : the cache file; None for ``<cache_dir>/<set>-<base>-<fingerprint>.h5``.
    progress : called with (images done, images in all).
    on_scan : called with the folder's contents before the work begins.

    Raises a `pipeline.errors.PipelineError` for every expected failure.

    Examples
    --------
    >>> from pipeline import extract_features
    >>> extraction = extract_features("photos", base="pixels", pooling="avg")  # vgg16 by default
    >>> extraction.table.features("pixels:avg").shape
    (72, 3)
    >>> extract_features("photos", base="pixels", pooling="avg").computed  # all from the cache
    0
    """
    started = time.monotonic()
    _check_choice("pooling", pooling, POOLING_POLICIES)
    check_seed(seed)
    for name in layers:
        if ":" in name:
            raise UsageError(f"--layer {name}: name the layer alone, and its pooling by --pooling")
    if limit_per_class is not None and limit_per_class < 1:
        raise UsageError(f"--limit-per-class needs at least 1; received {limit_per_class}")
    cache_folder = Path(cache_dir)
    chosen = find_base(base)
    recipe = Recipe(
        base=chosen,
        image_size=chosen.image_size if image_size is None else image_size,
        preprocessing=preprocessing,
        resize=resize,
        dtype=dtype,
        weights=WeightsChoice.parse(os.fspath(weights), seed=seed),
        cache_folder=cache_folder,
        batch_size=batch_size,
        engine_name=engine,
        mix_engines=mix_engines,
    )
    layer_names = layers or [chosen.last_layer]
    layer_keys = tuple(sorted({layer_key(name, pooling) for name in layer_names}))
    found = scan_folder(Path(data))
    if limit_per_class is not None:
        found = found.limited(limit_per_class)
    if on_scan:
        on_scan(found)
    refs, unreadable = hash_files(
        found.root, found.files, index_folder=cache_folder / "hashes", rehash=rehash
    )
    warn_of_duplicates(found, refs)
    spec = recipe.spec(layer_keys)
    path = _output_path(out, cache_folder, found, spec, {ref.digest for ref in refs})
    filled = fill_cache(
        path,
        images=found,
        refs=refs,
        skipped=(*found.skipped, *unreadable),
        spec=spec,
        layers=layer_keys,
        open_engine=recipe.engine,
        document=cache_document(found, recipe, spec),
        batch_size=batch_size,
        strict=strict,
        wait=wait,
        progress=progress,
    )
    return Extraction(
        table=load_features(path),
        images=found,
        computed=filled.computed,
        skipped=filled.skipped,
        skipped_file=path.with_suffix(SKIPPED_SUFFIX),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Repair:
    """What `repair_cache` did: what was wrong, and how many images were computed again."""

    damages: tuple[Damage, ...]
    computed: int


def repair_cache(
    path: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] = "cache",
    batch_size: int = BATCH_SIZE,
    wait: bool = False,
    progress: Progress | None = None,
) -> Repair:
    """Mend a damaged cache file, computing again only the rows that are bad.

    Parameters
    ----------
    path : the cache file.
    weights : the weights file, where the one that the cache was made with has moved.
    cache_dir : where fetched ImageNet weights are.

    Raises BadDataError if the file is past mending, NoInputError if the image folder is gone.
    """
    target = Path(path)
    check_ours(target)
    with writer_lock(target, wait=wait):
        shards = remove_damaged_shards(target)
    damages = find_damage(target)
    if not damages:
        read_all_rows(target)
        sync_folder(target.parent)  # a repair that was killed may not have come to that
        return Repair(tuple(shards), 0)
    with writer_lock(target, wait=wait):
        mend_metadata(target)
    table = read_all_rows(target)
    recipe = _recipe_of(table, weights, Path(cache_dir), batch_size)
    layers = tuple(table.layers)
    if recipe.spec(layers) != table.spec:
        raise BadDataError(
            f"{printable(target)} was made with weights or a decoder that are not here any more: "
            f"name the weights with --weights, or extract into a new file"
        )
    root = Path(table.document["root"])
    if not root.is_dir():
        raise NoInputError(
            f"the image folder {printable(root)} of {printable(target)} is gone: its bad rows "
            f"cannot be computed again"
        )
    known_paths = set(table.columns.paths[table.columns.labels != NO_FILE].tolist())
    found = scan_folder(root).only(known_paths, skipped=skipped_files(target))
    refs, unreadable = hash_files(root, found.files)
    filled = fill_cache(
        target,
        images=found,
        refs=refs,
        skipped=(*found.skipped, *unreadable),
        spec=table.spec,
        layers=layers,
        open_engine=recipe.engine,
        document=dict(table.document),
        batch_size=batch_size,
        wait=wait,
        distrusted=bad_rows(target, table),
        progress=progress,
    )
    return Repair((*shards, *damages), filled.computed)


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
        _check_choice("preprocessing", self.preprocessing, PREPROCESSING_POLICIES)
        _check_choice("resize", self.resize, RESIZE_POLICIES)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("engine", self.engine_name, (AUTO, *ENGINES))
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
            self._engines[keys] = open_engine(
                self._request(keys), engine=self._allowed(recorded), images=images
            )
        return self._engines[keys]

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


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"--{name} is one of {', '.join(allowed)}; received {value!r}")


def _output_path(
    out: str | os.PathLike[str] | None,
    cache_folder: Path,
    found: ImageSet,
    spec: FeatureSpec,
    digests: Collection[bytes],
) -> Path:
    """Where the cache goes, its folder made; raises CannotCreateError if that cannot be."""
    if out is None:
        make_folder(cache_folder)
        return cache_file(
            cache_folder, set_name=found.name, root=found.root, spec=spec, digests=digests
        )
    path = Path(out)
    if path.suffix != ".h5":
        raise UsageError(f"--out names an HDF5 file, ending in .h5; received {path}")
    if path.is_dir():
        raise CannotCreateError(f"{path} is a folder; --out names a file")
    make_folder(path.parent)
    return path


def cache_document(found: ImageSet, recipe: Recipe, spec: FeatureSpec) -> dict[str, Any]:
    """The file's ``spec`` dataset: what the features are and where they come from."""
    return {
        "format": FORMAT_VERSION,
        "spec": asdict(spec),
        "fingerprint": spec.fingerprint,
        "set": found.name,
        "root": os.fsdecode(found.root),
        "weights_from": os.fspath(
            recipe.weights.path.resolve() if recipe.weights.path else recipe.weights.kind
        ),
        "versions": {name: version(name) for name in RECORDED_VERSIONS},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _recipe_of(
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


def warn_of_duplicates(found: ImageSet, refs: Sequence[ImageRef]) -> None:
    """Say which identical files stand under two labels or in two splits: they inflate scores."""
    by_digest: dict[bytes, list[ImageRef]] = defaultdict(list)
    for ref in refs:
        by_digest[ref.digest].append(ref)
    conflicts = {
        "labels": [group for group in by_digest.values() if len({r.label for r in group}) > 1],
        "splits": [group for group in by_digest.values() if len({r.split for r in group}) > 1],
    }
    for what, groups in conflicts.items():
        if groups:
            log.warning(
                "%s under two %s: %s%s",
                counted(len(groups), "image stands", "images stand"),
                what,
                "; ".join(" = ".join(printable(ref.path) for ref in g) for g in groups[:LISTED]),
                f" and {len(groups) - LISTED:,} more" if len(groups) > LISTED else "",
            )


def predict_images(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    model: str | os.PathLike[str] | Model | None = None,
    head: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] = "cache",
    use_cache: bool = True,
    base: str | None = None,
    image_size: int | None = None,
    preprocessing: str | None = None,
    batch_size: int = BATCH_SIZE,
    strict: bool = False,
) -> Predictions:
    """Classify image files with a trained head.

    The files are found and the head is loaded at once; images are looked at while one iterates
    over what is returned. An image whose features a cache holds is neither decoded nor run; of a
    head that was trained on float16 features, new ones are rounded in the same way.

    Parameters
    ----------
    images : files, folders (all files below them) and patterns, ``photos/**/*.jpg``.
    model : a run's folder or a model file; None for the newest run in ``results/``; or what is
        already open, such as an `pipeline.models.imagenet.ImagenetModel`.
    head : name of the head; None for the one that the run recommends.
    weights : the base's weights file, where the one that it was trained with has moved.
    cache_dir : where caches and fetched ImageNet weights are.
    use_cache : False computes every image.
    base, image_size, preprocessing : what the model should have been trained with; None for any.
    batch_size : images per forward pass.
    strict : raise for the first unreadable image instead of skipping it.

    Raises a `pipeline.errors.PipelineError` for every expected failure.

    Examples
    --------
    >>> from pipeline import predict_images
    >>> first, *_ = predict_images("photos/test/plain", model="results/logistic.safetensors")
    >>> first.label
    'plain'
    """
    names = [images] if isinstance(images, str | os.PathLike) else images
    asked = [os.fspath(name) for name in names]
    paths, skipped = find_images(asked)
    if not paths:
        why = f"none below {printable(asked[0])}" if asked else "none was named"
        if skipped:
            why = f"{printable(skipped[0].path)} {skipped[0].reason}"
        raise NoInputError(f"there is no image file to look at: {why}")
    if model is None or isinstance(model, str | os.PathLike):
        model = open_predictor(
            None if model is None else Path(model),
            head=head,
            expected={"base": base, "image_size": image_size, "preprocessing": preprocessing},
            weights=None if weights is None else os.fspath(weights),
            cache_dir=Path(cache_dir),
            batch_size=batch_size,
            use_cache=use_cache,
        )
    return Predictions(model, paths, skipped=skipped, strict=strict)
