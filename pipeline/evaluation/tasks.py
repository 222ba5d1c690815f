"""What differs for sets without classes: the truth of an image, the metrics and their intervals.

Each metric takes the truth and the predictions of n images, and the weights (n, B) of B bootstrap
resamples, of which the first is the images themselves; it returns B values. With weights of 1 they
are scikit-learn's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import Columns
from pipeline.evaluation.statistics import Z_95
from pipeline.heads.config import THRESHOLD
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION

RESAMPLES = 1000
MAX_VALUES = 3 * 10**7  # images × targets × resamples: seconds for a head
VALUES_PER_BLOCK = 3 * 10**5  # images × resamples at a time: an array fits the cache of a core
BINS = 10  # of a regression's numbers, which folds are stratified by

Truth = npt.NDArray[Any]  # (n, T) of 0 and 1, or (n,) numbers
Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.floating[Any]]
Metric = Callable[[Truth, Floats, Weights], Floats]


def mean_average_precision(truth: Truth, scores: Floats, weights: Weights) -> Floats:
    """Return the mean of the classes' average precision; classes without images are left out."""
    by_class = [
        _average_precision(positive == 1, of_class, weights)
        for positive, of_class in zip(truth.T, scores.T, strict=True)
    ]
    return _mean_of_classes(np.stack(by_class))


def _average_precision(positive: npt.NDArray[np.bool_], scores: Floats, weights: Weights) -> Floats:
    """Return the mean precision at the rank of each positive; equal scores have the last rank."""
    if not positive.any():
        return np.full(weights.shape[1], np.nan)
    order = np.argsort(-scores, kind="stable")
    ranks = np.flatnonzero(positive[order])
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # of equal scores
    ends = np.unique(last[np.searchsorted(last, ranks)])
    starts = np.append(0, ends[:-1] + 1)
    weighted = weights[order[: ends[-1] + 1]]
    ranked = np.cumsum(np.add.reduceat(weighted, starts), axis=0)
    gains = np.add.reduceat(weighted[ranks], np.searchsorted(ranks, starts))
    found = np.cumsum(gains, axis=0)
    return _ratio((gains * found / np.maximum(ranked, 1)).sum(axis=0), found[-1])


def micro_f1(truth: Truth, scores: Floats, weights: Weights) -> Floats:
    """Return 2 · hits / (predicted + true labels), counted over all classes."""
    hits, labels = _count_labels(truth, scores, weights)
    return _ratio(2 * hits.sum(axis=0), labels.sum(axis=0))


def macro_f1(truth: Truth, scores: Floats, weights: Weights) -> Floats:
    """Return the mean F1 of the classes; classes neither predicted nor true are left out."""
    hits, labels = _count_labels(truth, scores, weights)
    return _mean_of_classes(_ratio(2 * hits, labels))


def _count_labels(truth: Truth, scores: Floats, weights: Weights) -> tuple[Floats, Floats]:
    """Return per class (T, B) the number of hits, and of predicted plus true labels."""
    predicted = scores > THRESHOLD
    hits, both = (truth == 1) & predicted, truth.astype(np.float64) + predicted
    return hits.T @ weights, both.T @ weights


def _mean_of_classes(values: Floats) -> Floats:
    """Return the mean (B,) of values (T, B) without NaN; NaN if all are.

    A class that a resample lacks has the value of the first one: without rare and difficult classes
    the mean, and with it the interval, would be far too high.
    """
    values = np.where(np.isnan(values), values[:, :1], values)
    return _ratio(np.nansum(values, axis=0), np.count_nonzero(~np.isnan(values), axis=0))


def _ratio(numerator: Floats, denominator: npt.NDArray[Any]) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def mean_absolute_error(truth: Truth, predicted: Floats, weights: Weights) -> Floats:
    return np.asarray(np.abs(truth - predicted[:, 0]) @ weights / weights.sum(axis=0))


def root_mean_squared_error(truth: Truth, predicted: Floats, weights: Weights) -> Floats:
    return np.asarray(np.sqrt((truth - predicted[:, 0]) ** 2 @ weights / weights.sum(axis=0)))


def r_squared(truth: Truth, predicted: Floats, weights: Weights) -> Floats:
    """Return the share of the variance that is explained: 1 - squared errors / variance."""
    centred, count = truth - truth.mean(), weights.sum(axis=0)
    variance = centred**2 @ weights - (centred @ weights) ** 2 / count
    return 1 - _ratio((truth - predicted[:, 0]) ** 2 @ weights, variance)


