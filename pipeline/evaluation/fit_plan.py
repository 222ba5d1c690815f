"""Plan a fit within memory: all rows at once, in blocks, or a stratified sample of them."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline

from pipeline.errors import BadDataError
from pipeline.evaluation.lazy_features import LazyFeatures
from pipeline.evaluation.rows import MANY_ROWS, LabelledRows
from pipeline.heads.dense import DenseNetwork
from pipeline.heads.registry import Head
from pipeline.heads.streaming import can_stream
from pipeline.memory import GB
from pipeline.spec import MULTILABEL
from pipeline.text import counted

Rows = npt.NDArray[np.int64]

# Memory of a fit, in multiples of its float32 features, by the class of the final step: measured
# with 12,000 × 1,024 features; of SVC an estimate.
COPIES = {
    "DummyClassifier": 0,
    "DummyRegressor": 0,
    "LogisticRegression": 2.2,  # the scaled features are float64
    "OneVsRestClassifier": 2.2,
    "LinearSVC": 6.1,  # LIBLINEAR copies each number with its column
    "RidgeClassifier": 6.5,  # centered, and weighted
    "Ridge": 6.5,
    "LinearDiscriminantAnalysis": 6.1,
    "GaussianNB": 4.1,
    "NearestPrototype": 6.2,
    "KNeighborsClassifier": 2.1,
    "KNeighborsRegressor": 2.1,
    "RandomForestClassifier": 4.2,
    "RandomForestRegressor": 4.2,
    "SVC": 4.2,
    "DenseClassifier": 5,  # of TensorFlow, float32
    "DenseRegressor": 5,
    "KornblithRegression": 4.2,
}
COPIES_OF_OTHERS = 5  # custom heads: the features' own copy, and two of float64
COPIES_OF_PCA = 8  # an SVD of all of them
NODES_PER_ROW = 1.3  # of a tree in a forest, which draws 63 % of the rows: at most two a row
NODE_BYTES, VALUE_BYTES = 64, 8  # and a number per class
TENSORFLOW_BYTES = 500 << 20
BLOCK_FIT_BYTES = 150 << 20  # a fit in blocks: the blocks themselves
FEW_ROWS = 1000  # fewer say little
SAMPLED = ("SVC", "RandomForestClassifier", "RandomForestRegressor", "KNeighborsClassifier",
           "KNeighborsRegressor")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How a head is fitted.

    Attributes
    ----------
    rows : (n,) numbers of the training rows it is fitted on; None for all.
    in_blocks : whether features are read in blocks, as often as the fit needs.
    needed : bytes of memory.
    note : what the row says about it.
    """

    rows: Rows | None = None
    in_blocks: bool = False
    needed: float
    note: str = ""


def plan_fit(head: Head, train: LabelledRows, class_count: int, memory: float) -> FitPlan:
    """Return how to fit a head with this many bytes; raise BadDataError if nothing would do."""
    count, width = train.shape
    template = head.build(width, class_count)
    final = template[-1] if isinstance(template, Pipeline) else template
    name = type(final).__name__
    most = wanted = count if head.max_rows is None else min(count, head.max_rows)

    def needed(rows: int) -> float:
        bytes_ = _bytes_in_memory(template, final, rows, width, class_count)
        is_read = isinstance(train.features, LazyFeatures) and (
            train.features.is_stored or rows < count
        )
        return bytes_ + 4 * rows * width * is_read

    is_dense = isinstance(final, DenseNetwork)
    if can_stream(template, train.task) and (count > MANY_ROWS or needed(count) > memory):
        in_blocks = _bytes_in_blocks(name, head, width, class_count)
        if in_blocks <= memory:
            return FitPlan(in_blocks=True, needed=in_blocks)
        most = count if needed(count) <= memory else 0
        least = min(in_blocks, needed(count))
    else:
        least = needed(wanted)
        if is_dense and least > memory:
            return FitPlan(in_blocks=True, needed=TENSORFLOW_BYTES + BLOCK_FIT_BYTES)
        if name in SAMPLED:
            while most >= FEW_ROWS and needed(most) > memory:
                most = _rounded(0.9 * most)
    if most == count and least <= memory:
        return FitPlan(needed=least)
    is_sample = most == head.max_rows or (name in SAMPLED and most >= FEW_ROWS)
    if most < count and is_sample and needed(most) <= memory:
        has_views = train.images is not None and len(np.unique(train.images)) < count
        return FitPlan(
            rows=stratified_sample(train, most),
            needed=needed(most),
            note=f"fitted on {most:,} of {count:,} images" + " and views" * has_views,
        )
    raise BadDataError(
        f"needs {_gigabytes(least)} to be fitted on {counted(wanted, 'row')} of {width:,} features"
        f"; {max(0, memory) / GB:.1f} GB are left: raise --memory by {_gigabytes(least - memory)}"
        + (", or use pooled features" if train.map_shape else "")
    )


