"""Heat maps: where in an image the evidence for a class lies, from its feature maps.

No backward pass through the base is needed: a head is linear, or a small network, or is run again
without parts of the maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsClassifier

from pipeline.errors import UsageError
from pipeline.heads.calibration import class_scores, head_outputs, label_order
from pipeline.heads.dense import DenseNetwork
from pipeline.heads.inputs import flatten_or_pool
from pipeline.heads.novelty import NoveltyDetector
from pipeline.models.bundle import Bundle
from pipeline.models.config import AUTO
from pipeline.models.head_layers import decision_weights, steps_of
from pipeline.spec import CLASSES, MULTILABEL, layer_key, split_layer_key
from pipeline.text import printable

HEADS = {  # that have a method
    "cam": "linear",
    "gradcam": "linear or dense",
    "hirescam": "linear or dense",
    "distance": "novelty on maps",
}
MAX_PARTS = 16  # of a side of the maps that occlusion replaces in turn: 256 runs of the head
FLOATS_PER_BLOCK = 2**24  # 64 MiB of copies of maps
LOWEST = float(np.log(np.finfo(np.float64).eps))  # instead of the logarithm of probability 0

Array = npt.NDArray[np.float64]
Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Heatmap:
    """The evidence for a class at each position of an image's feature maps.

    Attributes
    ----------
    label : the class, the most probable label, or the name of a number.
    values : (H, W) float64; positive ones are evidence for the class, negative ones against it.
    method : how they were computed, one of `pipeline.models.config.METHODS`.
    file : of the overlay, if it was written.
    """

    label: str
    values: Array
    method: str
    file: str = ""

    @property
    def is_flat(self) -> bool:
        """Whether all positions are equal, so that the map shows nothing."""
        return bool(np.ptp(self.values) <= 1e-9 * np.abs(self.values).max(initial=0))


def heatmaps(
    bundle: Bundle, maps: Maps, numbers: Sequence[int], method: str = AUTO
) -> list[Heatmap]:
    """Compute the heat map of a class for each image.

    Parameters
    ----------
    maps : (B, H, W, C) of the layer `maps_layer`.
    numbers : (B,) of the classes.
    method : ``cam`` (Zhou et al. 2016), for linear heads: values that add up to the decision value
        of the class, before a temperature and without terms that all classes share; of two classes,
        the first has the negative decision value. The intercept is spread in proportion to the
        activity of positions: spread evenly, it would be evidence where nothing is to be seen, see
        docs/EXPLAIN.md.
        ``gradcam`` (Selvaraju et al. 2017) and ``hirescam`` (Draelos and Carin 2020), for dense and
        linear heads: the maps times the gradient of the logit, averaged over positions or not, and
        not rectified. ``distance``, for novelty heads on maps: of each position, see
        `NoveltyDetector.position_scores`. ``occlusion``, for every head: by how much the log-odds
        of the class, or the number of a regression, fall if the head sees the mean of the other
        positions instead; of nearest neighbors, the distance to other classes minus that to the
        class.
        ``auto``: see `choose_method`.

    Raises UsageError if the features are not maps, or the method is not for this head.
    """
    method = choose_method(bundle, method)
    if maps.ndim != 4:
        raise UsageError(f"heat maps need feature maps (B, H, W, C); received {maps.shape}")
    if bundle.layer == maps_layer(bundle):  # as the head sees them
        maps = maps.astype(bundle.spec.dtype).astype(np.float32)
    chosen = np.asarray(numbers, np.int64)
    if method == "occlusion":
        values = np.array([_occlude(bundle, *pair) for pair in zip(maps, chosen, strict=True)])
    elif method == "distance":
        scores = steps_of(bundle.estimator)[-1].position_scores(_head_input(bundle, maps))
        values = np.where(chosen == 1, 1, -1)[:, None, None] * scores
    else:
        slopes, intercepts = _slopes(bundle, maps, chosen)
        if method == "gradcam":
            slopes = slopes.mean(axis=(1, 2), keepdims=True)
        values = (slopes * maps).sum(axis=3)
        if method == "cam":
            values += intercepts[:, None, None] * _activity(maps)
    return [
        Heatmap(bundle.classes[number], rows, method)
        for number, rows in zip(chosen, values, strict=True)
    ]


def maps_layer(bundle: Bundle) -> str:
    """Return the key of the layer whose maps the head sees, pooled or not."""
    return layer_key(split_layer_key(bundle.layer)[0], "none")


def choose_method(bundle: Bundle, method: str = AUTO) -> str:
    """Return the method for a head; ``auto`` is exact if it can be, and occlusion for the rest.

    Raises UsageError if the features are not maps, or the method is not for this head.
    """
    if bundle.layer == maps_layer(bundle) and len(bundle.shape) != 3:
        raise UsageError(
            f"heat maps need feature maps (H, W, C); {printable(bundle.head)} takes "
            f"{printable(bundle.layer)} of shape {bundle.shape}: extract a layer with maps"
        )
    fitting = ["occlusion"]
    if decision_weights(bundle.estimator, bundle.task) is not None:
        fitting = ["cam", "hirescam", "gradcam", "occlusion"]
    elif isinstance(bundle.estimator, DenseNetwork):
        # they differ on flattened maps: 87 % of the same composites against 78 % (VGG16)
        fitting = ["gradcam", "hirescam", "occlusion"]
    elif _pooling(bundle) == "none" and isinstance(steps_of(bundle.estimator)[-1], NoveltyDetector):
        fitting = ["distance", "occlusion"]
    if method not in (AUTO, *fitting):
        raise UsageError(
            f"--explain-method {method} is not for {printable(bundle.head)}, which is not "
            f"{HEADS[method]}: choose {' or '.join(fitting)}"
        )
    return fitting[0] if method == AUTO else method


def _activity(maps: Maps) -> Array:
    """Return each position's share of the absolute features of an image: (B, H, W), sums of 1."""
    sums = np.abs(maps).sum(axis=3, dtype=np.float64)
    totals = sums.sum(axis=(1, 2), keepdims=True)
    return np.asarray(np.where(totals > 0, sums, 1) / np.where(totals > 0, totals, sums[0].size))


