"""The commands as Python functions: extract, preview views, repair and predict."""

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cache.checksums import Damage
from pipeline.cache.config import ExtractConfig, ViewPlan
from pipeline.cache.file import (
    NO_FILE,
    FeatureTable,
    cache_file,
    read_all_rows,
    read_table,
)
from pipeline.cache.fill import SKIPPED_SUFFIX, RowProgress, fill_cache, read_skipped
from pipeline.cache.find import record_latest
from pipeline.cache.maintenance import (
    damaged_rows,
    find_file_damage,
    remove_damaged_shards,
    repair_metadata,
)
from pipeline.cache.provenance import (
    cache_document,
    config_of,
    continues_engine,
    feature_spec,
    open_cache_engine,
)
from pipeline.cache.reuse import OtherRows, find_other_rows
from pipeline.cache.shards import writer_lock
from pipeline.durable import make_folder, sync_folder
from pipeline.errors import BadDataError, NoInputError
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import NO_SPLIT, TRAIN, ImageSet, Skipped, find_images
from pipeline.images.set_checks import (
    warn_of_duplicates,
    warn_of_missing_classes,
    warn_of_nested_classes,
)
from pipeline.images.sets import Data, is_gone, open_set, reopen_set
from pipeline.images.source import FolderSource
from pipeline.images.value_range import choose_range
from pipeline.models.config import PredictConfig
from pipeline.models.image_predictions import ImagePredictions
from pipeline.models.runs import find_bundle, newest_run
from pipeline.text import printable

log = logging.getLogger(__name__)

VARIANT_DIGITS = 6  # of an augmentation's digest in a file name
PREVIEW_IMAGES, PREVIEW_IMAGES_PER_CLASS = 8, 4  # at most, on a sheet of views
PREVIEW_VIEWS = 8  # per image on the sheet, if --views is not set


@dataclass(frozen=True)
class Extraction:
    """Result of stage one.

    ``table`` is the cache; ``computed`` counts the rows that this run computed; ``skipped`` are the
    files without a row and the reasons, also listed in ``skipped_file``.
    """

    table: FeatureTable
    images: ImageSet
    computed: int
    skipped: tuple[Skipped, ...]
    skipped_file: Path
    seconds: float


