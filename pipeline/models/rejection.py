"""Rejection: abstain from classifying images that belong to none of the classes."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.text import counted, printable

if TYPE_CHECKING:
    from pipeline.models.neighbors import CachedNeighbors

NONE_OF_THESE = "none of these"
UNSURE, UNLIKE = "unsure", "unlike"
COVERAGE = 0.95  # share of images like the cached ones that is kept by default
MAX_IMAGES = 10_000  # in a calibration set, which is a part of a saved head
COLUMNS = ("labels", "predicted", "label_probability", "probability", "distance")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rejection:
    """Whether a prediction is rejected, and why.

    Attributes
    ----------
    reason : ``unsure`` between classes, ``unlike`` the cached images, or empty if it is kept.
    classes : that the image may have, the most probable first: those at the level of a maximum
        error; else the predicted one, or the first two if the head is unsure between them.
    distance : to the nearest cached images, 0 … 2; NaN if it is not known.
    """

    reason: str
    classes: tuple[str, ...]
    distance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the rejection for JSON."""
        return {
            "rejected": bool(self.reason),
            "reason": self.reason,
            "classes": list(self.classes),
            "distance": None if math.isnan(self.distance) else self.distance,
        }


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Predictions for n images that the head was not fitted on; thresholds are computed from them.

    Attributes
    ----------
    labels, predicted : (n,) true and predicted class numbers.
    label_probability, probability : (n,) of these classes.
    distance : (n,) to the nearest other cached images, see `CachedNeighbors.measure`.
    references : the number of cached images that distances are to; 0 for all.
    """

    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    label_probability: Floats
    probability: Floats
    distance: Floats
    references: int = 0

    @classmethod
    def of(cls, labels: npt.NDArray[np.int64], scores: Floats, distance: Floats) -> Self:
        """Return the set of labels (n,), probabilities (n, K) and distances (n,)."""
        return cls(
            labels=labels,
            predicted=scores.argmax(axis=1),
            label_probability=scores[np.arange(len(labels)), labels],
            probability=scores.max(axis=1),
            distance=distance,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def to_document(self) -> dict[str, Any]:
        """Return lists for JSON."""
        columns = {name: vars(self)[name][:MAX_IMAGES].tolist() for name in COLUMNS}
        return {**columns, "references": self.references} if self.references else columns

    @classmethod
    def from_document(cls, document: Any, class_count: int) -> Self:
        """Return the set of `to_document`; raise ValueError for invalid values."""
        highest = {"labels": class_count - 1, "predicted": class_count - 1, "distance": 2.0}
        if not isinstance(document, Mapping) or set(document) - {"references"} != set(COLUMNS):
            raise ValueError("its calibration set has other columns")
        references = document.get("references", 0)
        if type(references) is not int or references < 0:
            raise ValueError("its calibration set has an invalid number of references")
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name in COLUMNS:
            values = document[name]
            kinds = (int,) if isinstance(highest.get(name), int) else (int, float)
            is_valid = isinstance(values, list) and all(
                type(value) in kinds and 0 <= value <= highest.get(name, 1) for value in values
            )
            if not is_valid:
                raise ValueError(f"the column {name} of its calibration set has invalid values")
            arrays[name] = np.array(values, np.int64 if kinds == (int,) else np.float64)
        lengths = {len(values) for values in arrays.values()}
        if len(lengths) > 1 or not 1 <= max(lengths) <= MAX_IMAGES:
            raise ValueError(f"its calibration set has columns of {sorted(lengths)} images")
        return cls(**arrays, references=references)


def conformity(
    calibration: Sequence[Floats], measures: Sequence[Floats]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return a conformal p-value (B,) of each image by several measures, and the decisive one (B,).

    An image's score is its highest rank by any of the measures, such as doubt and distance, among
    the n images of the calibration set and itself. Its p-value is the share of these n + 1
    images with at least that score. As all are ranked alike, the p-values of images that are
    exchangeable with the calibration set are at most α with a probability of at most α (Vovk et al.
    2005), for any α: no correction for the number of measures is needed.

    Parameters
    ----------
    calibration : an array (n,) per measure, higher for stranger images.
    measures : the same of the images, (B,).
    """
    count = len(calibration[0])
    own, others = [], []
    for known, new in zip(calibration, measures, strict=True):
        order = np.sort(known)
        own.append(np.searchsorted(order, new))  # images below it
        others.append(np.searchsorted(order, known) + (new[:, None] < known))  # (B, n)
    # the sum decides between equal highest ranks: ties would keep more images than promised
    score, known_scores = (
        np.max(ranks, axis=0) * (2 * count + 1) + np.sum(ranks, axis=0) for ranks in (own, others)
    )
    is_as_strange = known_scores >= score[:, None]
    return (1 + is_as_strange.sum(axis=1)) / (1 + count), np.argmax(own, axis=0)


