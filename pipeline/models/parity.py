"""Check parity: image files must get the same probabilities as their cached features.

Many models fail between training and use, because of another preprocessing, order of classes,
weights file or resize. So test images are decoded again and pass through base and head; their
probabilities are compared with those of the cache. The features are compared as well, since a head
that is certain of every image hides wrong pixels.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.config import ViewPlan
from pipeline.cache.file import FeatureTable, read_table
from pipeline.engines import relative_errors
from pipeline.errors import BadDataError, NoInputError
from pipeline.heads.calibration import head_outputs
from pipeline.heads.config import THRESHOLD
from pipeline.heads.inputs import flatten_or_pool
from pipeline.heads.names import classes_of_normal
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import SPLIT_NAMES, is_hidden, scan_folder
from pipeline.images.sets import missing_folder, open_source, reopen_source
from pipeline.images.source import FolderSource, ImageSource, MergedSource
from pipeline.models.bundle import Bundle
from pipeline.models.cached_features import has_same_augmentation
from pipeline.models.predictor import Predictor, mean_over_views
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION
from pipeline.text import counted, printable

log = logging.getLogger("pipeline")

TOLERANCES = {"float32": 1e-4, "float16": 1e-3}  # absolute, of a probability, by cache dtype
FEATURE_TOLERANCES = {"float32": 1e-3, "float16": 1e-2}  # relative, of a row, by cache dtype
MAX_IMAGES = 200  # 25 s of VGG16 on 2 cores; a preprocessing error shows in the first
IMAGES_PER_BLOCK = 64  # decoded and computed before the heads classify them
ROWS_PER_BLOCK = 128  # 32 MiB of (9, 9, 512) float32, two chunks of smaller maps
TEST = SPLIT_NAMES.index("test")

Probabilities = npt.NDArray[np.floating[Any]]
Keys = npt.NDArray[np.void]
Rows = npt.NDArray[np.int64]


class ParityError(BadDataError):
    """Image files do not get the probabilities of their cached features."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The differences between two predictions of the same images."""

    max_difference: (
        float  # of probabilities, or relative of numbers; infinite where one is not finite
    )
    changed: int  # changed decisions, without ties; must be 0
    count: int  # compared images
    tolerance: float
    feature_error: float = 0.0  # the largest of `relative_errors`; 0 without comparison
    feature_tolerance: float = FEATURE_TOLERANCES["float32"]

    @property
    def agrees(self) -> bool:
        return (
            self.count > 0
            and self.max_difference <= self.tolerance
            and not self.changed
            and self.feature_error <= self.feature_tolerance
        )

    def raise_for_difference(
        self, model: str, cure: str = "extract into a new cache and classify again"
    ) -> None:
        """Raise ParityError, naming the model, unless the predictions agree."""
        if not self.agrees:
            raise ParityError(
                f"{model} does not predict from image files what it predicts from the cache: "
                f"{self}; {cure}"
            )

    def __str__(self) -> str:
        changed = counted(self.changed, "decision") if self.changed else "no decision"
        predictions = (
            f"largest difference {self.max_difference:.1e} (at most {self.tolerance:g}), "
            f"{changed} of {self.count:,} changed"
        )
        if self.feature_error <= self.feature_tolerance:
            return predictions
        return (
            f"features differ by {self.feature_error:.1e} of their length (at most "
            f"{self.feature_tolerance:g}), {predictions}"
        )


def compare_predictions(
    expected: Probabilities, received: Probabilities, *, tolerance: float, task: str = CLASSES
) -> Parity:
    """Compare class probabilities (n, K); raise BadDataError if the shapes differ.

    A decision may change in a tie, where the expected probabilities of both classes differ by at
    most the tolerance; that of a label, where its probability differs from 0.5 by at most that. The
    numbers of a regression, which makes no decision, differ relative to their standard deviation.
    """
    if expected.shape != received.shape:
        raise BadDataError(f"expected probabilities {expected.shape}; received {received.shape}")
    difference = np.abs(expected - received).max(initial=0.0)
    if task == CLASSES:
        rows = np.arange(len(expected))
        lead = expected.max(axis=1, initial=0) - expected[rows, received.argmax(axis=1)]
    elif task == MULTILABEL:
        is_changed = (expected > THRESHOLD) != (received > THRESHOLD)
        lead = (is_changed * np.abs(expected - THRESHOLD)).max(axis=1, initial=0)
    else:
        lead, difference = np.zeros(len(expected)), difference / (expected.std() or 1)
    return Parity(
        max_difference=float(difference) if np.isfinite(difference) else float("inf"),
        changed=int(np.count_nonzero(lead > tolerance)),
        count=len(expected),
        tolerance=tolerance,
    )


