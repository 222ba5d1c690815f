"""What a notebook calls: the functions behind the commands."""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cache.checksums import Damage, find_damage
from pipeline.cache.config import ExtractConfig, ViewPlan
from pipeline.cache.file import NO_FILE, FeatureTable, cache_file, read_all_rows, read_table
from pipeline.cache.fill import SKIPPED_SUFFIX, RowProgress, fill_cache, read_skipped
from pipeline.cache.maintenance import (
    check_format,
    damaged_rows,
    remove_damaged_shards,
    repair_metadata,
)
from pipeline.cache.provenance import cache_document, config_of, continue_engine, feature_spec
from pipeline.cache.shards import writer_lock
from pipeline.durable import make_folder, sync_folder
from pipeline.errors import BadDataError, NoInputError
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import NO_SPLIT, TRAIN, ImageFolder, Skipped, find_images, scan_folder
from pipeline.models.config import PredictConfig
from pipeline.models.image_predictions import ImagePredictions
from pipeline.text import counted, printable

log = logging.getLogger(__name__)

VARIANT_DIGITS = 6  # of an augmentation's digest, in a file's name
PREVIEWED, PREVIEWED_PER_CLASS = 8, 4  # images on a sheet of views
PREVIEWED_VIEWS = 8  # of each, where --views says nothing
LISTED = 10  # duplicates named in a warning


@dataclass(frozen=True)
class Extraction:
    """What stage one did.

    ``table`` is the cache, ``computed`` counts the forward passes of this run; ``skipped`` are
    files without a row, each with the reason, listed in ``skipped_file``, too.
    """

    table: FeatureTable
    images: ImageFolder
    computed: int
    skipped: tuple[Skipped, ...]
    skipped_file: Path
    seconds: float


