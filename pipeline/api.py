"""What a notebook calls: the functions behind the commands."""

import contextlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.bases.registry import find_base
from pipeline.bases.weights import IMAGENET, WeightsChoice
from pipeline.cache.file import NO_FILE, FeatureTable, cache_file, read_all_rows
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
from pipeline.cache.view_plan import ViewPlan
from pipeline.durable import make_folder, sync_folder
from pipeline.engines import AUTO, BATCH_SIZE
from pipeline.errors import BadDataError, CannotCreateError, NoInputError, UsageError
from pipeline.evaluation.compare import compare_heads
from pipeline.frames import load_features
from pipeline.images.decode import RESIZE_POLICIES
from pipeline.images.find import find_images
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import NO_SPLIT, TRAIN, ImageRef, ImageSet, Skipped, scan_folder
from pipeline.images.views import Augmentation, choose_augmentation
from pipeline.models.predicting import Model, Predictions
from pipeline.models.predictor import open_predictor
from pipeline.recipe import Recipe, cache_document, check_choice, recipe_of
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
    "preview_views",
    "repair_cache",
]

VARIANT_DIGITS = 6  # of an augmentation's digest, in a file's name
PREVIEWED, PREVIEWED_PER_CLASS = 8, 4  # images on a sheet of views
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
    views: int = 0,
    augmentation: str | Augmentation = "book",
    tta: bool = False,
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
    views : K random views of each training image, besides the image itself.
    augmentation : what they are drawn from: ``light``, ``book`` or ``strong`` (with ``seed``), or
        ranges of one's own.
    tta : views of validation and test images, too, for test-time averaging.
    batch_size : images per forward pass.
    engine : ``tensorflow``, ``onnx``, ``ncnn``, or ``auto``: the one that computed what the cache
        holds; for a new one the fastest of those that agree with TensorFlow on its images.
    mix_engines : let another engine than the recorded one compute what the cache lacks.
    limit_per_class : only the first so many files of each class (of each split), by path.
    strict : raise for the first unreadable image instead of skipping it.
    rehash : read every file to hash it, even those that look unchanged.
    wait : wait for another process that writes the same file.
    out : the cache file; None for ``<cache_dir>/<set>-<base>-<fingerprint>.h5``, where there are
        views ``<set>+<augmentation>-…``.
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
    check_choice("pooling", pooling, POOLING_POLICIES)
    check_seed(seed)
    for name in layers:
        if ":" in name:
            raise UsageError(f"--layer {name}: name the layer alone, and its pooling by --pooling")
    if limit_per_class is not None and limit_per_class < 1:
        raise UsageError(f"--limit-per-class needs at least 1; received {limit_per_class}")
    cache_folder = Path(cache_dir)
    if isinstance(augmentation, str):
        augmentation = choose_augmentation(augmentation, seed=seed)
    plan = ViewPlan(views, augmentation if views else None, tta)
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
    path = _output_path(out, cache_folder, found, spec, plan, {ref.digest for ref in refs})
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
        plan=plan,
        donors=[] if out else [each for each in _siblings(path, found, spec) if recipe.takes(each)],
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


def preview_views(
    data: str | os.PathLike[str],
    *,
    base: str = "vgg16",
    image_size: int | None = None,
    resize: str = "squash",
    views: int = 8,
    augmentation: str | Augmentation = "book",
    cache_dir: str | os.PathLike[str] = "cache",
) -> Path:
    """Draw some training images and their views, as a base would see them, on a PNG sheet.

    Returns ``<cache_dir>/<set>+<augmentation>-views.png``.
    """
    from pipeline.report.sheets import write_view_sheet

    if isinstance(augmentation, str):
        augmentation = choose_augmentation(augmentation)
    ViewPlan(views, augmentation if views else None)
    found = scan_folder(Path(data)).limited(PREVIEWED_PER_CLASS)
    files = [file for file in found.files if file.split in (NO_SPLIT, TRAIN)][:PREVIEWED]
    refs, _ = hash_files(found.root, files)
    size = find_base(base).image_size if image_size is None else image_size
    check_choice("resize", resize, RESIZE_POLICIES)
    with closing(read_images(found.root, refs, image_size=size, resize=resize)) as images:
        rows = [(ref, pixels) for ref, pixels in images if not isinstance(pixels, Skipped)]
    make_folder(Path(cache_dir))
    sheet = Path(cache_dir) / f"{found.name}+{augmentation.digest[:VARIANT_DIGITS]}-views.png"
    write_view_sheet(sheet, rows, augmentation=augmentation, views=views)
    return sheet


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
    recipe = recipe_of(table, weights, Path(cache_dir), batch_size)
    layers = tuple(table.layers)
    if recipe.spec(layers) != table.spec:
        raise BadDataError(
            f"{printable(target)} was made with weights or a decoder that are not here any more: "
            f"name the weights with --weights, or extract into a new file"
        )
    try:
        plan = ViewPlan.from_document(table.document)
    except ValueError as error:
        raise BadDataError(f"{printable(target)} cannot be repaired: {error}") from error
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
        plan=plan,
        progress=progress,
    )
    return Repair((*shards, *damages), filled.computed)


def _output_path(
    out: str | os.PathLike[str] | None,
    cache_folder: Path,
    found: ImageSet,
    spec: FeatureSpec,
    plan: ViewPlan,
    digests: Collection[bytes],
) -> Path:
    """Where the cache goes, its folder made; raises CannotCreateError if that cannot be."""
    if out is None:
        make_folder(cache_folder)
        return cache_file(
            cache_folder,
            set_name=found.name,
            root=found.root,
            spec=spec,
            variant=plan.augmentation.digest[:VARIANT_DIGITS] if plan.augmentation else "",
            digests=digests,
        )
    path = Path(out)
    if path.suffix != ".h5":
        raise UsageError(f"--out names an HDF5 file, ending in .h5; received {path}")
    if path.is_dir():
        raise CannotCreateError(f"{path} is a folder; --out names a file")
    make_folder(path.parent)
    return path


def _siblings(path: Path, found: ImageSet, spec: FeatureSpec) -> Iterator[FeatureTable]:
    """The set's other files of this fingerprint: with other views, or none."""
    for other in sorted(path.parent.glob(f"*-{spec.base}-{spec.fingerprint}.h5")):
        if other != path:
            with contextlib.suppress(BadDataError):  # what is damaged is no help, and no hindrance
                table = read_all_rows(other)
                same = table.spec == spec and Path(table.document["root"]) == found.root
                if same and not find_damage(other):
                    yield table


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
