"""kNN of many rows: one search for all numbers of neighbors, in blocks of float32 products."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline

from pipeline.heads.moments import directions_of
from pipeline.heads.scaler import CommonScaler

QUERIES, ROWS = 512, 8192  # a product of them takes 16 MiB
SMALLEST = np.finfo(np.float32).tiny
MAX_COSINE = 1 - 1e-4  # mean of the rows; float32 products tell cosines apart by 1e-7

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class NeighborSearch:
    """The training rows (N, D) nearest to others by angle.

    The grid of kNN differs in the number of neighbors only: ``count`` are found once for rows that
    several settings classify.
    """

    def __init__(self, rows: Floats, count: int) -> None:
        self.rows, self.count = rows, min(count, len(rows))
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
        # a row of zeros has the cosine 0, as in scikit-learn
        inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > SMALLEST)
        self._inverse = inverse.astype(np.float32)
        self._found: dict[bytes, npt.NDArray[np.int32]] = {}

    def find(self, queries: Floats) -> Indices:
        """Return row numbers (B, count), the nearest first."""
        key = hashlib.blake2b(np.ascontiguousarray(queries).data).digest()
        if key not in self._found:
            starts = range(0, len(queries), QUERIES)
            found = [self._search(queries[start : start + QUERIES]) for start in starts]
            self._found[key] = np.concatenate(found).astype(np.int32)
        return self._found[key].astype(np.int64)

    def _search(self, queries: Floats) -> Indices:
        """Keep the best of each block of rows: few of a later block are better than these."""
        queries = np.ascontiguousarray(queries, np.float32)
        values: npt.NDArray[Any] = np.empty((len(queries), 0), np.float32)
        rows: npt.NDArray[Any] = np.empty((len(queries), 0), np.int64)
        memory = np.empty((len(queries), ROWS), np.float32)  # new pages for each block cost 30 %
        for start in range(0, len(self.rows), ROWS):
            block = self.rows[start : start + ROWS]
            products = memory[:, : len(block)]
            np.matmul(queries, block.T, out=products)
            products *= self._inverse[start : start + ROWS]
            if values.shape[1] < self.count:
                better = products
                numbers = np.broadcast_to(np.arange(products.shape[1]), products.shape)
            else:
                flat = np.flatnonzero(products > values.min(axis=1, keepdims=True))
                at, columns = np.divmod(flat, products.shape[1])
                place = np.arange(len(at)) - np.searchsorted(at, at)  # within each query
                shape = len(queries), place.max(initial=-1) + 1
                better, numbers = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int64)
                better[at, place], numbers[at, place] = products[at, columns], columns
            values, rows = np.hstack([values, better]), np.hstack([rows, numbers + start])
            if values.shape[1] > self.count:
                order = np.argpartition(values, -self.count, axis=1)[:, -self.count :]
                values, rows = (np.take_along_axis(each, order, 1) for each in (values, rows))
        return np.asarray(np.take_along_axis(rows, np.argsort(-values, axis=1, kind="stable"), 1))


class _SharedSearch:
    search_: NeighborSearch

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        count = self.n_neighbors if n_neighbors is None else n_neighbors  # type: ignore[attr-defined]
        if count > self.search_.count:
            raise ValueError(f"expected n_neighbors <= {self.search_.count}; received {count}")
        return self.search_.find(X)[:, :count]


class SharedClassifier(_SharedSearch, KNeighborsClassifier):  # type: ignore[misc]
    """`KNeighborsClassifier` that shares its search with those of other settings."""


class SharedRegressor(_SharedSearch, KNeighborsRegressor):  # type: ignore[misc]
    """`KNeighborsRegressor` that shares its search with those of other settings."""


_SHARED: dict[type, Any] = {
    KNeighborsClassifier: SharedClassifier,
    KNeighborsRegressor: SharedRegressor,
}


def shares_search(template: Any, rows: Any) -> bool:
    """Return whether `fit_shared` fits an estimator on rows (N, D).

    That is kNN by angle without centering. The angles must differ by more than float32 products
    resolve: those of features with a large mean and a small spread do not.
    """
    return (
        isinstance(template, Pipeline)
        and [type(step) for step in template[:-1]] == [CommonScaler]
        and not template[0].with_mean
        and type(template[-1]) in _SHARED
        and template[-1].metric == "cosine"
        and template[-1].weights == "uniform"
        and _mean_cosine(rows) < MAX_COSINE
    )


def _mean_cosine(rows: Any) -> float:
    """Return the mean cosine of about a thousand rows that are not zeros; 0 without any."""
    few = directions_of(rows[:: max(1, len(rows) // 1000)])
    few = few[few.any(axis=1)]
    return float(np.square(few.mean(axis=0)).sum()) if len(few) else 0.0


def fit_shared(
    template: Any, settings: Sequence[Mapping[str, Any]], rows: Floats, labels: npt.NDArray[Any]
) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """Yield each setting with its fitted pipeline; all have the same rows and search.

    ``rows`` (N, D) are scaled in place.
    """
    (scaler_name, scaler), (name, final) = template.steps
    scaler = scaler.fit(rows)
    if scaler.scale_ != 1:  # a power of two: no bit of a number changes
        rows /= np.float32(scaler.scale_)
    counts = [int(each.get(f"{name}__n_neighbors", final.n_neighbors)) for each in settings]
    fitted: Any = _SHARED[type(final)](**final.get_params()).fit(rows, labels)
    fitted.search_ = NeighborSearch(fitted._fit_X, min(max(counts), len(rows)))
    for params, count in zip(settings, counts, strict=True):
        one = copy(fitted)
        one.n_neighbors = count
        yield params, Pipeline([(scaler_name, scaler), (name, one)])


def without_search(estimator: Any) -> Any:
    """Return an estimator to save: kNN is scikit-learn's own, with the same rows."""
    if not (isinstance(estimator, Pipeline) and isinstance(estimator[-1], _SharedSearch)):
        return estimator
    *steps, (name, shared) = estimator.steps
    plain = {of: kind for kind, of in _SHARED.items()}[type(shared)](**shared.get_params())
    vars(plain).update({key: value for key, value in vars(shared).items() if key != "search_"})
    return Pipeline([*steps, (name, plain)])
