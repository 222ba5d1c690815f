"""A quick linear probe of cached features: principal components and logistic regression."""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FAR = 10  # times the median distance from the centre; photographs: at most 2.5
SAMPLE = 2000  # maximum number of rows that components are fitted on
TOLERANCE = 1e-4  # 1e-3 and 1e-7 rank the same wrong labels of cats and dogs first
MAX_ITERATIONS = 100
BLOCK_VALUES = 1 << 24  # 64 MiB of features at a time

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class FeatureRows(Protocol):
    """Features (N, D): an array, or rows that are read from a file when they are selected."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


def sample_rows(count: int, most: int = SAMPLE) -> Rows:
    """Return the numbers of at most ``most`` of ``count`` rows, ascending, always the same."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


class OutlierLimit:
    """Moves rows that are ten times as far from the median as most closer to it.

    Otherwise a few huge values set the mean and the components, and all other rows look the same.
    """

    def __init__(self, sample: Floats) -> None:
        self._centre = np.median(sample, axis=0)
        self._limit = FAR * float(np.median(self._offsets(sample)[1]))

    def __call__(self, features: Floats) -> Floats:
        """Return features (n, D)."""
        offsets, lengths = self._offsets(features)
        far = np.flatnonzero(lengths > self._limit)
        if not len(far) or not self._limit > 0:
            return features
        shares = (self._limit / lengths[far]).astype(np.float32)
        limited = features.copy()
        limited[far] = self._centre + shares[:, None] * offsets[far]
        return limited

    def _offsets(self, features: Floats) -> tuple[Floats, npt.NDArray[np.float64]]:
        """Return the offsets from the median (n, D) and their lengths (n,)."""
        offsets = features - self._centre
        return offsets, np.sqrt(np.einsum("nd,nd->n", offsets, offsets, dtype=np.float64))


def row_blocks(count: int, width: int) -> Iterator[slice]:
    """Divide ``count`` rows of ``width`` values into blocks of 64 MiB."""
    step = max(1, BLOCK_VALUES // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def principal_components(features: FeatureRows, max_count: int, rows: Rows) -> Floats:
    """Fit at most ``max_count`` principal components on a sample of the rows (n,); return all."""
    components = fit_components(features, max_count, rows)
    return transform(components, features, rows)


def transform(components: Any, features: FeatureRows, rows: Rows) -> Floats:
    """Return the components (n, d) of the rows (n,), which are read in blocks."""
    pca = components[-1]
    out = np.empty((len(rows), pca.n_components_), np.float32)
    for block in row_blocks(len(rows), pca.n_features_in_):
        out[block] = components.transform(features[rows[block]])
    return out


def fit_components(features: FeatureRows, max_count: int, rows: Rows | None = None) -> Any:
    """Fit at most ``max_count`` principal components on a sample of the rows (N, D), or of some.

    Returns a pipeline. Its first step multiplies by the power of two that brings the largest value
    of the sample to 0.5 … 1: the products of the randomized SVD neither overflow nor underflow, and
    the components of features of any scale are the same, bit by bit.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    rows = np.arange(features.shape[0]) if rows is None else rows
    sample = features[rows[sample_rows(len(rows))]]
    _, exponent = np.frexp(np.abs(sample).max(initial=0))
    scale = FunctionTransformer(partial(_times_power_of_two, exponent=-exponent))
    count = min(max_count, *sample.shape)
    pca = PCA(count, svd_solver="randomized", iterated_power=2, random_state=0)
    with np.errstate(invalid="ignore"):  # 0 / 0: the share of constant features in the variance
        return make_pipeline(scale, pca).fit(sample)


def _times_power_of_two(features: Floats, exponent: int) -> Floats:
    return np.asarray(np.ldexp(features, exponent))


def fit_probe(features: Floats, labels: npt.NDArray[np.int64], C: float) -> Any:
    """Fit logistic regression with inverse penalty ``C`` on rows (N, D)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from pipeline.heads.scaler import CommonScaler

    model = LogisticRegression(C=C, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum suffices
        return make_pipeline(CommonScaler(), model).fit(features, labels)


def stratified_order(labels: npt.NDArray[np.int64], random: np.random.Generator) -> Rows:
    """Return a random order of the rows (N,); the first n, for any n, are stratified by class.

    One row of each class comes first, even of rare classes.
    """
    position = np.empty(len(labels))
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        position[rows] = (np.arange(len(rows)) + random.random()) / len(rows)
        position[rows[0]] = -random.random()
    return np.argsort(position, kind="stable")
