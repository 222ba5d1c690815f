"""What a notebook calls: the functions behind the commands."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.bases.registry import PREPROCESSING_POLICIES, check_image_size, find_base
from pipeline.bases.weights import (
    IMAGENET,
    WeightsChoice,
    known_digest,
    remember_digest,
)
from pipeline.cache.file import FORMAT_VERSION, FeatureTable
from pipeline.cache.file import read_table as load_features
from pipeline.cache.fill import Progress, fill_cache
from pipeline.cache.keys import cache_file
from pipeline.durable import make_folder
from pipeline.engines import Engine, open_engine
from pipeline.errors import CannotCreateError, UsageError
from pipeline.evaluation.compare import compare_heads
from pipeline.images.decode import RESIZE_POLICIES, pixels_digest
from pipeline.images.scan import ImageSet, Skipped, hash_files, scan_folder
from pipeline.spec import POOLING_POLICIES, FeatureSpec, layer_key

__all__ = ["Extraction", "FeatureTable", "compare_heads", "extract_features", "load_features"]

BATCH_SIZE = 32
RECORDED_VERSIONS = ("tensorflow", "keras", "numpy", "h5py", "pillow")
DTYPES = ("float32", "float16")


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
    limit_per_class: int | None = None,
    seed: int = 0,
    strict: bool = False,
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
    limit_per_class : only the first so many files of each class (of each split), by path.
    strict : raise for the first unreadable image instead of skipping it.
    out : the cache file; None for ``<cache_dir>/<set>-<base>-<fingerprint>.h5``.
    progress : called with (images done, images in all).
    on_scan : called with the folder's contents before the work begins.

    Raises a `pipeline.errors.PipelineError` for every expected failure.
    """
    started = time.monotonic()
    _check_choice("preprocessing", preprocessing, PREPROCESSING_POLICIES)
    _check_choice("resize", resize, RESIZE_POLICIES)
    _check_choice("pooling", pooling, POOLING_POLICIES)
    _check_choice("dtype", dtype, DTYPES)
    if batch_size < 1 or (limit_per_class is not None and limit_per_class < 1):
        raise UsageError("--batch-size and --limit-per-class need at least 1")
    chosen = find_base(base)
    size = image_size or chosen.image_size
    check_image_size(chosen, size)
    cache_folder = Path(cache_dir)
    weights_folder = cache_folder / "weights"
    choice = WeightsChoice.parse(os.fspath(weights), seed=seed)
    layer_keys = tuple(sorted({layer_key(name, pooling) for name in layers or [chosen.last_layer]}))

    found = scan_folder(Path(data))
    if limit_per_class is not None:
        found = found.limited(limit_per_class)
    if on_scan:
        on_scan(found)
    refs, unreadable = hash_files(found.root, found.files)

    @cache  # naming ImageNet weights for the first time and computing with them loads them once
    def engine_for(keys: tuple[str, ...]) -> Engine:
        return open_engine(
            chosen,
            image_size=size,
            preprocessing=preprocessing,
            weights=choice,
            weights_folder=weights_folder,
            layers=keys,
            batch_size=batch_size,
        )

    digest = known_digest(choice, base=chosen, image_size=size, folder=weights_folder)
    if digest is None:
        digest = engine_for(layer_keys).weights
        remember_digest(digest, base=chosen, image_size=size, folder=weights_folder)
    spec = FeatureSpec(
        base=chosen.name,
        weights=digest,
        preprocessing=preprocessing,
        image_size=size,
        resize=resize,
        pixels=pixels_digest(size, resize),
        dtype=dtype,
    )
    path = _output_path(out, cache_folder, found, spec)
    filled = fill_cache(
        path,
        images=found,
        refs=refs,
        skipped=(*found.skipped, *unreadable),
        spec=spec,
        layers=layer_keys,
        open_engine=engine_for,
        document=_document(found, spec),
        batch_size=batch_size,
        strict=strict,
        progress=progress,
    )
    return Extraction(
        table=load_features(path),
        images=found,
        computed=filled.computed,
        skipped=filled.skipped,
        skipped_file=path.with_suffix(".skipped.csv"),
        seconds=time.monotonic() - started,
    )


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"--{name} is one of {', '.join(allowed)}; received {value!r}")


def _output_path(
    out: str | os.PathLike[str] | None, cache_folder: Path, found: ImageSet, spec: FeatureSpec
) -> Path:
    """Where the cache goes, its folder made; raises CannotCreateError if that cannot be."""
    if out is None:
        make_folder(cache_folder)
        return cache_file(cache_folder, set_name=found.name, root=found.root, spec=spec)
    path = Path(out)
    if path.suffix != ".h5":
        raise UsageError(f"--out names an HDF5 file, ending in .h5; received {path}")
    if path.is_dir():
        raise CannotCreateError(f"{path} is a folder; --out names a file")
    make_folder(path.parent)
    return path


def _document(found: ImageSet, spec: FeatureSpec) -> dict[str, Any]:
    """The file's ``spec`` dataset: what the features are and where they come from."""
    return {
        "format": FORMAT_VERSION,
        "spec": asdict(spec),
        "fingerprint": spec.fingerprint,
        "set": found.name,
        "root": os.fsdecode(found.root),
        "versions": {name: version(name) for name in RECORDED_VERSIONS},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
