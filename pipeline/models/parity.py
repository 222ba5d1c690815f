"""Parity: raw images end to end must give what the cached features gave.

Most models fail between the laboratory and use: another preprocessing, order of classes, weights
file or resize. So test images are decoded anew and go through base and head; the probabilities are
compared with those from the cache. A head that is sure of everything hides wrong pixels: so the
features are compared as well.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.config import ViewPlan
from pipeline.cache.file import SPLIT_NAMES, FeatureTable, read_table
from pipeline.engines import relative_errors
from pipeline.errors import BadDataError, NoInputError
from pipeline.heads.calibration import class_scores
from pipeline.heads.inputs import flatten_or_pool
from pipeline.images.reader import read_images
from pipeline.images.scan import scan_folder
from pipeline.models.bundle import Bundle
from pipeline.models.cached_features import has_same_augmentation
from pipeline.models.predictor import Predictor, mean_over_views
from pipeline.text import counted, printable

log = logging.getLogger("pipeline")

TOLERANCES = {"float32": 1e-4, "float16": 1e-3}  # of a probability, by the cache's type
FEATURE_TOLERANCES = {"float32": 1e-3, "float16": 1e-2}  # of a row, relative, by the cache's type
MOST_IMAGES = 200  # 25 s of VGG16 on 2 cores; an error of preprocessing shows in the first
IMAGES_AT_ONCE = 64  # decoded and through the base, before every head has its turn
ROWS_AT_ONCE = 128  # of the cache: 32 MiB of (9, 9, 512) float32, two chunks of smaller ones
TEST = SPLIT_NAMES.index("test")

Probabilities = npt.NDArray[np.floating[Any]]
Keys = npt.NDArray[np.void]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far two predictions of the same images are apart."""

    max_difference: float  # of any probability; infinite where one is not finite
    changed: int  # decisions, outside ties; none may
    count: int  # images compared
    tolerance: float
    feature_error: float = 0.0  # the largest of `relative_errors`; 0 where none were compared
    feature_tolerance: float = FEATURE_TOLERANCES["float32"]

    @property
    def holds(self) -> bool:
        return (
            self.count > 0
            and self.max_difference <= self.tolerance
            and not self.changed
            and self.feature_error <= self.feature_tolerance
        )

    def demand(self, model: str) -> None:
        """Raise BadDataError, naming the model, unless the two agree."""
        if not self.holds:
            raise BadDataError(
                f"{model} does not predict from image files what it was measured with: {self}; "
                f"extract into a new cache and classify again"
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
    expected: Probabilities, found: Probabilities, *, tolerance: float
) -> Parity:
    """Compare class probabilities (n, K); raises BadDataError if the shapes differ.

    A decision may change in a tie: where the probabilities expected of the two classes differ by no
    more than the tolerance.
    """
    if expected.shape != found.shape:
        raise BadDataError(f"expected probabilities {expected.shape}; received {found.shape}")
    difference = np.abs(expected - found).max(initial=0.0)
    rows = np.arange(len(expected))
    lead = expected.max(axis=1, initial=0) - expected[rows, found.argmax(axis=1)]
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
    keys: Keys | None = None,
    most: int = MOST_IMAGES,
    progress: Callable[[int, int], None] | None = None,
) -> list[Parity]:
    """Run raw images through each bundle and compare with what its head says of the cache.

    Parameters
    ----------
    cache_dir, weights : as in `Predictor`.
    keys : (n,) digests of the images; by default the cache's test split, or all without one.
    most : of these, so many, evenly spread.
    progress : called with (images done, images in all).

    Returns one for each bundle, whether it holds or not. Raises NoInputError if cache or images
    are gone; BadDataError if they are not what a bundle was trained on.
    """
    groups: dict[tuple[str, str, ViewPlan], list[int]] = defaultdict(list)
    for place, bundle in enumerate(bundles):
        groups[bundle.document["cache"], bundle.layer, bundle.plan].append(place)
    found: dict[int, Parity] = {}
    for places in groups.values():
        group = [bundles[place] for place in places]
        images = reference_images(group[0], keys=keys, most=most)
        predictors = [Predictor(bundle, weights=weights, cache_dir=cache_dir) for bundle in group]
        parts: list[list[Probabilities]] = [[] for _ in group]
        start, feature_error = 0, 0.0
        for pixels in images.pixels(progress):
            block = replace(images, rows=images.rows[start : start + len(pixels)])
            said: list[list[Probabilities]] = [[] for _ in group]
            for view, drawn in enumerate(predictors[0].views(pixels, block.digests)):
                features = predictors[0].features(drawn)
                cached = block.features(group[0].layer, view)
                feature_error = max(feature_error, relative_errors(cached, features).max())
                for predictor, of_views in zip(predictors, said, strict=True):
                    of_views.append(predictor.classify(features))
            for part, of_views in zip(parts, said, strict=True):
                part.append(mean_over_views(of_views))
            start += len(pixels)
        for place, bundle, part in zip(places, group, parts, strict=True):
            expected, dtype = images.predictions(bundle), bundle.spec.dtype
            answers = np.concatenate(part)
            found[place] = replace(
                compare_predictions(expected, answers, tolerance=TOLERANCES[dtype]),
                feature_error=float(feature_error),
                feature_tolerance=FEATURE_TOLERANCES[dtype],
            )
        log.info(
            "features of %s from %s: largest relative error %.1e (at most %g)",
            printable(group[0].layer),
            counted(start, "file"),
            feature_error,
            FEATURE_TOLERANCES[group[0].spec.dtype],
        )
    return [found[place] for place in range(len(bundles))]