def _slopes(bundle: Bundle, maps: Maps, numbers: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the derivative of each class's logit by the maps (B, H, W, C), and intercepts (B,)."""
    linear = decision_weights(bundle.estimator, bundle.task)
    if linear is not None:
        weights, intercepts = _by_class(bundle, *linear)
        slopes = weights[numbers]
    else:
        kernel, bias, *output = (each.astype(np.float64) for each in bundle.estimator.weights_)
        weights, intercepts = _by_class(bundle, output[0].T, output[1])
        is_active = _head_input(bundle, maps) @ kernel + bias > 0  # (B, U)
        slopes = (is_active * weights[numbers]) @ kernel.T  # (B, D)
    pooling = _pooling(bundle)
    count, height, width, channels = maps.shape
    if pooling == "none":
        values = slopes.reshape(maps.shape)
    elif pooling == "avg":
        values = np.broadcast_to(slopes[:, None, None] / (height * width), maps.shape)
    else:  # only the first position of a channel's maximum counts
        flat = maps.reshape(count, height * width, channels)
        values = np.zeros(flat.shape)
        np.put_along_axis(values, flat.argmax(axis=1)[:, None], slopes[:, None], axis=1)
        values = values.reshape(maps.shape)
    return values, intercepts[numbers]


def _by_class(bundle: Bundle, weights: Array, intercepts: Array) -> tuple[Array, Array]:
    """Return weights (K, D) and intercepts (K,) in the order of the bundle's classes."""
    if bundle.task != CLASSES:
        return weights, intercepts
    if len(intercepts) == 1:  # of the class in classes_[1]
        weights = np.concatenate([-weights, weights])
        intercepts = np.concatenate([-intercepts, intercepts])
    order = label_order(steps_of(bundle.estimator)[-1], len(bundle.classes))
    return weights[order], intercepts[order]


def _pooling(bundle: Bundle) -> str:
    """Return how the head's input is made of maps: none (flattened), avg or max."""
    pooling = split_layer_key(bundle.layer)[1]
    return "avg" if pooling == "none" and bundle.input == "pooled" else pooling


def _head_input(bundle: Bundle, maps: Maps) -> npt.NDArray[np.float32]:
    """Return what the head takes (B, D) of maps (B, H, W, C)."""
    if _pooling(bundle) == "max":
        rows: npt.NDArray[np.float32] = maps.max(axis=(1, 2))
    else:
        rows = flatten_or_pool(maps, "flat" if _pooling(bundle) == "none" else "pooled")
    return rows.astype(bundle.spec.dtype).astype(np.float32) if ":" in bundle.layer else rows


def _occlude(bundle: Bundle, maps: Maps, number: int) -> Array:
    """Return the fall of a class's score (H, W) where maps (H, W, C) are replaced.

    The mean of the other positions replaces a position: pooled heads then see the image without it.
    Zeros, or the mean of the training images, would be a feature that the image has nowhere: a
    fall would also say how unusual that is. Maps of more than `MAX_PARTS` rows or columns are
    replaced in blocks.
    """
    height, width, channels = maps.shape
    values = np.zeros((height, width))
    if height * width == 1:  # nothing remains
        return values
    edges = [np.linspace(0, side, min(side, MAX_PARTS) + 1).astype(int) for side in (height, width)]
    parts = [
        (slice(top, bottom), slice(left, right))
        for top, bottom in zip(edges[0], edges[0][1:], strict=False)
        for left, right in zip(edges[1], edges[1][1:], strict=False)
    ]
    whole = _scores(bundle, _head_input(bundle, maps[None]), number)[0]
    total = maps.sum(axis=(0, 1), dtype=np.float64)  # (C,)
    size = max(1, FLOATS_PER_BLOCK // maps.size)
    for start in range(0, len(parts), size):
        block = parts[start : start + size]
        copies = np.repeat(maps[None], len(block), axis=0)
        for copy, part in zip(copies, block, strict=True):
            replaced = maps[part].reshape(-1, channels)
            rest = total - replaced.sum(axis=0, dtype=np.float64)
            copy[part] = rest / (height * width - len(replaced))
        scores = _scores(bundle, _head_input(bundle, copies), number)
        for part, score in zip(block, scores, strict=True):
            values[part] = whole - score
    return values


def _scores(bundle: Bundle, rows: npt.NDArray[np.float32], number: int) -> Array:
    """Return the log-odds of a class, or the number of a regression, of each row (B,).

    Decision values are preferred to probabilities, which may be 1 whatever is replaced; of nearest
    neighbors, distances to their votes.
    """
    estimator, count = bundle.estimator, len(bundle.classes)
    if isinstance(steps_of(estimator)[-1], KNeighborsClassifier):
        return _distance_margins(estimator, rows, number)
    if bundle.task == CLASSES:
        has_decisions = hasattr(estimator, "decision_function")
        method = "decision_function" if has_decisions else "predict_log_proba"
        with np.errstate(divide="ignore"):
            scores = class_scores(estimator, rows, count, method=method)
        scores = np.where(np.isneginf(scores), LOWEST, scores)
        scores /= getattr(estimator, "temperature", 1.0)
        others = np.delete(scores, number, axis=1)
        return np.asarray(scores[:, number] - logsumexp(others, axis=1))
    scores = head_outputs(estimator, rows, count, bundle.task)[:, number]
    if bundle.task == MULTILABEL:
        with np.errstate(divide="ignore"):
            scores = np.log(scores).clip(LOWEST) - np.log1p(-scores).clip(LOWEST)
    return scores


def _distance_margins(estimator: Any, rows: npt.NDArray[np.float32], number: int) -> Array:
    """Return how much closer the k nearest rows of a class are than those of the others (B,)."""
    *before, model = steps_of(estimator)
    for step in before:
        rows = step.transform(rows)
    distances = pairwise_distances(rows, model._fit_X, metric=model.effective_metric_)  # (B, N)
    is_own = model.classes_[model._y] == number

    def nearest(chosen: npt.NDArray[np.bool_]) -> Array:
        count = min(model.n_neighbors, np.count_nonzero(chosen))
        return np.asarray(np.sort(distances[:, chosen], axis=1)[:, :count].mean(axis=1))

    return nearest(~is_own) - nearest(is_own)