@dataclass(frozen=True)
class Task:
    """The metrics of a task; the first selects settings and heads on validation.

    Attributes
    ----------
    metrics : column name -> metric.
    titles : column name -> title in the table and the report.
    sign : 1 if more is better, -1 if less is.
    in_percent : whether metrics are shares, shown in percent.
    guess : what a prediction without features is.
    """

    name: str
    metrics: Mapping[str, Metric]
    titles: Mapping[str, str]
    sign: int
    in_percent: bool
    guess: str

    @property
    def measure(self) -> str:
        return next(iter(self.metrics))

    @property
    def title(self) -> str:
        """The title of the measure."""
        return self.titles[self.measure]

    def value(self, truth: Truth, predicted: Floats, metric: str = "") -> float:
        """Return a metric, by default the measure, of the predictions (n, T)."""
        compute = self.metrics[metric or self.measure]
        return float(compute(truth, predicted, np.ones((len(truth), 1)))[0])

    def resampled(self, truth: Truth, predictions: Sequence[Floats], metric: str = "") -> Floats:
        """Return the metric in each bootstrap resample of the images: (RESAMPLES,).

        Of several predictions of the same images, it is their mean. Equal numbers of images give
        equal resamples, so that differences between heads are paired.
        """
        compute = self.metrics[metric or self.measure]
        size = len(truth) * (truth.shape[1] if truth.ndim > 1 else 1)
        count = int(np.clip(MAX_VALUES // size, RESAMPLES // 10, RESAMPLES))
        blocks = (
            np.mean([compute(truth, each, weights)[1:] for each in predictions], axis=0)
            for weights in _blocks(len(truth), count)
        )
        return np.concatenate([*blocks])

    def guess_from(self, truth: Truth, count: int) -> Floats:
        """Return the constant prediction of ``count`` images, the mean of a truth: (count, T)."""
        return np.tile(np.atleast_1d(truth.mean(axis=0)).astype(np.float64), (count, 1))

    def text(self, value: float, metric: str = "") -> str:
        if metric == "r2" and not np.isnan(value):
            return f"{value:.3f}"
        return metric_text(value, in_percent=self.in_percent)

    def with_unit(self, value: float, metric: str = "") -> str:
        return f"{self.text(value, metric)} %" if self.in_percent else self.text(value, metric)


def metric_text(value: float, *, in_percent: bool) -> str:
    """Return ``97.5`` for a share; ``3.142`` or ``31,416`` for a number; empty for NaN."""
    if np.isnan(value):
        return ""
    if in_percent:
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:#.4g}".rstrip(".")


def _blocks(images: int, count: int) -> Iterator[Weights]:
    """Yield blocks (n, 1 + b) of ``count`` resamples: 1, then how often each image is drawn."""
    random, at_once = np.random.default_rng(0), max(1, VALUES_PER_BLOCK // images)
    for start in range(0, count, at_once):
        drawn = random.integers(images, size=(min(at_once, count - start), images))
        counts = [np.ones(images), *(np.bincount(row, minlength=images) for row in drawn)]
        yield np.stack(counts, axis=1).astype(np.float32)


def interval(samples: Floats, value: float) -> tuple[float, float]:
    """Return the 95 % interval of a value from resampled ones: bias-corrected (Efron 1981).

    Average precision is higher in resamples, where images repeat: percentiles would be, too.
    """
    from scipy.stats import norm

    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return np.nan, np.nan
    below = (np.mean(samples < value) + np.mean(samples <= value)) / 2
    bias = norm.ppf(np.clip(below, 1 / len(samples), 1 - 1 / len(samples)))
    low, high = np.quantile(samples, norm.cdf(2 * bias + np.array([-Z_95, Z_95])))
    return float(low), float(high)


TASKS: dict[str, Task] = {
    MULTILABEL: Task(
        name=MULTILABEL,
        metrics={
            "map": mean_average_precision,
            "micro_f1": micro_f1,
            "macro_f1": macro_f1,
        },
        titles={"map": "mAP", "micro_f1": "micro F1", "macro_f1": "macro F1"},
        sign=1,
        in_percent=True,
        guess="the share of each label",
    ),
    REGRESSION: Task(
        name=REGRESSION,
        metrics={
            "rmse": root_mean_squared_error,
            "mae": mean_absolute_error,
            "r2": r_squared,
        },
        titles={"rmse": "RMSE", "mae": "MAE", "r2": "R²"},
        sign=-1,
        in_percent=False,
        guess="the mean",
    ),
}


def truth_of(columns: Columns, task: str) -> npt.NDArray[Any]:
    """Return class numbers (N,), labels (N, T) of 0 and 1, or numbers (N,) float64."""
    if task == CLASSES:
        return columns.labels
    return columns.targets[:, 0] if task == REGRESSION else columns.targets.astype(np.int64)


def strata_of(columns: Columns, task: str) -> npt.NDArray[np.bool_]:
    """Return what folds are stratified by, (N, T): the labels, or the tenths of the numbers."""
    if task == MULTILABEL:
        return np.asarray(columns.targets == 1)
    numbers = columns.targets[:, 0]
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1]))
    tenths = np.searchsorted(edges, numbers, side="right")
    return np.asarray(tenths[:, None] == np.arange(len(edges) + 1))