@dataclass(frozen=True)
class ReferenceImages:
    """Image files in the folder ``root``, and their rows (n,) of the cache."""

    table: FeatureTable
    rows: Rows
    root: Path

    @property
    def paths(self) -> list[Path]:
        return [self.root / os.fsdecode(path) for path in self.table.columns.paths[self.rows]]

    @property
    def digests(self) -> list[bytes]:
        return [digest.tobytes() for digest in self.table.columns.digests[self.rows]]

    def features(self, layer: str, view: int = 0) -> npt.NDArray[np.float32]:
        """(n, *shape of a row); raises BadDataError if the cache lacks the view of an image."""
        if view == 0:
            return self.table.features(layer, self.rows)
        columns = self.table.columns
        of_view = np.flatnonzero(columns.views == view)
        row_of = dict(zip(columns.digests[of_view].tolist(), of_view.tolist(), strict=True))
        rows = [row_of.get(digest, -1) for digest in columns.digests[self.rows].tolist()]
        if -1 in rows:
            raise BadDataError(
                f"{printable(self.table.path)} holds view {view} of {len(rows) - rows.count(-1):,} "
                f"of {counted(len(rows), 'image')}; the model was measured on it: extract and "
                f"classify again with --tta"
            )
        return self.table.features(layer, np.array(rows))

    def predictions(self, bundle: Bundle) -> Probabilities:
        """What the bundle's head says of the cached features: (n, K)."""

        def scores(features: npt.NDArray[np.float32]) -> Probabilities:
            rows = flatten_or_pool(features, bundle.input)
            return class_scores(bundle.estimator, rows, len(bundle.classes))

        parts = []
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            block = replace(self, rows=self.rows[start : start + ROWS_AT_ONCE])
            views = (block.features(bundle.layer, view) for view in range(bundle.plan.views + 1))
            parts.append(mean_over_views(map(scores, views)))
        return np.concatenate(parts)

    def pixels(
        self, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Up to 64 decoded: (b, S, S, 3); raises BadDataError for one unlike what was cached."""
        spec = self.table.spec
        paths: list[bytes] = self.table.columns.paths[self.rows].tolist()
        digests = dict(zip(paths, self.digests, strict=True))
        decoded = read_images(self.root, digests, image_size=spec.image_size, resize=spec.resize)
        done = 0
        with closing(decoded):
            while block := list(islice(decoded, IMAGES_AT_ONCE)):
                for path, image in block:
                    if not isinstance(image, np.ndarray):
                        raise BadDataError(
                            f"{printable(self.root / os.fsdecode(path))} is not the image that "
                            f"was cached any more ({image.reason}): run extract and classify again"
                        )
                yield np.stack([image for _, image in block if isinstance(image, np.ndarray)])
                done += len(block)
                if progress:
                    progress(done, len(paths))


def reference_images(
    bundle: Bundle, *, keys: Keys | None = None, most: int = MOST_IMAGES, closest: bool = False
) -> ReferenceImages:
    """Images that a bundle's predictions can be checked on.

    Parameters
    ----------
    keys, most : as in `check_parity`.
    closest : half of them are those that the head decides by the smallest margin, where an error
        shows first; the others are evenly spread.

    Raises NoInputError if the cache or the image folder is gone; BadDataError if the bundle was
    trained on other features than the cache's, or other classes than the folder's.
    """
    table = read_table(Path(bundle.document["cache"]))
    _check_same_features(bundle, table)
    root = Path(table.document["root"])
    if not root.is_dir():
        raise NoInputError(
            f"the image folder {printable(root)} of {printable(table.path)} is gone: "
            f"there is nothing to check predictions on"
        )
    folders = scan_folder(root).classes
    if folders != bundle.classes:
        raise BadDataError(
            f"the class folders of {printable(root)} are {_names(folders)}; "
            f"the model was trained on {_names(bundle.classes)}"
        )
    columns = table.columns
    whole = np.flatnonzero(columns.views == 0)
    if keys is None:
        test = whole[columns.splits[whole] == TEST]
        rows = test if len(test) else whole
    else:
        rows = whole[np.isin(columns.digests[whole], keys)]
    if not len(rows):
        raise NoInputError(f"{printable(table.path)} holds no image to check predictions on")
    if not closest or most >= len(rows):
        return ReferenceImages(table, _spread(rows, most), root)
    ordered = np.sort(ReferenceImages(table, rows, root).predictions(bundle), axis=1)
    margins = ordered[:, -1] - ordered[:, -2]  # by which it prefers the class that it decides for
    order = np.argsort(margins, kind="stable")
    near, others = rows[order[: most // 2]], rows[np.sort(order[most // 2 :])]
    chosen = np.concatenate([near, _spread(others, most - len(near))])
    return ReferenceImages(table, np.sort(chosen), root)


def _spread(rows: Rows, most: int) -> Rows:
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)
    return rows[places]


def _check_same_features(bundle: Bundle, table: FeatureTable) -> None:
    """Raise BadDataError if a cache is not what the bundle was trained on any more."""
    cached, trained = asdict(table.spec), asdict(bundle.spec)
    cached |= {"classes": _names(table.classes), "shape": table.layers.get(bundle.layer)}
    trained |= {"classes": _names(bundle.classes), "shape": bundle.shape}
    for name, value in trained.items():
        if cached[name] != value:
            raise BadDataError(
                f"{printable(table.path)} holds features of {name} {cached[name]}; "
                f"the model was trained on {name} {value}: classify again"
            )
    if bundle.plan.views and not has_same_augmentation(table, bundle.plan):
        raise BadDataError(
            f"{printable(table.path)} holds other views than those that the model was measured on "
            f"({bundle.plan.augmentation}): classify again"
        )


def _names(classes: Sequence[str]) -> str:
    return ", ".join(map(printable, classes))
