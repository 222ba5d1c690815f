"""What looking into the data found; row numbers are those of the cache that was looked into."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two rows that show the same picture.

    Attributes
    ----------
    first, second : row numbers, the first the lower one.
    similarity : cosine of their centred features, 1 for identical files. What is near is not
        decided by it, but by how far other images are.
    exact : whether the files are identical, and not only their features nearly so.
    across : whether they stand in different splits or folds, which inflates test accuracy.
    """

    first: int
    second: int
    similarity: float
    exact: bool
    across: bool


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A row whose label is probably wrong, judged by a model that never saw the row.

    Attributes
    ----------
    label, suggested : class numbers, as labelled and as predicted.
    label_probability, suggested_probability : out-of-fold probabilities of both.
    """

    row: int
    label: int
    suggested: int
    label_probability: float
    suggested_probability: float


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """Accuracy against the number of training images.

    Attributes
    ----------
    sizes : (S,) numbers of training images, ascending; the last is all of them, or 5,000.
    accuracies : (S, R) on held-out images, of R random draws of each size.
    head : which classifier, for people: ``logistic (C=1)``.
    sentence : whether more images would help.
    """

    sizes: npt.NDArray[np.int64]
    accuracies: npt.NDArray[np.float64]
    head: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Duplicates, likely label errors and the learning curve of one cached layer.

    Attributes
    ----------
    table, layer : where the features are from, and what row numbers refer to.
    duplicates : across splits first, then by similarity.
    suspects : the most suspicious first.
    learning_curve : None where there are too few images to draw one.
    """

    table: FeatureTable
    layer: str
    duplicates: tuple[DuplicatePair, ...]
    suspects: tuple[Suspect, ...]
    learning_curve: LearningCurve | None
