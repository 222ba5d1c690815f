"""The commands as Python functions: extract, preview views, repair and predict."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from pipeline.cache.checksums import Damage
from pipeline.cache.config import ExtractConfig, ViewPlan
from pipeline.cache.file import (
    NO_FILE,
    FeatureTable,
    cache_file,
    read_all_rows,
    read_table,
)
from pipeline.cache.fill import (
    SKIPPED_SUFFIX,
    CacheFill,
    RowProgress,
    fill_caches,
    read_skipped,
)
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
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.hashes import hash_files
from pipeline.images.manifest import is_manifest
from pipeline.images.reader import read_images
from pipeline.images.scan import NO_SPLIT, TRAIN, FoundFile, ImageSet, Skipped, find_images
from pipeline.images.set_checks import (
    warn_of_duplicates,
    warn_of_missing_classes,
    warn_of_nested_classes,
)
from pipeline.images.sets import Data, missing_folder, open_set, reopen_source
from pipeline.images.source import FolderSource, ImageSource
from pipeline.images.value_range import choose_range
from pipeline.models.config import PredictConfig
from pipeline.models.image_predictions import ImagePredictions
from pipeline.models.runs import find_bundle, newest_run
from pipeline.spec import CLASSES
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


@overload
def extract_features(
    data: Data,
    config: ExtractConfig | None = None,
    *,
    base: list[str] | tuple[str, ...],
    **options: Any,
) -> list[Extraction]: ...


@overload
def extract_features(
    data: Data, config: ExtractConfig | None = None, **options: Any
) -> Extraction: ...


def extract_features(
    data: Data,
    config: ExtractConfig | None = None,
    *,
    progress: RowProgress | None = None,
    engine_progress: Callable[[int, int], None] | None = None,
    on_scan: Callable[[ImageSet], None] | None = None,
    **options: Any,
) -> Extraction | list[Extraction]:
    """Run a frozen base once over an image set and cache its features in HDF5.

    Only missing rows are computed; the same call again reads all features from the cache. A list of
    bases fills the cache of each; images are read and decoded once for all. An image that one of
    them cannot use is skipped by all.

    Parameters
    ----------
    data : folder of class folders, or of ``train/``, ``validation/`` and ``test/`` with them;
        several such folders, whose classes are merged by name; a manifest, such as ``labels.csv``;
        or a pandas data frame with the columns path and label, and optionally split and group.
    progress : called with (rows done, rows in total).
    engine_progress : called with (engines tried, engines to try), if one is to be chosen.
    on_scan : called with the contents of the set before features are computed.
    **options : fields of `pipeline.ExtractConfig`, such as ``base="resnet50"``; they override those
        of ``config``. ``base`` may be a list: the result is then a list, too.

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
    bases: Any = options.get("base")
    is_list = isinstance(bases, list | tuple)
    configs = [
        replace(config, **each) if config else ExtractConfig(**each)
        for each in ([{**options, "base": base} for base in bases] if is_list else [options])
    ]
    extractions = extract_with_bases(
        data, configs, progress=progress, engine_progress=engine_progress, on_scan=on_scan
    )
    return extractions if is_list else extractions[0]


def extract_with_bases(
    data: Data,
    configs: Sequence[ExtractConfig],
    *,
    progress: RowProgress | None = None,
    engine_progress: Callable[[int, int], None] | None = None,
    on_scan: Callable[[ImageSet], None] | None = None,
) -> list[Extraction]:
    """Do what `extract_features` does for configs that differ in their base.

    Raises UsageError for an option of one base only.
    """
    started = time.monotonic()
    images, digests, fills, skipped = prepare_fills(data, configs, engine_progress, on_scan)
    first = configs[0]
    results = fill_caches(
        fills,
        images=images,
        digests=digests,
        skipped=skipped,
        batch_size=first.batch_size,
        strict=first.strict,
        wait=first.wait,
        plan=first.view_plan,
        progress=progress,
    )
    record_latest(first.cache_dir, [fill.path for fill in fills])
    seconds = time.monotonic() - started
    return [
        Extraction(
            table=read_table(fill.path),
            images=images,
            computed=result.computed,
            skipped=result.skipped,
            skipped_file=fill.path.with_suffix(SKIPPED_SUFFIX),
            seconds=seconds,
        )
        for fill, result in zip(fills, results, strict=True)
    ]


class PreparedFills(NamedTuple):
    """The images of a set with their digests, and the caches to fill with them."""

    images: ImageSet
    digests: Mapping[bytes, bytes]
    fills: list[CacheFill]
    skipped: tuple[Skipped, ...]


def prepare_fills(
    data: Data,
    configs: Sequence[ExtractConfig],
    engine_progress: Callable[[int, int], None] | None = None,
    on_scan: Callable[[ImageSet], None] | None = None,
) -> PreparedFills:
    """Find and hash the images of a set, and the cache file of each config."""
    _check_bases(configs)
    first = configs[0]
    _ = first.view_plan  # raises for invalid views before images are read
    images = open_set(data, first)
    if first.limit_per_class is not None:
        images = images.limited(first.limit_per_class)
    if on_scan:
        on_scan(images)
    if images.task == CLASSES:
        warn_of_missing_classes(images)
        if isinstance(images.source, FolderSource) and not images.folders:
            warn_of_nested_classes(images)
    digests, unreadable = hash_files(
        images.source, images.paths, index_folder=first.cache_dir / "hashes", rehash=first.rehash
    )
    warn_of_duplicates(images, digests)
    range = choose_range(images.source, images.paths, first.range)
    make_folder(first.out.parent if first.out else first.cache_dir)
    fills = [
        _cache_fill(replace(config, range=range), images, set(digests.values()), engine_progress)
        for config in configs
    ]
    return PreparedFills(images, digests, fills, (*images.skipped, *unreadable))


