"""Images and their augmented views: the one place that knows which rows of a cache are which.

Everywhere else a row is an image as it is (view 0): images are divided, counted, looked into and
shown. Here it is decided which rows those images are learned from and judged by.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable
from pipeline.errors import BadDataError, UsageError
from pipeline.text import counted, printable

VIEWS = 1 << 15  # more than any view's number: an int16

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ViewRows:
    """Which image each of R rows shows, and which view of it. No view of an image stands twice.

    Attributes
    ----------
    images : (R,) image numbers.
    views : (R,) view numbers; 0 is the image as it is.
    learned : how many augmented views heads learn from, 1 … learned.
    averaged : over how many, besides the image as it is, predictions are averaged.
    """

    images: Rows
    views: npt.NDArray[np.integer]
    learned: int = 0
    averaged: int = 0

    @classmethod
    def plain(cls, count: int) -> "ViewRows":
        """A row an image, in their order."""
        return cls(images=np.arange(count), views=np.zeros(count, np.int64))

    def to_learn_from(self, images: Rows) -> Rows:
        """The rows that these images are learned from: every view, ascending."""
        return np.flatnonzero(np.isin(self.images, images) & (self.views <= self.learned))

    def of_view(self, images: Rows, view: int = 0) -> Rows:
        """The row of that view of each image, in the order of the images."""
        here = np.flatnonzero(self.views == view)
        row_of = np.full(self.images.max(initial=-1) + 1, len(self.images))  # no row: IndexError
        row_of[self.images[here]] = here
        return np.asarray(row_of[images])

    def count_of(self, images: Rows, most: int) -> Rows:
        """How many of the views 1 … most of each image there are."""
        augmented = (self.views > 0) & (self.views <= most)
        counts = np.bincount(self.images[augmented], minlength=self.images.max(initial=-1) + 1)
        return np.asarray(counts[images])

    def take(self, rows: Rows) -> "ViewRows":
        """These rows alone."""
        return replace(self, images=self.images[rows], views=self.views[rows])


@dataclass(frozen=True)
class CachedViews:
    """Every row of a cache, by the images that they show.

    Attributes
    ----------
    table : all rows; those of view 0 are the images, in their order.
    rows : which image each shows.
    """

    table: FeatureTable
    rows: ViewRows

    @classmethod
    def of(cls, table: FeatureTable) -> "CachedViews":
        """Sort rows by image: a view belongs to the file of its path and digest.

        What belongs to no image that is there is left out.
        """
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

    def chosen(self, *, train: Rows, judged: Rows, views: int | None, tta: bool) -> "CachedViews":
        """With the numbers of views to learn from and to average.

        Parameters
        ----------
        train, judged : the images that are learned from, and that validation and test consist of.
        views : how many views to learn from; None for all that are cached.
        tta : average predictions over all that are cached.

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
        return replace(self, rows=replace(self.rows, learned=learned, averaged=averaged))

    def _most(self, images: Rows) -> int:
        return int(self.rows.views[np.isin(self.rows.images, images)].max(initial=0))


def times_views(views: int) -> str:
    """`` × 5 views`` of four beside the image as it is; empty for none."""
    return f" × {views + 1} views" if views else ""
