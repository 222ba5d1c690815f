"""The rows a head learns from, with what several heads share: scaling and a shorter basis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

COLUMNS_PER_ROW_TO_ROTATE = 2  # below it, the QR costs about what the shorter fits save

T = TypeVar("T")


class ComputedOnce(Generic[T]):
    """A property that is computed once, also where several threads ask for it.

    One lock for all properties of an object, because they ask for one another: two locks that are
    taken in either order are a deadlock. (`functools.cached_property` has its own in Python 3.11.)
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        known: dict[str, Any] = instance.__dict__
        with known.setdefault("_computing", RLock()):
            if self._name not in known:
                known[self._name] = self._compute(instance)
            value: T = known[self._name]
            return value


@dataclass(frozen=True)
class LabelledRows:
    """Features (N, D) float32 and labels (N,) int64 in 0 … K - 1.

    Attributes
    ----------
    views : (V, N, D) float32, augmented views of the same images, which `averaged` averages with
        them.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    views: Sequence[npt.NDArray[np.float32]] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def averaged(
        self, scores_of: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]
    ) -> npt.NDArray[np.float64]:
        """Mean scores over all views of each image: (N, K); probabilities stay such."""
        total = scores_of(self.features)
        for features in self.views:
            total = total + scores_of(features)
        return total / (1 + len(self.views))


@dataclass(frozen=True)
class Scaler:
    """Features less their means (D,), divided by one scale that all share.

    One scale, because the features of a layer share a unit: dividing each by its own deviation
    blows up those that hardly ever fire. Logistic regression on 1,000 cats and dogs (VGG16,
    pooled) reaches 97.0 % on test this way, 95.8 % with a scale per feature.
    """

    mean: npt.NDArray[np.float64]
    scale: float

    def __call__(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """(N, D) -> (N, D) float64."""
        rows = features - self.mean
        rows /= self.scale
        return rows


@dataclass(frozen=True)
class TrainingSet(LabelledRows):
    """The rows to learn from, every class among them; of augmented images, every view is a row.

    What several heads need is computed once, also where they are fitted in parallel threads.

    Attributes
    ----------
    balanced : whether every class counts as much as every other, however few its rows.
    """

    class_count: int
    balanced: bool = False

    def joined(self, others: LabelledRows) -> "TrainingSet":
        """These rows and the others."""
        return TrainingSet(
            np.concatenate([self.features, others.features]),
            np.concatenate([self.labels, others.labels]),
            self.class_count,
            self.balanced,
        )

    @ComputedOnce
    def class_weights(self) -> npt.NDArray[np.float64]:
        """What a row of each class counts (K,): N / (K · rows of the class), or 1 each."""
        if not self.balanced:
            return np.ones(self.class_count)
        counts = np.bincount(self.labels, minlength=self.class_count)
        return np.asarray(len(self) / (self.class_count * counts))

    @ComputedOnce
    def row_weights(self) -> npt.NDArray[np.float64]:
        """What each row counts (N,); they sum to N."""
        return self.class_weights[self.labels]

    @ComputedOnce
    def shares(self) -> npt.NDArray[np.float64]:
        """The prior probability of each class (K,): its share of the rows as they count."""
        return np.bincount(self.labels, self.row_weights, self.class_count) / len(self)

    @ComputedOnce
    def scaler(self) -> Scaler:
        """Scale these rows to a mean squared length of 1, so that a penalty means the same for
        512 features and for 8,192."""
        mean = self.features.mean(axis=0, dtype=np.float64)
        variance = float(self.features.var(axis=0, dtype=np.float64).sum())
        return Scaler(mean, variance**0.5 or 1.0)

    @ComputedOnce
    def scaled(self) -> npt.NDArray[np.float64]:
        """These rows, centred and scaled: (N, D)."""
        return self.scaler(self.features)

    @ComputedOnce
    def basis(self) -> npt.NDArray[np.float64] | None:
        """Orthonormal columns (D, N) that span the scaled rows; None unless D ≥ 2 N.

        The weights of an L2-regularised linear model are a combination of its training rows, so
        fitting in this basis is the same problem with N instead of D unknowns, not an
        approximation: 8,192 flattened features of 1,000 images become 1,000.
        """
        count, width = self.features.shape
        if width < COLUMNS_PER_ROW_TO_ROTATE * count:
            return None
        basis, _ = np.linalg.qr(self.scaled.T)
        return basis

    @ComputedOnce
    def coordinates(self) -> npt.NDArray[np.float64]:
        """The scaled rows in the basis: (N, N), or (N, D) as they are without one."""
        return self.scaled if self.basis is None else self.scaled @ self.basis
