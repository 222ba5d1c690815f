"""Stage two by itself: our heads, scikit-learn's, and reading a cache with and without us."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.benchmark.drawn import LAYER, training_rows
from pipeline.frames import load_features
from pipeline.heads.dense import Dense
from pipeline.heads.head import FitOptions
from pipeline.heads.logistic import Logistic
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet

Measure = Callable[[], dict[str, float]]


def open_dense(*, cache: str, epochs: int) -> Measure:
    """Our dense head, with the book's settings, on flattened maps; seconds an epoch."""
    train, validation = _rows(cache, pooled=False)
    options = FitOptions(dense=(DenseSettings(epochs=epochs),))
    return _timed(lambda: list(Dense().fit_candidates(train, validation, options)), parts=epochs)


def open_logistic(*, cache: str) -> Measure:
    """Our logistic regression on pooled features, all its penalties."""
    train, validation = _rows(cache, pooled=True)

    def fit() -> None:
        fresh = TrainingSet(train.features, train.labels, 2)  # scaling them is part of the work
        with threadpool_limits(1, user_api="blas"):  # as compare_heads has it
            list(Logistic().fit_candidates(fresh, validation, FitOptions()))

    return _timed(fit)


def open_scikit_learn(*, cache: str) -> Measure:
    """The loop over the same penalties, on the same features, with scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, _ = _rows(cache, pooled=True)

    def fit() -> None:
        scaled = train.scaler(train.features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for C in Logistic.grid:
                LogisticRegression(C=C, max_iter=1000).fit(scaled, train.labels)

    return _timed(fit)


def open_reading(*, cache: str) -> Measure:
    """All features of a cache, as stage two reads them: checked, then in memory."""
    return _timed(lambda: load_features(cache).features(LAYER))


def open_h5py(*, cache: str) -> Measure:
    """The same with h5py alone."""

    def read() -> None:
        with h5py.File(Path(cache), "r") as file:
            file[f"features/{LAYER}"][()]

    return _timed(read)


def _rows(cache: str, *, pooled: bool) -> tuple[TrainingSet, LabelledRows]:
    table = load_features(cache)
    (features, labels), (others, other_labels) = (
        (maps.mean(axis=(1, 2)) if pooled else maps.reshape(len(maps), -1), labels)
        for maps, labels in training_rows(table)
    )
    return TrainingSet(features, labels, 2), LabelledRows(np.asarray(others), other_labels)


def _timed(work: Callable[[], object], *, parts: int = 1) -> Measure:
    def measure() -> dict[str, float]:
        started = time.perf_counter()
        work()
        return {"seconds": (time.perf_counter() - started) / parts}

    return measure
