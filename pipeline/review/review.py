"""Open a run with its cache: predictions, labels, pictures, and the images to review."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable
from pipeline.images.sets import Name
from pipeline.review.labels_file import LabelsFile
from pipeline.review.queue import QueueItem

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Review:
    """A run of classify or finetune with the cache of its recommended head; N images, K classes.

    Attributes
    ----------
    run : its folder.
    document : its results.json.
    row : the row of the recommended head in ``document["rows"]``: head, cache, layer, accuracies.
    table : the unaugmented images, with the labels that the run used; features are read on request.
    layer : the cached layer of the recommended head.
    splits : (N,) 1 train, 2 validation, 3 test, as the run used them (`SPLIT_NAMES` of
        `pipeline.images.scan`); after folds every image is test.
    predicted : (N,) class numbers by the recommended head, which was not fitted on the image; -1
        if it has no prediction for it, such as a training image.
    probability, label_probability : (N,) of the predicted class and of the label, NaN without.
    labels : the file of corrected labels.
    notices : one line each, such as that an old run has no predictions.csv.
    """

    run: Path
    document: Mapping[str, Any]
    row: Mapping[str, Any]
    table: FeatureTable
    layer: str
    splits: npt.NDArray[np.uint8]
    predicted: Rows
    probability: npt.NDArray[np.float64]
    label_probability: npt.NDArray[np.float64]
    labels: LabelsFile
    cache_dir: Path
    images: Name | None = None
    notices: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.table.classes

    @property
    def heads(self) -> list[str]:
        """The heads of the run, for `retrain`; empty for a run of finetune."""
        raise NotImplementedError

    def current_labels(self) -> Rows:
        """Return class numbers (N,) after the edits of the labels file; -1 for dropped images."""
        raise NotImplementedError

    def select(
        self,
        *,
        label: int | None = None,
        predicted: int | None = None,
        split: int | None = None,
        only_mistakes: bool = False,
    ) -> Rows:
        """Return the rows (n,), ascending, of a current label, predicted class and split.

        Mistakes are images whose predicted class is not their current label; the most confident
        come first.
        """
        raise NotImplementedError

    def feature_map(self, max_points: int = 2000) -> tuple[npt.NDArray[np.float64], Rows]:
        """Return two principal components (n, 2), in 0 … 1, and their rows (n,), ascending.

        Of more than ``max_points`` images, as many, spread evenly over the classes.
        """
        raise NotImplementedError

    def picture(self, row: int, side: int = 256) -> bytes | str:
        """Return a JPEG of at most ``side`` pixels, or the reason why there is none.

        It is read from the image set, and shown only if its SHA-256 is that of the cached image.
        """
        raise NotImplementedError

    def queue(self, *, reviewed: bool = False) -> list[QueueItem]:
        """Return the images to review: likely label errors, confident mistakes, then duplicates.

        Each image is in it once. Those in the labels file are left out unless ``reviewed``.
        The first call takes seconds; later ones read the labels file only.
        """
        raise NotImplementedError


def open_review(
    run: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    cache_dir: Path | str = "cache",
    images: Name | None = None,
) -> Review:
    """Open a run of classes for review.

    Parameters
    ----------
    run : folder of classify or finetune (default: the newest in results/).
    labels : file of corrected labels (default: ``labels.csv`` in the run's folder); it need not
        exist.
    cache_dir : folder to look for the run's cache in, if it has moved.
    images : folder or archive with the images, if moved.

    Raises UsageError for runs of labels or numbers; NoInputError if the run or its cache is gone;
    BadDataError if either is damaged.
    """
    raise NotImplementedError