def check_parity(
    bundles: Sequence[Bundle],
    *,
    cache_dir: Path,
    weights: str | None = None,
    images: Path | None = None,
    keys: Keys | None = None,
    max_images: int = MAX_IMAGES,
    progress: Callable[[int, int], None] | None = None,
) -> list[Parity]:
    """Compare the predictions of image files with those of their cached features.

    Parameters
    ----------
    cache_dir, weights : as in `Predictor`.
    images : contains the images, in any folders below it; None for the folder of the cache.
    keys : (n,) digests of the images; by default the cache's test split, or all without one.
    max_images : maximum number of these images, evenly spread.
    progress : called with (images done, images in all).

    Returns one result per bundle, also if it disagrees. Raises NoInputError if cache or images are
    missing; BadDataError if they have changed since training.
    """
    groups: dict[tuple[str, str, ViewPlan], list[int]] = defaultdict(list)
    for index, bundle in enumerate(bundles):
        groups[bundle.document["cache"], bundle.layer, bundle.plan].append(index)
    results: dict[int, Parity] = {}
    for indices in groups.values():
        group = [bundles[index] for index in indices]
        layer, dtype = group[0].layer, group[0].spec.dtype
        reference = reference_images(
            group[0], cache_dir=cache_dir, images=images, keys=keys, max_images=max_images
        )
        predictors = [Predictor(bundle, weights=weights, cache_dir=cache_dir) for bundle in group]
        blocks: list[list[Probabilities]] = []  # of each block, the heads' (b, K)
        start, feature_error = 0, 0.0
        for pixels in reference.pixels(progress):
            block = replace(reference, rows=reference.rows[start : start + len(pixels)])
            by_view = []
            for view, view_pixels in enumerate(predictors[0].views(pixels, block.digests)):
                features = predictors[0].features(view_pixels)
                errors = relative_errors(block.features(layer, view), features)
                feature_error = max(feature_error, float(errors.max()))
                by_view.append([predictor.classify(features) for predictor in predictors])
            blocks.append([mean_over_views(views) for views in zip(*by_view, strict=True)])
            start += len(pixels)
        for index, bundle, parts in zip(indices, group, zip(*blocks, strict=True), strict=True):
            results[index] = replace(
                compare_predictions(
                    reference.predictions(bundle),
                    np.concatenate(parts),
                    tolerance=TOLERANCES[dtype],
                    task=bundle.task,
                ),
                feature_error=feature_error,
                feature_tolerance=FEATURE_TOLERANCES[dtype],
            )
        log.info(
            "features of %s from %s: largest relative error %.1e (at most %g)",
            printable(layer), counted(start, "file"), feature_error, FEATURE_TOLERANCES[dtype],
        )  # fmt: skip
    return [results[index] for index in range(len(bundles))]


