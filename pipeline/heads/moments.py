"""Rows that are read in blocks, and their sums and scatter matrix, from one pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg.blas import dsyrk

from pipeline.heads.scaler import CommonScaler

ROWS_PER_BLOCK = 1024  # of arrays in memory: 5 MiB at 1,280 features
Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Block = tuple[Numbers, npt.NDArray[np.float32]]


class RowBlocks(Protocol):
    """Rows (N, D) that are read in blocks, as often as a fit needs.

    ``labels`` are classes (N,) in 0 … K - 1, or targets (N,) or (N, T).
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def labels(self) -> npt.NDArray[Any]: ...

    def blocks(self) -> Iterator[Block]:
        """Yield numbers of rows (n,) and their features (n, D): each row once, in one order."""


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """`RowBlocks` of features (N, D) in memory."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.features), self.features.shape[1]

    def blocks(self) -> Iterator[Block]:
        for start in range(0, len(self.features), ROWS_PER_BLOCK):
            block = self.features[start : start + ROWS_PER_BLOCK]
            yield np.arange(start, start + len(block)), block


def shift_of(rows: RowBlocks) -> npt.NDArray[np.float32]:
    """Return the mean of the first block (D,). Sums of rows minus it do not cancel."""
    _, block = next(iter(rows.blocks()))
    return np.asarray(block.mean(axis=0, dtype=np.float64), np.float32)


def directions_of(rows: npt.NDArray[Any]) -> Array:
    """Divide rows (n, D) by their lengths of any size; rows of zeros stay zeros."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1))


def class_indicators(labels: Numbers, class_count: int) -> Any:
    """Return a sparse matrix (N, K) that is 1 in the column of each row's class."""
    ones = np.ones(len(labels))
    return sparse.csr_array(
        (ones, labels, np.arange(len(labels) + 1)), shape=(len(labels), class_count)
    )


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Weighted sums over rows z of centered and scaled features, and over their T targets.

    Attributes
    ----------
    scaler : the fitted scaler.
    weight : sum of the weights of all rows.
    mean : (D,) of z; 0 without weights.
    target_mean : (T,)
    products : (T, D) sum of (target - target_mean) · (z - mean).
    scatter : (D, D) sum of (z - mean)(z - mean)ᵀ; only the upper triangle is filled.
    """

    scaler: CommonScaler
    weight: float
    mean: Array
    target_mean: Array
    products: Array
    scatter: Array


def moments_of(rows: RowBlocks, targets: Any, weights: Array | None = None) -> Moments:
    """Read rows once; ``targets`` (N, T) may be sparse, ``weights`` (N,) are 1 by default.

    Sums and products are float64: float32 has seven digits, the weights need eight.
    """
    count, width = rows.shape
    shift = shift_of(rows)
    sums, squares, weighted = np.zeros(width), np.zeros(width), np.zeros(width)
    products = np.zeros((targets.shape[1], width))
    scatter = np.zeros((width, width), order="F")
    for numbers, block in rows.blocks():
        shifted = block.astype(np.float64)
        shifted -= shift
        sums += shifted.sum(axis=0)
        squares += np.einsum("nd,nd->d", shifted, shifted)
        target = targets[numbers]
        if weights is not None:
            roots = np.sqrt(weights[numbers])[:, None]
            weighted += weights[numbers] @ shifted
            shifted *= roots
            target = target * roots
        products += target.T @ shifted
        scatter = dsyrk(1.0, shifted.T, 1.0, scatter, overwrite_c=True)  # rows of C, columns of F
    if weights is None:
        total, weighted, target_sums = float(count), sums, np.asarray(targets.sum(axis=0))
    else:
        total, target_sums = float(weights.sum()), np.asarray(weights @ targets)
    scaler = CommonScaler.of_sums(count, shift, sums, squares)
    scale = scaler.scale_
    dsyrk(-1 / total, weighted[:, None], 1.0, scatter, overwrite_c=True)
    scatter /= scale**2
    products = (products - np.outer(target_sums, weighted / total)) / scale
    return Moments(
        scaler=scaler,
        weight=total,
        mean=(weighted / total - sums / count) / scale,
        target_mean=target_sums / total,
        products=products,
        scatter=scatter,
    )