def label_sets(
    calibration: CalibrationSet, probabilities: Floats, max_error: float, *, per_class: bool
) -> npt.NDArray[np.bool_]:
    """Return which classes (B, K) images may have, by probabilities (B, K): conformal label sets.

    The label of an exchangeable image is missed with a probability of at most ``max_error``; with
    ``per_class``, also among the images of each class (Sadinle et al. 2019; Vovk 2012).
    """
    with warnings.catch_warnings():  # it changes the filters
        from crepes import ConformalClassifier

    bins = calibration.labels if per_class else None
    fitted = ConformalClassifier().fit(1 - calibration.label_probability, bins)
    p_values = [
        fitted.predict_p(
            1 - of_class, None if bins is None else np.full(len(of_class), label), smoothing=False
        )
        for label, of_class in enumerate(probabilities.T)
    ]
    return np.stack(p_values, axis=1) > max_error


class Rejector:
    """Rejects images by conformal prediction.

    By default it keeps a share of ``coverage`` of images like the cached ones: those with the least
    doubt and distance. With ``max_error`` it keeps images with one possible class, if they are not
    more distant than all but this share of the calibration set.

    Parameters
    ----------
    neighbors : of the cache of the training; None if it is gone, then distances are not used.
    per_class : hold ``coverage`` in each predicted class, ``max_error`` in each class.

    Raises UsageError if the calibration set is too small for the share.
    """

    def __init__(
        self,
        calibration: CalibrationSet,
        classes: tuple[str, ...],
        neighbors: "CachedNeighbors | None",
        *,
        coverage: float | None = None,
        max_error: float | None = None,
        per_class: bool = False,
    ) -> None:
        self._calibration = calibration
        self._classes = classes
        count = calibration.references
        self._neighbors = neighbors.references(count) if neighbors and count else neighbors
        self._max_error = max_error
        self._per_class = per_class
        self._level = 1 - (coverage or COVERAGE) if max_error is None else max_error
        labels = calibration.predicted if max_error is None else calibration.labels
        counts = np.bincount(labels, minlength=len(classes)) if per_class else [len(labels)]
        fewest = int(np.argmin(counts))
        needed = math.ceil(round(1 / self._level, 9)) - 1  # else no p-value is that low
        if counts[fewest] < needed:
            of_class = ""
            if per_class:
                what = "predicted as" if max_error is None else "of"
                of_class = f" {what} {printable(classes[fewest])}"
            flag = "--coverage" if max_error is None else "--max-error"
            share = 1 - self._level if max_error is None else max_error
            raise UsageError(
                f"{flag} {share:g} needs {counted(needed, 'validation image')}{of_class}; the "
                f"model has {counts[fewest]:,}: choose a less strict share"
                f"{', or leave out --per-class' if per_class else ''}"
            )

    def __call__(
        self, features: npt.NDArray[np.float32], probabilities: Floats, digests: Sequence[bytes]
    ) -> list[dict[str, Rejection]]:
        """Judge images by their features (B, *shape), probabilities (B, K) and digests."""
        distances = np.full(len(probabilities), np.nan)
        if self._neighbors is not None:
            distances = self._neighbors.distances(features, digests)
        judge = self._judge_by_coverage if self._max_error is None else self._judge_by_error
        reasons, possible = judge(probabilities, distances)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        return [
            {
                "rejection": Rejection(
                    reason,
                    tuple(self._classes[label] for label in ranked if may_have[label]),
                    distance,
                )
            }
            for reason, may_have, ranked, distance in zip(
                reasons, possible, order.tolist(), distances.tolist(), strict=True
            )
        ]

    def _judge_by_coverage(
        self, probabilities: Floats, distances: Floats
    ) -> tuple[list[str], npt.NDArray[np.bool_]]:
        known = self._calibration
        calibration, measures = [-known.probability], [-probabilities.max(axis=1)]
        if self._neighbors is not None:
            calibration.append(known.distance)
            measures.append(distances)
        predicted = probabilities.argmax(axis=1)
        p_values, decisive = np.empty(len(predicted)), np.empty(len(predicted), np.int64)
        for label in np.unique(predicted) if self._per_class else [None]:
            rows = slice(None) if label is None else predicted == label
            of_class = slice(None) if label is None else known.predicted == label
            p_values[rows], decisive[rows] = conformity(
                [each[of_class] for each in calibration], [each[rows] for each in measures]
            )
        reasons = np.where(p_values > self._level, "", np.array([UNSURE, UNLIKE])[decisive])
        ranks = np.argsort(np.argsort(-probabilities, axis=1, kind="stable"), axis=1)
        shown = np.select([reasons == UNSURE, reasons == UNLIKE], [2, 0], 1)  # number of classes
        return reasons.tolist(), ranks < shown[:, None]

    def _judge_by_error(
        self, probabilities: Floats, distances: Floats
    ) -> tuple[list[str], npt.NDArray[np.bool_]]:
        known, max_error = self._calibration, self._level
        possible = label_sets(known, probabilities, max_error, per_class=self._per_class)
        is_unlike = np.zeros(len(distances), bool)
        if self._neighbors is not None:
            is_unlike = conformity([known.distance], [distances])[0] <= max_error
        is_unsure = possible.sum(axis=1) != 1
        reasons = np.select([is_unlike, is_unsure], [UNLIKE, UNSURE], "")
        return reasons.tolist(), possible