def extract_features(
    data: str | os.PathLike[str],
    config: ExtractConfig | None = None,
    *,
    progress: RowProgress | None = None,
    on_scan: Callable[[ImageFolder], None] | None = None,
    **options: Any,
) -> Extraction:
    """Run a frozen base once over an image folder and cache its features in HDF5.

    Only what the cache lacks is computed; asking again for the same is answered from the file.

    Parameters
    ----------
    data : folder with ``train/ validation/ test/`` of class folders, or class folders alone.
    progress : called with (images done, images in all).
    on_scan : called with the folder's contents before the work begins.
    **options : fields of `pipeline.ExtractConfig`, such as ``base="resnet50"``; they replace those
        of ``config``.

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
    config = replace(config or ExtractConfig(), **options)
    plan = config.view_plan
    found = scan_folder(Path(data))
    if config.limit_per_class is not None:
        found = found.limited(config.limit_per_class)
    if on_scan:
        on_scan(found)
    digests, unreadable = hash_files(
        found.root, found.paths, index_folder=config.cache_dir / "hashes", rehash=config.rehash
    )
    warn_of_duplicates(found, digests)
    spec = feature_spec(config)
    make_folder(config.out.parent if config.out else config.cache_dir)
    path = config.out or cache_file(
        config.cache_dir,
        set_name=found.name,
        root=found.root,
        spec=spec,
        variant=plan.augmentation.digest[:VARIANT_DIGITS] if plan.augmentation else "",
        digests=set(digests.values()),
    )
    filled = fill_cache(
        path,
        images=found,
        digests=digests,
        skipped=(*found.skipped, *unreadable),
        spec=spec,
        layers=config.layer_keys,
        open_engine=partial(continue_engine, config),
        document=cache_document(found.name, found.root, config, spec),
        batch_size=config.batch_size,
        strict=config.strict,
        wait=config.wait,
        plan=plan,
        progress=progress,
    )
    return Extraction(
        table=read_table(path),
        images=found,
        computed=filled.computed,
        skipped=filled.skipped,
        skipped_file=path.with_suffix(SKIPPED_SUFFIX),
        seconds=time.monotonic() - started,
    )


def preview_views(
    data: str | os.PathLike[str], config: ExtractConfig | None = None, **options: Any
) -> Path:
    """Draw some training images and their views, as a base would see them, on a PNG sheet.

    Returns ``<cache_dir>/<set>+<augmentation>-views.png``.
    """
    from pipeline.report.sheets import write_view_sheet

    config = replace(config or ExtractConfig(), **options)
    views, augmentation = config.views or PREVIEWED_VIEWS, config.augmentation_ranges
    ViewPlan(views, augmentation)
    found = scan_folder(Path(data)).limited(PREVIEWED_PER_CLASS)
    paths = [file.path for file in found.files if file.split in (NO_SPLIT, TRAIN)][:PREVIEWED]
    digests, _ = hash_files(found.root, paths)
    read = read_images(found.root, digests, image_size=config.size, resize=config.resize)
    with closing(read):
        rows = [(path, digests[path], each) for path, each in read if not isinstance(each, Skipped)]
    make_folder(config.cache_dir)
    sheet = config.cache_dir / f"{found.name}+{augmentation.digest[:VARIANT_DIGITS]}-views.png"
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
    wait: bool = False,
    progress: RowProgress | None = None,
) -> Repair:
    """Mend a damaged cache file, computing again only the rows that are bad.

    ``weights`` names the weights file where the one that the cache was made with has moved;
    fetched ImageNet weights are below ``cache_dir``.

    Raises BadDataError if the file is past mending, NoInputError if the image folder is gone.
    """
    target = Path(path)
    check_format(target)
    with writer_lock(target, wait=wait):
        shards = remove_damaged_shards(target)
    damages = find_damage(target)
    if not damages:
        read_all_rows(target)
        sync_folder(target.parent)  # a repair that was killed may not have come to that
        return Repair(tuple(shards), 0)
    with writer_lock(target, wait=wait):
        repair_metadata(target)
    table = read_all_rows(target)
    config = config_of(table, weights, Path(cache_dir))
    if feature_spec(config) != table.spec:
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
    found = scan_folder(root).only(known_paths, skipped=read_skipped(target))
    digests, unreadable = hash_files(root, found.paths)
    filled = fill_cache(
        target,
        images=found,
        digests=digests,
        skipped=(*found.skipped, *unreadable),
        spec=table.spec,
        layers=tuple(table.layers),
        open_engine=partial(continue_engine, config),
        document=dict(table.document),
        batch_size=config.batch_size,
        wait=wait,
        damaged=damaged_rows(target, table),
        plan=plan,
        progress=progress,
    )
    return Repair((*shards, *damages), filled.computed)


def warn_of_duplicates(found: ImageFolder, digests: Mapping[bytes, bytes]) -> None:
    """Log which identical files have two labels or are in two splits: they inflate scores."""
    by_digest = defaultdict(list)
    for file in found.files:
        if file.path in digests:
            by_digest[digests[file.path]].append(file)
    for what in ("label", "split"):
        groups = [each for each in by_digest.values() if len({getattr(f, what) for f in each}) > 1]
        if groups:
            listed = "; ".join(" = ".join(printable(f.path) for f in g) for g in groups[:LISTED])
            more = f" and {len(groups) - LISTED:,} more" if len(groups) > LISTED else ""
            count = counted(len(groups), "image stands", "images stand")
            log.warning("%s under two %ss: %s%s", count, what, listed, more)


def predict_images(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    config: PredictConfig | None = None,
    **options: Any,
) -> ImagePredictions:
    """Classify image files with a trained head.

    The files are found and the head is loaded at once, images are looked at while one iterates.
    An image whose features a cache holds is neither decoded nor run; for a head that was trained on
    float16 features, new ones are rounded, too.

    Parameters
    ----------
    images : files, folders (all files below them) and patterns, ``photos/**/*.jpg``.
    **options : fields of `pipeline.PredictConfig`, such as ``model="results/<run>"``; they replace
        those of ``config``. ``model`` may be what is already open, such as an
        `pipeline.models.imagenet.ImagenetModel`.

    Raises a `pipeline.errors.PipelineError` for every expected failure.

    Examples
    --------
    >>> from pipeline import predict_images
    >>> first, *_ = predict_images("photos/test/plain", model="results/logistic.skops")
    >>> first.label
    'plain'
    """
    config = replace(config or PredictConfig(), **options)
    names = [images] if isinstance(images, str | os.PathLike) else images
    asked = [os.fspath(name) for name in names]
    paths, skipped = find_images(asked)
    if not paths:
        why = f"none below {printable(asked[0])}" if asked else "none was named"
        if skipped:
            why = f"{printable(skipped[0].path)} {skipped[0].reason}"
        raise NoInputError(f"there is no image file to look at: {why}")
    model = config.model
    if model is None or isinstance(model, str | os.PathLike):
        from pipeline.models.predictor import open_predictor  # loads scikit-learn

        model = open_predictor(config)
    return ImagePredictions(model, paths, skipped=skipped, strict=config.strict)
