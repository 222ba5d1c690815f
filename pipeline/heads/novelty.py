"""`NoveltyDetector`: distances to normal images, after PatchCore (Roth et al. 2022)."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.model_selection import GroupKFold
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

FALSE_ALARMS = 0.05  # share of normal images that may be taken for others
BANK_SIZE = 1000  # patches; AUROC of local defects in textiles is 0.87 with 250, 0.89 with 4,000
MAX_CANDIDATES = 20_000  # images and patches that a bank is selected from: a second
PROJECTED = 64  # numbers of a patch while they are selected
FOLDS = 5
FEW_DISTANCES = 10**7  # below, OpenMP's threads on busy cores wait longer than they work
NUMBERS_PER_BLOCK = 2**23  # 32 MiB of float32 patches at a time

Floats = npt.NDArray[Any]  # float32 or float64


def alarm_threshold(scores: Floats, false_alarms: float = FALSE_ALARMS) -> float:
    """Return the score that new normal images exceed with at most this probability.

    It is the split-conformal quantile of the scores (N,) of normal images: the k-th smallest, with
    k = ⌈(N + 1)(1 - false_alarms)⌉. Fewer than 19 images promise no 5 %: it is their maximum.
    """
    rank = min(len(scores), math.ceil((len(scores) + 1) * (1 - false_alarms) - 1e-9))
    return float(np.sort(scores)[rank - 1])


class NoveltyDetector(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Tell normal images from any others; only the normal ones are learned.

    An image has a patch per position of its maps. A patch is as novel as its distance to the
    nearest patch in a bank of normal images; an image, as its most novel patch (PatchCore, Roth et
    al. 2022). The bank is a coreset: greedy k-center on a random projection. Changes of the whole
    image move no single patch far, so the mean of its patches has a bank, too. An image's score is
    the larger of both, in standard deviations from the mean of normal images.

    Patches and means have length 1: their length is contrast. Patches are not averaged over their
    neighbors, unlike PatchCore's, as the layers of a base overlap enough: of small defects in
    textiles (VGG16 at 250 pixels, block4_pool) AUROC is 0.89, with averages 0.60, and 0.70 with
    Euclidean distances.

    The threshold is `alarm_threshold` of cross-fitted scores, each of a bank without that image.

    Parameters
    ----------
    map_shape : of a row before it was flattened, (H, W, C); None for vectors, of one position.
    bank_size : maximum number of patches, and of means.
    false_alarms : share of normal images that may exceed the threshold.

    Attributes
    ----------
    classes_ : (2,) normal, then not normal.
    patches_, means_ : (B, C) float32, the banks.
    center_, scale_ : (2,) mean and standard deviation of the distances of normal images, to the
        bank of patches and to that of means.
    threshold_ : of scores; above, an image is not normal.
    """

    def __init__(
        self,
        *,
        map_shape: Sequence[int] | None = None,
        bank_size: int = BANK_SIZE,
        false_alarms: float = FALSE_ALARMS,
        random_state: Any = None,
    ) -> None:
        self.map_shape = map_shape
        self.bank_size = bank_size
        self.false_alarms = false_alarms
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> Self:
        """Learn from the rows (N, D) of the first class in ``y`` (N,).

        Rows of one of the ``groups`` (N,), such as the views of an image, are cross-fitted
        together. Raises ValueError for more than two classes, or fewer than two normal images.
        """
        rows: Floats
        rows, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) > 2:
            kind = type_of_target(y)
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {kind}."
            )
        normal = np.flatnonzero(y == self.classes_[0])
        if len(self.classes_) == 1:
            self.classes_ = np.append(self.classes_, self.classes_ + 1)
        random = check_random_state(self.random_state)
        normal = random.permutation(normal)[:MAX_CANDIDATES]
        groups = normal if groups is None else np.asarray(groups)[normal]
        if (group_count := len(np.unique(groups))) < 2:
            raise ValueError("needs two normal images or more; received 1 sample")
        candidates, owners = self._draw_candidates(rows, normal, random)

        def banks_of(images: npt.NDArray[np.int64]) -> list[Floats]:
            """Return a bank of patches and one of means from these of the normal images."""
            of_images = [
                each[np.isin(owner, images)] for each, owner in zip(candidates, owners, strict=True)
            ]
            return [each[_spread(each, self.bank_size, random)] for each in of_images]

        distances = np.empty((len(normal), 2))
        folds = GroupKFold(min(FOLDS, group_count), shuffle=True, random_state=random)
        for others, held_out in folds.split(normal, groups=groups):
            distances[held_out] = self._distances(rows, normal[held_out], banks_of(others))
        self.center_, self.scale_ = distances.mean(axis=0), distances.std(axis=0)
        self.scale_[self.scale_ == 0] = 1
        self.threshold_ = alarm_threshold(self._combine(distances), self.false_alarms)
        self.patches_, self.means_ = banks_of(np.arange(len(normal)))
        return self

    def decision_function(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return scores minus the threshold (N,): above 0, an image is not normal."""
        rows = self._validated(X)
        distances = self._distances(rows, np.arange(len(rows)), [self.patches_, self.means_])
        return self._combine(distances) - self.threshold_

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the class of each row (N,)."""
        is_novel = self.decision_function(X) > 0
        return np.asarray(self.classes_[is_novel.astype(np.int64)])

    def position_scores(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the score of each position minus the threshold: (N, D) -> (N, H, W).

        Where it is above 0, the image is not normal. Changes of the whole image may show nowhere.
        """
        rows = self._validated(X)
        shape = (self.map_shape or (1, 1, -1))[:-1]
        blocks = self._blocks(len(rows))
        distances = [_nearest(self._parts(rows[block])[0], self.patches_) for block in blocks]
        scores = (np.concatenate(distances) - self.center_[0]) / self.scale_[0] - self.threshold_
        return np.asarray(scores.reshape(-1, *shape))

    @property
    def _position_count(self) -> int:
        return math.prod((self.map_shape or (1,))[:-1])

    def _validated(self, X: npt.ArrayLike) -> Floats:
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, dtype=(np.float64, np.float32), reset=False))

    def _blocks(self, count: int) -> list[slice]:
        rows = max(1, NUMBERS_PER_BLOCK // self.n_features_in_)
        return [slice(start, start + rows) for start in range(0, count, rows)]

    def _parts(self, rows: Floats) -> tuple[Floats, Floats]:
        """Return patches and their mean, of length 1: (n, D) -> (n, P, C) and (n, 1, C) float32."""
        patches = rows.reshape(len(rows), self._position_count, -1)
        return _of_length_1(patches), _of_length_1(patches.mean(axis=1, keepdims=True))

    def _draw_candidates(
        self, X: Floats, rows: npt.NDArray[np.int64], random: np.random.RandomState
    ) -> tuple[list[Floats], list[npt.NDArray[np.int64]]]:
        """Return patches and means (M, C) of these rows, and the index of the row of each (M,)."""
        positions = self._position_count
        per_row = min(positions, max(1, MAX_CANDIDATES // len(rows)))
        drawn: tuple[list[Floats], list[Floats]] = ([], [])
        for block in self._blocks(len(rows)):
            patches, means = self._parts(X[rows[block]])
            chosen = random.random((len(patches), positions)).argsort(axis=1)[:, :per_row]
            drawn[0].extend(np.take_along_axis(patches, chosen[:, :, None], axis=1))
            drawn[1].extend(means)
        numbers = np.arange(len(rows))
        return [np.concatenate(each) for each in drawn], [np.repeat(numbers, per_row), numbers]

    def _distances(
        self, X: Floats, rows: npt.NDArray[np.int64], banks: Sequence[Floats]
    ) -> npt.NDArray[np.float64]:
        """Return the distance of the most novel patch, and of the mean, of each row (n, 2)."""
        distances = np.empty((len(rows), 2))
        is_small = len(rows) * self._position_count * len(banks[0]) < FEW_DISTANCES
        with threadpool_limits(1 if is_small else None, user_api="openmp"):
            for block in self._blocks(len(rows)):
                for number, part in enumerate(self._parts(X[rows[block]])):
                    distances[block, number] = _nearest(part, banks[number]).max(axis=1)
        return distances

    def _combine(self, distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(((distances - self.center_) / self.scale_).max(axis=1))


def _of_length_1(vectors: Floats) -> Floats:
    """Return float32 vectors (…, C) of length 1; zeros stay zeros."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    vectors = (vectors / np.where(largest, largest, 1)).astype(np.float32)  # squares stay finite
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1))


def _nearest(vectors: Floats, bank: Floats) -> Floats:
    """Return the distance of vectors (n, P, C) to the nearest of a bank (B, C): (n, P)."""
    _, distances = pairwise_distances_argmin_min(vectors.reshape(-1, bank.shape[1]), bank)
    return np.asarray(distances.reshape(vectors.shape[:2]))


def _spread(points: Floats, size: int, random: np.random.RandomState) -> npt.NDArray[np.int64]:
    """Return the indices of ``size`` of the points (M, C) by greedy k-center; all, if no more.

    Each is the farthest from those before (Gonzalez 1985), after a random projection.
    """
    if len(points) <= size:
        return np.arange(len(points))
    if points.shape[1] > PROJECTED:
        projection = GaussianRandomProjection(PROJECTED, random_state=random)
        points = projection.fit_transform(points)
    chosen = np.empty(size, np.int64)
    squares = np.einsum("mc,mc->m", points, points)
    nearest = np.full(len(points), np.inf, points.dtype)
    farthest = random.randint(len(points))
    for number in range(size):
        chosen[number] = farthest
        distances = squares + squares[farthest] - 2 * (points @ points[farthest])
        np.minimum(nearest, distances, out=nearest)
        farthest = int(nearest.argmax())
    return chosen