def extract_features(
    data: Data,
    config: ExtractConfig | None = None,
    *,
    progress: RowProgress | None = None,
    engine_progress: Callable[[int, int], None] | None = None,
    on_scan: Callable[[ImageSet], None] | None = None,
    **options: Any,
) -> Extraction:
    """Run a frozen base once over an image folder and cache its features in HDF5.

    Only missing rows are computed; the same call again reads all features from the cache.

    Parameters
    ----------
    data : folder of class folders, or of ``train/``, ``validation/`` and ``test/`` with them.
    progress : called with (rows done, rows in total).
    engine_progress : called with (engines tried, engines to try), if one is to be chosen.
    on_scan : called with the contents of the folder before features are computed.
    **options : fields of `pipeline.ExtractConfig`, such as ``base="resnet50"``; they override those
        of ``config``.

    Raises a `pipeline.errors.PipelineError` for each expected failure.

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
    images = open_set(data)
    if config.limit_per_class is not None:
        images = images.limited(config.limit_per_class)
    if on_scan:
        on_scan(images)
    warn_of_missing_classes(images)
    warn_of_nested_classes(images)
    digests, unreadable = hash_files(
        images.source, images.paths, index_folder=config.cache_dir / "hashes", rehash=config.rehash
    )
    warn_of_duplicates(images, digests)
    config = replace(config, range=choose_range(images.source, images.paths, config.range))
    spec = feature_spec(config)
    make_folder(config.out.parent if config.out else config.cache_dir)
    path = config.out or cache_file(
        config.cache_dir,
        set_name=images.name,
        root=images.root,
        spec=spec,
        variant=plan.augmentation.digest[:VARIANT_DIGITS] if plan.augmentation else "",
        digests=set(digests.values()),
    )
    others: Iterable[OtherRows] = ()
    if path.parent.resolve() == config.cache_dir.resolve():
        accepts_engine = partial(continues_engine, config)
        others = find_other_rows(spec=spec, besides=path, accepts_engine=accepts_engine)
    filled = fill_cache(
        path,
        images=images,
        digests=digests,
        skipped=(*images.skipped, *unreadable),
        spec=spec,
        layers=config.layer_keys,
        open_engine=partial(open_cache_engine, config, progress=engine_progress),
        document=cache_document(images.name, images.root, config, spec, images.task),
        batch_size=config.batch_size,
        strict=config.strict,
        wait=config.wait,
        plan=plan,
        others=others,
        progress=progress,
    )
    record_latest(config.cache_dir, path)
    return Extraction(
        table=read_table(path),
        images=images,
        computed=filled.computed,
        skipped=filled.skipped,
        skipped_file=path.with_suffix(SKIPPED_SUFFIX),
        seconds=time.monotonic() - started,
    )


def preview_views(data: Data, config: ExtractConfig | None = None, **options: Any) -> Path:
    """Write a PNG sheet of some training images and their views, as the base receives them.

    Returns its path, ``<cache_dir>/<set>+<augmentation>-views.png``.
    """
    from pipeline.report.sheets import write_view_sheet

    config = replace(config or ExtractConfig(), **options)
    views, augmentation = config.views or PREVIEW_VIEWS, config.augmentation_ranges
    ViewPlan(views, augmentation)  # raises if --views is out of range
    images = open_set(data).limited(PREVIEW_IMAGES_PER_CLASS)
    paths = [file.path for file in images.files if file.split in (NO_SPLIT, TRAIN)]
    digests, _ = hash_files(images.source, paths[:PREVIEW_IMAGES])
    range = choose_range(images.source, paths, config.range)
    decoded = read_images(
        images.source, digests, image_size=config.size, resize=config.resize, range=range
    )
    with closing(decoded):
        rows = [(path, digests[path], px) for path, px in decoded if not isinstance(px, Skipped)]
    make_folder(config.cache_dir)
    sheet = config.cache_dir / f"{images.name}+{augmentation.digest[:VARIANT_DIGITS]}-views.png"
    write_view_sheet(sheet, rows, augmentation=augmentation, views=views)
    return sheet


@dataclass(frozen=True)
class Repair:
    """Result of `repair_cache`: the damages, and the number of images computed again."""

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
    """Repair a damaged cache file: compute only its damaged rows again.

    Without damaged rows, neither images nor weights are needed. ``weights`` is the weights file, if
    it has moved; downloaded ImageNet weights are in ``cache_dir``.

    Raises BadDataError if the file cannot be repaired, NoInputError if the image folder is missing.
    """
    target = Path(path)
    has_file = target.exists() or not any(target.with_suffix(".parts").glob("*.h5"))
    damages = find_file_damage(target) if has_file else []
    with writer_lock(target, wait=wait):
        shards = remove_damaged_shards(target)
        if damages:
            repair_metadata(target)
    if not damages or not find_file_damage(target):
        sync_folder(target.parent)  # a killed repair may have skipped this
        return Repair((*shards, *damages), 0)
    table = read_all_rows(target)
    config = config_of(table, weights, Path(cache_dir))
    spec = feature_spec(config)
    if spec.fingerprint != table.spec.fingerprint:
        others, cure = "other weights", "pass its weights file with --weights"
        if spec.weights == table.spec.weights:
            others, cure = "another image decoder", "extract into a new file with --out"
        raise BadDataError(f"{printable(target)} was made with {others}: {cure}")
    try:
        plan = ViewPlan.from_document(table.document)
    except ValueError as error:
        raise BadDataError(f"{printable(target)} cannot be repaired: {error}") from error
    if is_gone(table.document):
        raise NoInputError(
            f"{printable(target)} cannot be repaired: its image folder "
            f"{printable(table.document['root'])} is missing. Restore the folder"
        )
    cached_paths = set(table.columns.paths[table.columns.labels != NO_FILE].tolist())
    images = reopen_set(table.document).only(cached_paths, skipped=read_skipped(target))
    digests, unreadable = hash_files(images.source, images.paths)
    filled = fill_cache(
        target,
        images=images,
        digests=digests,
        skipped=(*images.skipped, *unreadable),
        spec=table.spec,
        layers=tuple(table.layers),
        open_engine=partial(open_cache_engine, config),
        document=table.document,
        batch_size=config.batch_size,
        wait=wait,
        damaged=damaged_rows(target, table),
        plan=plan,
        progress=progress,
    )
    return Repair((*shards, *damages), filled.computed)


def predict_images(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    config: PredictConfig | None = None,
    **options: Any,
) -> ImagePredictions:
    """Classify image files with a trained head.

    The call finds the files and loads the head; iterating reads and classifies the images. Cached
    features are not computed again; a head trained on float16 features gets float16 features.

    Parameters
    ----------
    images : files, folders (all files below them) and patterns, ``photos/**/*.jpg``.
    **options : fields of `pipeline.PredictConfig`, such as ``model="results/<run>"``; they override
        those of ``config``. ``model`` may also be an open model, such as a
        `pipeline.models.imagenet.ImagenetModel`.

    Raises a `pipeline.errors.PipelineError` for each expected failure.

    Examples
    --------
    >>> from pipeline import predict_images
    >>> first, *_ = predict_images("photos/test/plain", model="results/logistic.skops")
    >>> first.label
    'plain'
    """
    config = replace(config or PredictConfig(), **options)
    names = [images] if isinstance(images, str | os.PathLike) else images
    patterns = [os.fspath(name) for name in names]
    paths, skipped = find_images(patterns)
    if not paths:
        reason = f"none below {printable(patterns[0])}" if patterns else "no path was passed"
        if skipped:
            reason = f"{printable(skipped[0].path)} {skipped[0].reason}"
        raise NoInputError(f"there is no image file to classify: {reason}")
    model = config.model
    if model is None or isinstance(model, str | os.PathLike):
        path = find_bundle(newest_run() if model is None else Path(model), config.head)
        from pipeline.models.predictor import open_predictor  # loads scikit-learn

        model = open_predictor(path, config)
    choose_range(
        FolderSource(Path()), paths, model.range
    )  # warns of images that do not fit the model's range
    return ImagePredictions(model, paths, skipped=skipped, strict=config.strict)