@dataclass(frozen=True)
class ReferenceImages:
    """Images of a source, and their rows (n,) in the cache.

    ``moved`` maps digests to paths in the source, if they are not those of the cache.
    """

    table: FeatureTable
    rows: Rows
    source: ImageSource
    moved: Mapping[bytes, bytes] | None = None

    def files(self, folder: Path) -> list[Path]:
        """Return the images as files; those of archives and storage are copied into a folder."""
        if isinstance(self.source, FolderSource | MergedSource):
            return [self.source.file(name) for name in self._names]
        files = [folder / f"{number:06d}" for number in range(len(self.rows))]
        for file, name in zip(files, self._names, strict=True):
            file.write_bytes(self.source.read(name))
        return files

    @property
    def _names(self) -> list[bytes]:
        if self.moved is not None:
            return [self.moved[digest] for digest in self.digests]
        names: list[bytes] = self.table.columns.paths[self.rows].tolist()
        return names

    @property
    def digests(self) -> list[bytes]:
        return [digest.tobytes() for digest in self.table.columns.digests[self.rows]]

    def features(self, layer: str, view: int = 0) -> npt.NDArray[np.float32]:
        """Return (n, *row shape) float32; raise BadDataError if the cache lacks a view."""
        if view == 0:
            return self.table.features(layer, self.rows)
        columns = self.table.columns
        view_rows = np.flatnonzero(columns.views == view)
        row_of = dict(zip(columns.digests[view_rows].tolist(), view_rows.tolist(), strict=True))
        rows = [row_of.get(digest, -1) for digest in columns.digests[self.rows].tolist()]
        if -1 in rows:
            raise BadDataError(
                f"{printable(self.table.path)} contains view {view} of "
                f"{len(rows) - rows.count(-1):,} of {counted(len(rows), 'image')}; the model "
                f"averages over it: extract and classify again with --tta"
            )
        return self.table.features(layer, np.array(rows))

    def predictions(self, bundle: Bundle) -> Probabilities:
        """Return the head's probabilities of the cached features: (n, K)."""

        def scores(features: npt.NDArray[np.float32]) -> Probabilities:
            rows = flatten_or_pool(features, bundle.input)
            return head_outputs(bundle.estimator, rows, len(bundle.classes), bundle.task)

        parts = []
        for start in range(0, len(self.rows), ROWS_PER_BLOCK):
            block = replace(self, rows=self.rows[start : start + ROWS_PER_BLOCK])
            views = (block.features(bundle.layer, view) for view in range(bundle.plan.views + 1))
            parts.append(mean_over_views(map(scores, views)))
        return np.concatenate(parts)

    def pixels(
        self, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield decoded blocks (b, S, S, 3); raise BadDataError for an image that has changed."""
        spec = self.table.spec
        digests = dict(zip(self._names, self.digests, strict=True))
        decoded = read_images(
            self.source,
            digests,
            image_size=spec.image_size,
            resize=spec.resize,
            range=spec.range,
        )
        done = 0
        with closing(decoded):
            while block := list(islice(decoded, IMAGES_PER_BLOCK)):
                for path, image in block:
                    if not isinstance(image, np.ndarray):
                        raise BadDataError(
                            f"{printable(path)} is not the cached image any more ({image.reason}) "
                            f"in {printable(self.source.root)}: run extract and classify again, or "
                            f"name the folder that has it now with --images"
                        )
                yield np.stack([image for _, image in block if isinstance(image, np.ndarray)])
                done += len(block)
                if progress:
                    progress(done, len(digests))


def reference_images(
    bundle: Bundle,
    *,
    cache_dir: Path = Path("cache"),
    images: Path | None = None,
    keys: Keys | None = None,
    max_images: int = MAX_IMAGES,
    closest: bool = False,
) -> ReferenceImages:
    """Return cached images to check a bundle's predictions on.

    Parameters
    ----------
    cache_dir : contains the cache of the training, if it is not where it was.
    images, keys, max_images : as in `check_parity`.
    closest : choose half of them where the head's margins are smallest, since an error shows
        there first; the others are evenly spread.

    Raises NoInputError if the cache or the image folder is missing; BadDataError if the bundle was
    trained on other features than the cache's, or other classes than the folder's.
    """
    cache = Path(bundle.document["cache"])
    if not cache.exists() and (cache_dir / cache.name).exists():
        cache = cache_dir / cache.name
    table = read_table(cache)
    _check_same_features(bundle, table)
    source = open_source(images) if images else reopen_source(table.document)
    if source is None:
        root = images or missing_folder(table.document) or Path(table.document["root"])
        problem = "is no folder" if root.exists() else "does not exist"
        raise NoInputError(
            f"{printable(root)}, the image folder of {printable(table.path)}, {problem}: "
            f"name the folder that has its images now with --images"
        )
    root, folders = Path(source.root), bundle.classes
    is_folder = "folders" not in table.document and isinstance(source, FolderSource)
    if not images and is_folder and bundle.task == CLASSES:
        folders = _compared_classes(bundle, scan_folder(root).classes)
    if folders != bundle.classes:
        raise BadDataError(
            f"the class folders of {printable(root)} are {_join_names(folders)}; "
            f"the model was trained on {_join_names(bundle.classes)}. If only names have changed, "
            f"--images {printable(root)} finds the images by content"
        )
    columns = table.columns
    unaugmented = np.flatnonzero(columns.views == 0)
    if keys is None:
        test = unaugmented[columns.splits[unaugmented] == TEST]
        rows = test if len(test) else unaugmented
    else:
        rows = unaugmented[np.isin(columns.digests[unaugmented], keys)]
    if not len(rows):
        raise NoInputError(f"{printable(table.path)} contains no image to check predictions on")
    reference = ReferenceImages(table, rows, source)
    if images:
        reference = _find_moved(reference)
        rows = reference.rows
    if not closest or bundle.task == REGRESSION or max_images >= len(rows):
        return replace(reference, rows=_evenly_spread(rows, max_images))
    outputs = reference.predictions(bundle)
    if bundle.task == MULTILABEL:
        margins = np.abs(outputs - THRESHOLD).min(axis=1)
    else:
        ordered = np.sort(outputs, axis=1)
        margins = ordered[:, -1] - ordered[:, -2]
    order = np.argsort(margins, kind="stable")
    near, others = rows[order[: max_images // 2]], rows[np.sort(order[max_images // 2 :])]
    chosen = np.concatenate([near, _evenly_spread(others, max_images - len(near))])
    return replace(reference, rows=np.sort(chosen))


def _find_moved(images: ReferenceImages) -> ReferenceImages:
    """Return the images whose content is in their source, each once."""
    source = images.source
    names = sorted(path for path in source.list() if not is_hidden(path))
    digests, _ = hash_files(source, names)
    moved = {digest: name for name, digest in digests.items()}
    rows = dict(zip(images.digests, images.rows.tolist(), strict=True))
    found = np.array(sorted(row for digest, row in rows.items() if digest in moved), np.int64)
    total = counted(len(rows), "test image")
    if not len(found):
        raise NoInputError(
            f"{printable(source.root)} contains none of {total} of "
            f"{printable(images.table.path)}: name the folder that they were moved to"
        )
    log.info("%s contains %d of %s", printable(source.root), len(found), total)
    return replace(images, rows=found, moved=moved)


def _evenly_spread(rows: Rows, max_images: int) -> Rows:
    indices = np.linspace(0, len(rows) - 1, min(max_images, len(rows))).round().astype(np.int64)
    return rows[indices]


def _check_same_features(bundle: Bundle, table: FeatureTable) -> None:
    """Raise BadDataError unless a cache has the features that the bundle was trained on."""
    cached, trained = table.spec.to_dict(), bundle.spec.to_dict()
    classes = _join_names(_compared_classes(bundle, table.classes))
    cached |= {"classes": classes, "shape": table.layers.get(bundle.layer)}
    trained |= {"classes": _join_names(bundle.classes), "shape": bundle.shape}
    for name, value in trained.items():
        if cached[name] != value:
            raise BadDataError(
                f"{printable(table.path)} contains features of {name} {cached[name]}; "
                f"the model was trained on {name} {value}: classify again"
            )
    if bundle.plan.views and not has_same_augmentation(table, bundle.plan):
        raise BadDataError(
            f"{printable(table.path)} contains other views than those that the model averages over "
            f"({bundle.plan.augmentation}): classify again"
        )


def _compared_classes(bundle: Bundle, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes of the comparison that the bundle is from, of a set with these."""
    normal = bundle.document.get("normal")
    return classes_of_normal(normal) if normal in classes else classes


def _join_names(classes: Sequence[str]) -> str:
    return ", ".join(map(printable, classes))
