"""Select the rows of a cache that heads train and are evaluated on, and read their features.

Images are the rows of view 0, numbered in order. Only this module converts image numbers (`Images`)
to the rows of their augmented views (`Rows`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable, cache_files, read_table
from pipeline.errors import BadDataError, PipelineError, UsageError
from pipeline.evaluation.lazy_features import BLOCK_BYTES, Features, LazyFeatures
from pipeline.evaluation.splits import Images, Trial
from pipeline.evaluation.tasks import truth_of
from pipeline.heads.config import Input
from pipeline.heads.inputs import feature_count, flatten_or_pool
from pipeline.spec import CLASSES
from pipeline.text import counted, printable

if TYPE_CHECKING:
    from pipeline.heads.calibration import Scores

MAX_FLAT = 25_088  # (7, 7, 512), VGG16's at 224 pixels; MobileNet's (7, 7, 1280) is larger
VIEWS = 1 << 15  # more than any view number, an int16
ROWS_PER_BLOCK = 1024  # 32 MiB of (4, 4, 512) maps at a time where only their means are kept
MANY_ROWS = 20_000  # more are read, fitted and scored in blocks, without copies

Rows = npt.NDArray[np.int64]  # row numbers of a cache, including views


@dataclass(frozen=True, kw_only=True)
class ViewRows:
    """Image and view number of each of R rows, without repeats.

    Attributes
    ----------
    images, views : (R,) numbers; view 0 is the unaugmented image.
    train_views, tta_views : number of augmented views that heads train on, and that predictions are
        averaged over, in addition to the image.
    """

    images: Images
    views: npt.NDArray[np.integer]
    train_views: int = 0
    tta_views: int = 0

    @classmethod
    def unaugmented(cls, count: int) -> "ViewRows":
        """Return one row per image, in order."""
        return cls(images=np.arange(count), views=np.zeros(count, np.int64))

    def training_rows(self, images: Images) -> Rows:
        """Return the rows to train on for these images, ascending."""
        return np.flatnonzero(np.isin(self.images, images) & (self.views <= self.train_views))

    def of_view(self, images: Images, view: int = 0) -> Rows:
        """Return the row of this view of each image, in the order of the images."""
        rows = np.flatnonzero(self.views == view)
        row_of = np.full(self.images.max(initial=-1) + 1, len(self.images))  # no row: IndexError
        row_of[self.images[rows]] = rows
        return np.asarray(row_of[images])

    def count_views(self, images: Images, last: int) -> npt.NDArray[np.int64]:
        """Return how many of the views 1 … ``last`` each image has (n,)."""
        augmented = (self.views > 0) & (self.views <= last)
        counts = np.bincount(self.images[augmented], minlength=self.images.max(initial=-1) + 1)
        return np.asarray(counts[images])

    def take(self, rows: Rows) -> "ViewRows":
        return replace(self, images=self.images[rows], views=self.views[rows])


@dataclass(frozen=True)
class CachedViews:
    """The rows of a cache with their images and views; those of view 0 are in image order."""

    table: FeatureTable
    rows: ViewRows

    @classmethod
    def of(cls, table: FeatureTable) -> "CachedViews":
        """Find the image of each row by path and digest; drop repeats and views without one."""
        columns = table.columns
        if not columns.views.any():
            return cls(table, ViewRows.unaugmented(len(table)))
        image_of: dict[tuple[bytes, bytes], int] = {}
        names = [
            (path, digest.tobytes())
            for path, digest in zip(columns.paths.tolist(), columns.digests, strict=True)
        ]
        originals = np.flatnonzero(columns.views == 0)
        for image, row in enumerate(originals.tolist()):
            image_of.setdefault(names[row], image)
        images = np.array([image_of.get(name, -1) for name in names], np.int64)
        images[originals] = np.arange(len(originals))
        _, once = np.unique(images * VIEWS + columns.views, return_index=True)
        kept = np.sort(once[images[once] >= 0])
        rows = ViewRows(images=images[kept], views=columns.views[kept])
        return cls(
            replace(table, columns=columns.take(kept), file_rows=table.file_rows[kept]), rows
        )

    @property
    def images(self) -> FeatureTable:
        """The table of the unaugmented images, one row each."""
        originals = np.flatnonzero(self.rows.views == 0)
        columns, file_rows = self.table.columns.take(originals), self.table.file_rows[originals]
        return replace(self.table, columns=columns, file_rows=file_rows)

    def select_views(
        self, *, train: Images, evaluation: Images, views: int | None, tta: bool
    ) -> "CachedViews":
        """Set the number of views to train on (None for all cached) and of views to average over.

        ``evaluation`` are the images of validation and test.

        Raises UsageError if the cache contains fewer views than requested; BadDataError if it
        contains them for only some images, which would weigh more than others.
        """
        name = printable(self.table.path)
        cached = self._highest_view(train)
        train_views = cached if views is None else views
        tta_views = self._highest_view(evaluation) if tta else 0
        if not 0 <= train_views <= cached:
            raise UsageError(
                f"--views {views}: {name} contains {counted(cached, 'view')} of training images; "
                f"choose 0 to {cached}, or extract with --views {views}"
            )
        if tta and not tta_views:
            other = self._file_with_tta()
            cure = (
                f"{printable(other)} does: name it" if other else "extract with --views and --tta"
            )
            raise UsageError(
                f"--tta: {name} contains no augmented views of validation and test images; {cure}"
            )
        for images, most, cure in (
            (train, train_views, "or classify with --views 0"),
            (evaluation, tta_views, "or classify without --tta"),
        ):
            complete = np.count_nonzero(self.rows.count_views(images, most) == most)
            if complete < len(images):
                raise BadDataError(
                    f"{name} contains {counted(most, 'view')} of {complete:,} of the "
                    f"{counted(len(images), 'image')} that need them; extract all with --views "
                    f"{most} --tta, {cure}"
                )
        return replace(self, rows=replace(self.rows, train_views=train_views, tta_views=tta_views))

    def _file_with_tta(self) -> Path | None:
        """Return another cache of this set in the same folder that has views of test images."""
        for path in cache_files(self.table.path.parent):
            with suppress(PipelineError):
                document = read_table(path).document
                if document.get("tta") and document["set"] == self.table.document["set"]:
                    return path
        return None

    def _highest_view(self, images: Images) -> int:
        return int(self.rows.views[np.isin(self.rows.images, images)].max(initial=0))


def views_suffix(views: int) -> str:
    """Return `` × 5 views`` for an image with four augmented views; empty for none."""
    return f" × {views + 1} views" if views else ""


@dataclass(frozen=True)
class LabelledRows:
    """Features (N, D), labels, and further views (N, D) to average over.

    Labels are classes (N,) in 0 … K - 1, or as in `truth_of` for another task. ``images`` (N,) are
    the images of the rows; ``map_shape`` is that of flattened maps, (H, W, C).
    """

    features: Features | LazyFeatures
    labels: npt.NDArray[Any]
    views: Sequence[Features | LazyFeatures] = field(default=(), kw_only=True)
    task: str = field(default=CLASSES, kw_only=True)
    images: Images | None = field(default=None, kw_only=True)
    map_shape: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int]:
        count, width = self.features.shape
        return count, width

    def blocks(self) -> Iterator[tuple[Rows, Features]]:
        """Yield numbers of rows (n,) and their features (n, D), some megabytes at a time."""
        size = max(1, BLOCK_BYTES // (4 * self.shape[1]))
        for start in range(0, len(self), size):
            block = self.features[start : start + size]
            yield np.arange(start, start + len(block)), block

    def take(self, rows: Rows) -> "LabelledRows":
        """Return some of the rows, without views."""
        lazy = isinstance(self.features, LazyFeatures)
        return replace(
            self,
            features=self.features.take(rows) if lazy else self.features[rows],
            labels=self.labels[rows],
            images=None if self.images is None else self.images[rows],
            views=(),
        )

    def in_memory(self) -> "LabelledRows":
        """Return the rows with their features in memory, without views if these were read."""
        if not isinstance(self.features, LazyFeatures):
            return self
        return replace(self, features=np.asarray(self.features), views=())

    def joined(self, others: "LabelledRows") -> "LabelledRows":
        """Return these rows followed by others, without views."""
        return replace(
            self,
            features=_join(self.features, others.features),
            labels=np.concatenate([self.labels, others.labels]),
            images=None
            if self.images is None or others.images is None
            else np.concatenate([self.images, others.images]),
            views=(),
        )

    def mean_probabilities(self, estimator: Any) -> "Scores":
        """Return the mean probabilities or numbers over all views of each image: (N, K)."""
        if self.task == CLASSES:
            count = len(estimator.classes_)
        else:
            count = self.labels.shape[1] if self.labels.ndim > 1 else 1
        from pipeline.heads.calibration import head_outputs  # loads scikit-learn

        views = (self.features, *self.views)
        scores = [head_outputs(estimator, view, count, self.task) for view in views]
        return np.asarray(np.mean(scores, axis=0))


def _join(
    first: Features | LazyFeatures, second: Features | LazyFeatures
) -> Features | LazyFeatures:
    """Return the rows of both, of one source if they are lazy."""
    if isinstance(first, LazyFeatures) and isinstance(second, LazyFeatures):
        return replace(first, rows=np.concatenate([first.rows, second.rows]))
    return np.concatenate([np.asarray(first), np.asarray(second)])


@dataclass(frozen=True)
class TrialRows:
    """The features of one cached layer as one input, with the trials that split its images.

    ``features`` (R, D) has a row per image and view; ``labels`` (N,) one entry per image.
    """

    features: Features | LazyFeatures
    labels: npt.NDArray[Any]
    class_count: int
    trials: Sequence[Trial]
    rows: ViewRows
    task: str = CLASSES
    map_shape: tuple[int, ...] | None = None

    @classmethod
    def read(
        cls,
        cached: CachedViews,
        layer: str,
        input: Input,
        trials: Sequence[Trial],
        *,
        refit: bool = False,
        memory: float = math.inf,
        in_memory: Features | None = None,
    ) -> Self:
        """Read the rows that a comparison needs, each once; for a refit, also validation views.

        Training rows come first: for one split they are used without a copy. Features of more than
        ``memory`` bytes are written to a temporary file. Pooled features are taken from
        ``in_memory``, those of all rows, if there are any.
        """
        rows = cached.rows
        train, evaluation = images_of(trials)
        first = rows.training_rows(train)
        others = [rows.of_view(evaluation, view) for view in range(rows.tta_views + 1)]
        if refit:
            others += [rows.training_rows(trial.splits.validation) for trial in trials]
        needed = np.concatenate([first, np.setdiff1d(np.concatenate(others), first)])
        shape = cached.table.layers[layer]
        return cls(
            features=_read_lazily(cached.table, layer, needed, input, memory, in_memory),
            labels=truth_of(cached.images.columns, cached.table.task),
            task=cached.table.task,
            class_count=len(cached.table.classes),
            trials=trials,
            rows=rows.take(needed),
            map_shape=shape if input == "flat" and len(shape) > 1 else None,
        )

    def training_rows(self, images: Images) -> LabelledRows:
        """Return the rows that a head is fitted on: images with their training views."""
        return self._labelled(self.rows.training_rows(images))

    def unaugmented(self, images: Images) -> LabelledRows:
        """Return the rows of the images without augmented views."""
        return self._labelled(self.rows.of_view(images))

    def evaluation_rows(self, images: Images) -> LabelledRows:
        """Return unaugmented images, with the views that predictions are averaged over."""
        views = range(1, self.rows.tta_views + 1)
        others = tuple(self._features(self.rows.of_view(images, view)) for view in views)
        return replace(self.unaugmented(images), views=others)

    def _labelled(self, rows: Rows) -> LabelledRows:
        images = self.rows.images[rows]
        return LabelledRows(
            self._features(rows),
            self.labels[images],
            task=self.task,
            images=images,
            map_shape=self.map_shape,
        )

    def _features(self, rows: Rows) -> Features | LazyFeatures:
        """Return features of rows, without a copy if they are consecutive."""
        if isinstance(self.features, LazyFeatures):
            return self.features.take(rows)
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self.features[rows[0] : rows[0] + len(rows)]
        return self.features[rows]


def images_of(trials: Sequence[Trial]) -> tuple[Images, Images]:
    """Return the training images of all trials, and their validation and test images."""
    splits = [trial.splits for trial in trials]
    evaluation = [images for each in splits for images in (each.validation, each.test)]
    train = np.unique(np.concatenate([each.train for each in splits]))
    return train, np.unique(np.concatenate(evaluation))


def input_of(
    table: FeatureTable,
    layer: str,
    *,
    requested: Input | None,
    default: Input,
    max_flat: float = MAX_FLAT,
) -> Input:
    """Return the requested input, else a head's default.

    A layer of one vector per image is pooled; pixels are flat by default, as a mean colour says
    little. Maps of over ``max_flat`` numbers are pooled by default: the dense head would need
    minutes.
    """
    shape = table.layers[layer]
    if len(shape) == 1:
        return "pooled"
    if requested is None and table.spec.base == "pixels":
        return "flat"
    if requested is None and math.prod(shape) > max_flat:
        return "pooled"
    return requested or default


def _read_lazily(
    table: FeatureTable,
    layer: str,
    rows: Rows,
    input: Input,
    memory: float,
    in_memory: Features | None,
) -> Features | LazyFeatures:
    """Return features of the rows; lazy if they are many, in a file if they exceed ``memory``."""
    width = feature_count(table.layers[layer], input)
    is_same = in_memory is not None and in_memory.shape == (len(table), width)
    if in_memory is not None and is_same and input == "pooled":
        is_many = len(rows) > MANY_ROWS
        return LazyFeatures(in_memory, in_memory.shape, rows) if is_many else in_memory[rows]
    if 4 * len(rows) * width > memory:
        return LazyFeatures.write(_read_blocks(table, layer, rows, input), (len(rows), width))
    features = read_input(table, layer, rows, input)
    return LazyFeatures.of(features) if len(rows) > MANY_ROWS else features


def read_input(table: FeatureTable, layer: str, rows: Rows, input: Input) -> Features:
    """Return features of the rows, in order: (n, H·W·C) flat or (n, C), the mean of each map.

    Raises BadDataError if a value is not finite, or all are too small for float16.
    """
    shape = table.layers[layer]
    if input == "flat" or len(shape) == 1:
        features = flatten_or_pool(table.features(layer, rows), input)
        _check_values(table, layer, _largest(features))
        return features
    features = np.empty((len(rows), shape[-1]), np.float32)
    for block, values in _read_blocks(table, layer, rows, input):
        features[block] = values
    return features


def _read_blocks(
    table: FeatureTable, layer: str, rows: Rows, input: Input
) -> Iterator[tuple[Rows, Features]]:
    """Yield indices of rows (n,) and their features (n, D) in the file's order; raise as above."""
    order, largest = np.argsort(rows), np.float32(0)
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        block = order[start : start + ROWS_PER_BLOCK]
        features = flatten_or_pool(table.features(layer, rows[block]), input)
        largest = np.maximum(largest, _largest(features))
        yield block, features
    _check_values(table, layer, largest)


def _largest(features: Features) -> np.float32:
    """Return the largest absolute value; NaN if one is."""
    return np.float32(np.maximum(features.max(initial=0), -features.min(initial=0)))


def _check_values(table: FeatureTable, layer: str, largest: np.float32) -> None:
    vanished = table.spec.dtype == "float16" and largest < np.finfo(np.float16).tiny
    if vanished or not np.isfinite(largest):
        problem = "only values too small for float16" if vanished else "values that are not finite"
        raise BadDataError(
            f"{printable(table.path)}: layer {printable(layer)} contains {problem}; extract again "
            f"with --dtype float32"
        )