def _gigabytes(count: float) -> str:
    """Return bytes as gigabytes, rounded up: never 0."""
    return f"{math.ceil(10 * count / GB) / 10:.1f} GB"


def _bytes_in_memory(template: Any, final: Any, count: int, width: int, class_count: int) -> float:
    """Return the memory of a fit of ``count`` rows in addition to their float32 features."""
    name = type(final).__name__
    copies = COPIES.get(name, COPIES_OF_OTHERS)
    if isinstance(template, Pipeline) and any(type(step).__name__ == "PCA" for step in template):
        copies += COPIES_OF_PCA
    total = copies * 4 * count * width + 8 * count * class_count
    if name.startswith("RandomForest"):
        values = NODE_BYTES + VALUE_BYTES * class_count
        total += final.n_estimators * NODES_PER_ROW * count * values
    if isinstance(final, DenseNetwork) and "tensorflow" not in sys.modules:
        total += TENSORFLOW_BYTES
    return total


def _bytes_in_blocks(name: str, head: Head, width: int, class_count: int) -> float:
    """Return the memory of a fit in blocks; it does not depend on the number of rows."""
    total = float(BLOCK_FIT_BYTES)
    if name in ("DummyClassifier", "DummyRegressor", "NearestPrototype", "GaussianNB"):
        return total
    total += 4 * 8 * width**2  # the scatter matrix, its eigenvectors and two copies
    if name in ("LogisticRegression", "OneVsRestClassifier", "LinearSVC"):
        settings = len(ParameterGrid(head.grid))
        total += 8 * settings * 50 * class_count * width  # 20 steps and gradients of L-BFGS
    return total


def _rounded(count: float) -> int:
    """Return a number rounded down to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(1, count))) - 1)
    return int(count // unit * unit)


def stratified_sample(rows: LabelledRows, count: int) -> Rows:
    """Return ascending numbers of about ``count`` rows (n,), with every class in proportion.

    Every class has a row at least. The same rows give the same sample.
    """
    labels, drawn = rows.labels, np.random.default_rng(0).permutation(len(rows))
    if rows.task == MULTILABEL:
        return np.sort(drawn[:count])
    order = drawn[np.argsort(labels[drawn], kind="stable")]
    chosen = order[np.linspace(0, len(order) - 1, count).round().astype(np.int64)]
    if rows.task != "regression":
        _, first = np.unique(labels, return_index=True)
        missing = np.setdiff1d(labels, labels[chosen])
        chosen = np.concatenate([chosen, first[np.isin(labels[first], missing)]])
    return np.unique(chosen)


class MemoryGate:
    """Let fits run in parallel as long as their memory is not more than there is."""

    def __init__(self, memory: float) -> None:
        self._free = memory
        self._running = 0
        self._changed = Condition()

    @contextmanager
    def reserve(self, needed: float) -> Iterator[None]:
        """Wait until there is enough, or nothing else runs."""
        with self._changed:
            self._changed.wait_for(lambda: needed <= self._free or not self._running)
            self._free -= needed
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._running -= 1
                self._changed.notify_all()
