"""Which rows of a cache a head learns from and is measured on, and their features.

An image is a row of view 0, and its number is a place among those. Only this module turns image
numbers (`Images`) into the rows of their augmented views (`Rows`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable
from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.splits import Images, Trial
from pipeline.heads.calibration import Scores, class_scores
from pipeline.heads.config import Input
from pipeline.heads.inputs import flatten_or_pool
from pipeline.text import counted, printable

VIEWS = 1 << 15  # more than any view's number: an int16
ROWS_PER_BLOCK = 1024  # 32 MiB of (4, 4, 512) maps at a time when only their means are kept

Rows = npt.NDArray[np.int64]  # of a cache, views among them


@dataclass(frozen=True, kw_only=True)
class ViewRows:
    """Which image each of R rows shows, and which view of it. No view of an image stands twice.

    Attributes
    ----------
    images, views : (R,) numbers; view 0 is the image as it is.
    learned, averaged : how many views, besides the image, heads learn from, and predictions are
        averaged over.
    """

    images: Images
    views: npt.NDArray[np.integer]
    train_views: int = 0
    tta_views: int = 0

    @classmethod
    def plain(cls, count: int) -> "ViewRows":
        """A row an image, in their order."""
        return cls(images=np.arange(count), views=np.zeros(count, np.int64))

    def training_rows(self, images: Images) -> Rows:
        """The rows that these images are learned from, ascending."""
        return np.flatnonzero(np.isin(self.images, images) & (self.views <= self.train_views))

    def of_view(self, images: Images, view: int = 0) -> Rows:
        """The row of that view of each image, in the order of the images."""
        here = np.flatnonzero(self.views == view)
        row_of = np.full(self.images.max(initial=-1) + 1, len(self.images))  # no row: IndexError
        row_of[self.images[here]] = here
        return np.asarray(row_of[images])

    def count_of(self, images: Images, most: int) -> Rows:
        """How many of its views 1 … most each image has."""
        augmented = (self.views > 0) & (self.views <= most)
        counts = np.bincount(self.images[augmented], minlength=self.images.max(initial=-1) + 1)
        return np.asarray(counts[images])

    def take(self, rows: Rows) -> "ViewRows":
        return replace(self, images=self.images[rows], views=self.views[rows])


@dataclass(frozen=True)
class CachedViews:
    """Every row of a cache, and the image that it shows; those of view 0 are in image order."""

    table: FeatureTable
    rows: ViewRows

    @classmethod
    def of(cls, table: FeatureTable) -> "CachedViews":
        """Sort rows by image; views of no image, found by path and digest, are left out."""
        columns = table.columns
        if not columns.views.any():
            return cls(table, ViewRows.plain(len(table)))
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
        whole = replace(table, columns=columns.take(kept), file_rows=table.file_rows[kept])
        return cls(whole, ViewRows(images=images[kept], views=columns.views[kept]))

    @property
    def images(self) -> FeatureTable:
        """The table of the images as they are, a row each."""
        originals = np.flatnonzero(self.rows.views == 0)
        columns, file_rows = self.table.columns.take(originals), self.table.file_rows[originals]
        return replace(self.table, columns=columns, file_rows=file_rows)

    def chosen(
        self, *, train: Images, judged: Images, views: int | None, tta: bool
    ) -> "CachedViews":
        """With the numbers of views to learn from (None for all cached) and to average.

        ``judged`` are the images of validation and test.

        Raises UsageError where the cache holds fewer than were asked for; BadDataError where it
        holds them of some images only, for those would count more than others.
        """
        name = printable(self.table.path)
        cached = self._most(train)
        if views is not None and not 0 <= views <= cached:
            raise UsageError(
                f"--views {views}: {name} holds {cached} of the images to train on; choose 0 to "
                f"{cached}, or extract with --views {views}"
            )
        learned = cached if views is None else views
        averaged = self._most(judged) if tta else 0
        if tta and not averaged:
            raise UsageError(
                f"--tta: {name} holds no augmented views of the images to validate and test on; "
                f"extract with --views and --tta"
            )
        for images, most, cure in (
            (train, learned, "or classify with --views 0"),
            (judged, averaged, "or classify without --tta"),
        ):
            whole = np.count_nonzero(self.rows.count_of(images, most) == most)
            if whole < len(images):
                raise BadDataError(
                    f"{name} holds {counted(most, 'view')} of {whole:,} of the "
                    f"{counted(len(images), 'image')} that need them; extract with --views {most} "
                    f"--tta to have them of all, {cure}"
                )
        return replace(self, rows=replace(self.rows, train_views=learned, tta_views=averaged))

    def _most(self, images: Images) -> int:
        return int(self.rows.views[np.isin(self.rows.images, images)].max(initial=0))


def views_suffix(views: int) -> str:
    """`` × 5 views`` of four beside the image; empty for none."""
    return f" × {views + 1} views" if views else ""


@dataclass(frozen=True)
class LabelledRows:
    """Features (N, D), labels (N,) in 0 … K - 1, and views (V, N, D) to average with."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    views: Sequence[npt.NDArray[np.float32]] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def joined(self, others: "LabelledRows") -> "LabelledRows":
        return LabelledRows(
            np.concatenate([self.features, others.features]),
            np.concatenate([self.labels, others.labels]),
        )

    def averaged(self, estimator: Any) -> Scores:
        """Mean probabilities over all views of each image: (N, K)."""
        count = len(estimator.classes_)
        every = (self.features, *self.views)
        return np.asarray(np.mean([class_scores(estimator, each, count) for each in every], axis=0))