def _check_bases(configs: Sequence[ExtractConfig]) -> None:
    """Raise UsageError for no base, one that is named twice, or several with an option of one."""
    names = [config.network.file or config.network.name for config in configs]
    if not names:
        raise UsageError("base: expected names of bases; received an empty list")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--base names {twice[0]} more than once; name each base once")
    first = configs[0]
    flags = {"--layer": first.layers, "--out": first.out, "--weights FILE": first.weights_file}
    if len(names) > 1 and (of_one := [flag for flag, is_set in flags.items() if is_set]):
        raise UsageError(
            f"{of_one[0]} is for one base; received --base {','.join(names)}. Extract each alone"
        )


def _cache_fill(
    config: ExtractConfig,
    images: ImageSet,
    digests: Set[bytes],
    engine_progress: Callable[[int, int], None] | None,
) -> CacheFill:
    """Return the cache file of a config; takes seconds if the weights are not known yet."""
    spec = feature_spec(config)
    augmentation = config.view_plan.augmentation
    path = config.out or cache_file(
        config.cache_dir,
        set_name=images.name,
        root=images.root,
        spec=spec,
        variant=augmentation.digest[:VARIANT_DIGITS] if augmentation else "",
        digests=digests,
    )
    others: Iterable[OtherRows] = ()
    if path.parent.resolve() == config.cache_dir.resolve():
        accepts_engine = partial(continues_engine, config)
        others = find_other_rows(spec=spec, besides=path, accepts_engine=accepts_engine)
    return CacheFill(
        path=path,
        spec=spec,
        layers=config.layer_keys,
        open_engine=partial(open_cache_engine, config, progress=engine_progress),
        document=cache_document(
            images.name, images.root, config, spec, images.task, images.folders
        ),
        others=others,
    )


def preview_views(data: Data, config: ExtractConfig | None = None, **options: Any) -> Path:
    """Write a PNG sheet of some training images and their views, as the base receives them.

    Returns its path, ``<cache_dir>/<set>+<augmentation>-views.png``.
    """
    from pipeline.report.sheets import write_view_sheet

    config = replace(config or ExtractConfig(), **options)
    views, augmentation = config.views or PREVIEW_VIEWS, config.augmentation_ranges
    ViewPlan(views, augmentation)  # raises if --views is out of range
    images = open_set(data, config).limited(PREVIEW_IMAGES_PER_CLASS)
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
    if (source := reopen_source(table.document)) is None:
        raise NoInputError(
            f"{printable(target)} cannot be repaired: its image folder "
            f"{printable(missing_folder(table.document) or table.document['root'])} is missing. "
            f"Restore the folder"
        )
    images = _images_of(table, source, skipped=read_skipped(target))
    digests, unreadable = hash_files(images.source, images.paths)
    fill = CacheFill(
        path=target,
        spec=table.spec,
        layers=tuple(table.layers),
        open_engine=partial(open_cache_engine, config),
        document=table.document,
        damaged=damaged_rows(target, table),
    )
    (filled,) = fill_caches(
        [fill],
        images=images,
        digests=digests,
        skipped=(*images.skipped, *unreadable),
        batch_size=config.batch_size,
        wait=wait,
        plan=plan,
        progress=progress,
    )
    return Repair((*shards, *damages), filled.computed)


def _images_of(table: FeatureTable, source: ImageSource, *, skipped: Sequence[Skipped]) -> ImageSet:
    """Return the images of a cache's rows, with the labels that they have there."""
    columns = table.columns
    rows = np.flatnonzero((columns.labels != NO_FILE) & (columns.views == 0)).tolist()
    files = [
        FoundFile(
            path=bytes(columns.paths[row]),
            label=int(columns.labels[row]),
            split=int(columns.splits[row]),
            targets=tuple(columns.targets[row].tolist()),
            group=bytes(columns.groups[row]),
        )
        for row in rows
    ]
    return ImageSet(
        source=source,
        name=str(table.document["set"]),
        classes=table.classes,
        files=tuple(files),
        skipped=tuple(skipped),
        task=table.task,
    )


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
    if tables := [name for name in patterns if is_manifest(Path(name))]:
        raise UsageError(f"{printable(tables[0])} is a manifest: name its images or their folder")
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
    elif config.explain or config.neighbors or config.reject:
        raise UsageError(
            "heat maps, neighbors and rejection are of saved heads; "
            f"{printable(model.name)} is a network"
        )
    choose_range(
        FolderSource(Path()), paths, model.range
    )  # warns of images that do not fit the model's range
    return ImagePredictions(model, paths, skipped=skipped, strict=config.strict)