@dataclass(frozen=True)
class TrialRows:
    """One input of one cached layer, with the trials that divide its images.

    Of R rows, views among them, ``features`` (R, D); of N images, ``labels`` (N,).
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_count: int
    trials: Sequence[Trial]
    rows: ViewRows

    @classmethod
    def read(
        cls,
        cached: CachedViews,
        layer: str,
        kind: Input,
        trials: Sequence[Trial],
        *,
        refit: bool = False,
    ) -> Self:
        """Read what a comparison needs, each row once; for a refit, views of validation, too.

        Of one division, what is learned from comes first, so that it need not be copied.
        """
        rows = cached.rows
        train, judged = images_of(trials)
        first = rows.training_rows(trials[0].splits.train if len(trials) == 1 else train)
        needed = [rows.of_view(judged, view) for view in range(rows.tta_views + 1)]
        if refit:
            needed += [rows.training_rows(trial.splits.validation) for trial in trials]
        wanted = np.concatenate([first, np.setdiff1d(np.concatenate(needed), first)])
        return cls(
            features=read_input(cached.table, layer, wanted, kind),
            labels=cached.images.columns.labels,
            class_count=len(cached.table.classes),
            trials=trials,
            rows=rows.take(wanted),
        )

    def training_rows(self, images: Images) -> LabelledRows:
        """All chosen views of some images: what a head is fitted on."""
        rows = self.rows.training_rows(images)
        return LabelledRows(self._features(rows), self.labels[self.rows.images[rows]])

    def unaugmented(self, images: Images) -> LabelledRows:
        return LabelledRows(self._features(self.rows.of_view(images)), self.labels[images])

    def evaluation_rows(self, images: Images) -> LabelledRows:
        """Some images as they are, with the views that predictions are averaged over."""
        views = range(1, self.rows.tta_views + 1)
        others = tuple(self._features(self.rows.of_view(images, view)) for view in views)
        return replace(self.unaugmented(images), views=others)

    def _features(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Rows that follow one another are not copied."""
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self.features[rows[0] : rows[0] + len(rows)]
        return self.features[rows]


def images_of(trials: Sequence[Trial]) -> tuple[Images, Images]:
    """The images that are learned from in some trial, and those that one is judged by."""
    splits = [trial.splits for trial in trials]
    judged = [images for each in splits for images in (each.validation, each.test)]
    train = np.unique(np.concatenate([each.train for each in splits]))
    return train, np.unique(np.concatenate(judged))


def input_of(table: FeatureTable, layer: str, *, wanted: Input | None, default: Input) -> Input:
    """The input asked for, else a head's default.

    A layer of one vector per image counts as pooled; pixels are flat unless asked otherwise, for
    their mean colour says little.
    """
    if len(table.layers[layer]) == 1:
        return "pooled"
    if wanted is None and table.spec.base == "pixels":
        return "flat"
    return wanted or default


def read_input(table: FeatureTable, layer: str, rows: Rows, kind: Input) -> npt.NDArray[np.float32]:
    """Features of the rows, in their order: (n, H·W·C) flat or (n, C), the mean of each map.

    Raises BadDataError if one of them is not finite.
    """
    shape = table.layers[layer]
    if kind == "flat" or len(shape) == 1:
        features = flatten_or_pool(table.features(layer, rows), kind)
    else:
        features = np.empty((len(rows), shape[-1]), np.float32)
        order = np.argsort(rows)
        for start in range(0, len(rows), ROWS_PER_BLOCK):
            places = order[start : start + ROWS_PER_BLOCK]
            features[places] = flatten_or_pool(table.features(layer, rows[places]), kind)
    if not np.isfinite(features).all():
        raise BadDataError(
            f"{table.path} holds values in {layer} that are not finite; "
            f"extract again with --dtype float32"
        )
    return features
