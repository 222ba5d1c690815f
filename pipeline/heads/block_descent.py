"""L-BFGS over rows that are read in blocks: all settings of a grid share each pass."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.optimize import minimize
from scipy.special import expit

from pipeline.heads.moments import Array, Moments, Numbers, RowBlocks, shift_of

# Of a loss per squared logit: 1/4 is the most of log loss; less, as most rows are well classified.
CURVATURE = 0.25
OPTIONS = {"maxcor": 20, "maxls": 50, "gtol": 1e-5, "ftol": 1e-9}

Floats = npt.NDArray[np.float32]
# (logits (n, S, T), targets) -> loss (n, S) and its derivative (n, S, T)
Loss = Callable[[Floats, npt.NDArray[Any]], tuple[Floats, Floats]]
Functions = Callable[[dict[int, Array]], Mapping[int, tuple[float, Array]]]


def softmax_loss(logits: Floats, labels: Numbers) -> tuple[Floats, Floats]:
    """Log loss of classes (n,)."""
    logits -= logits.max(axis=2, keepdims=True)
    of_class = np.take_along_axis(logits, labels[:, None, None], axis=2)
    np.exp(logits, out=logits)
    totals = logits.sum(axis=2, keepdims=True)
    loss = (np.log(totals) - of_class)[:, :, 0]
    logits /= totals
    logits[np.arange(len(labels)), :, labels] -= 1
    return loss, logits


def sigmoid_loss(logits: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Log loss of independent labels (n, T), 0 or 1."""
    targets = targets[:, None]
    loss = (np.logaddexp(0, logits) - targets * logits).sum(axis=2)
    return loss, expit(logits) - targets


def squared_hinge_loss(logits: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Squared hinge loss of independent labels (n, T): cost of the row, negative for the rest."""
    costs, signs = np.abs(targets)[:, None], np.sign(targets)[:, None]
    margins = np.maximum(1 - signs * logits, 0)
    return (costs * margins**2).sum(axis=2), -2 * targets[:, None] * margins


@dataclass(frozen=True)
class Minimum:
    """Weights (T, D) and intercepts (T,) for scaled features, and the number of iterations."""

    weights: Array
    intercepts: Array
    iterations: int


def descend(
    rows: RowBlocks,
    moments: Moments,
    loss: Loss,
    targets: npt.NDArray[Any],
    penalties: Sequence[float],
    *,
    columns: int,
    row_weights: Array | None = None,
    penalise_intercept: bool = False,
    max_iter: int = 10_000,
) -> list[Minimum]:
    """Minimise the weighted mean of a loss + penalty · ½‖w‖² for each penalty, over T columns.

    L-BFGS gets coordinates u in which the Hessian is near the identity: with the eigenvectors V and
    eigenvalues λ of the scatter matrix, w = V · u / sqrt(CURVATURE · λ / N + penalty).
    """
    width, total = rows.shape[1], moments.weight
    eigenvalues, vectors = linalg.eigh(moments.scatter, lower=False, driver="evd")
    curvatures = CURVATURE * np.maximum(eigenvalues, 0) / total
    units = [np.append(1 / np.sqrt(curvatures + penalty), CURVATURE**-0.5) for penalty in penalties]
    shift, scale = shift_of(rows), moments.scaler.scale_
    origin = (moments.scaler.mean_ - shift) / scale

    def unpack(index: int, point: Array) -> tuple[Array, Array]:
        scaled = point.reshape(columns, width + 1) * units[index]
        return scaled[:, :-1] @ vectors.T, scaled[:, -1]

    def evaluate(points: Mapping[int, Array]) -> dict[int, tuple[float, Array]]:
        unpacked = [unpack(index, point) for index, point in points.items()]
        weights = np.concatenate([each for each, _ in unpacked])  # (S · T, D)
        offsets = np.concatenate([each for _, each in unpacked]) - weights @ origin
        matrix = (weights / scale).astype(np.float32).T
        losses = np.zeros(len(points))
        slopes = np.zeros_like(weights)
        sums = np.zeros(len(weights))
        for numbers, block in rows.blocks():
            shifted = block - shift
            logits = shifted @ matrix
            logits += offsets.astype(np.float32)
            logits = logits.reshape(len(block), len(points), columns)
            values, derivatives = loss(logits, targets[numbers])
            if row_weights is not None:
                of_rows = row_weights[numbers].astype(np.float32)[:, None]
                values = values * of_rows
                derivatives = derivatives * of_rows[:, :, None]
            derivatives = derivatives.reshape(len(block), -1)
            losses += values.sum(axis=0, dtype=np.float64)
            sums += derivatives.sum(axis=0, dtype=np.float64)
            slopes += derivatives.T @ shifted
        slopes = (slopes / scale - np.outer(sums, origin)) / total
        sums /= total
        answers = {}
        for place, index in enumerate(points):
            own = slice(place * columns, (place + 1) * columns)
            penalty, (w, b) = penalties[index], unpacked[place]
            value = losses[place] / total + penalty / 2 * np.vdot(w, w)
            slope, slope_b = slopes[own] + penalty * w, sums[own]
            if penalise_intercept:
                value += penalty / 2 * np.vdot(b, b)
                slope_b = slope_b + penalty * b
            gradient = np.column_stack([slope @ vectors, slope_b]) * units[index]
            answers[index] = float(value), gradient.ravel()
        return answers

    start = np.zeros(columns * (width + 1))
    results = minimise_together(evaluate, [start] * len(penalties), max_iter=max_iter)
    return [Minimum(*unpack(index, result.x), result.nit) for index, result in enumerate(results)]


def minimise_together(evaluate: Functions, starts: Sequence[Array], *, max_iter: int) -> list[Any]:
    """Minimise functions by L-BFGS, each in a thread; a call of ``evaluate`` serves them all.

    ``evaluate`` gets the points of the functions that have not converged, and returns the value and
    gradient of each. Returns SciPy's results.
    """
    questions: SimpleQueue[tuple[int, Array | None]] = SimpleQueue()
    answers: list[SimpleQueue[Any]] = [SimpleQueue() for _ in starts]

    def ask(index: int, point: Array) -> tuple[float, Array]:
        questions.put((index, point.copy()))
        answer = answers[index].get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def run(index: int) -> Any:
        try:
            return minimize(
                partial(ask, index),
                starts[index],
                jac=True,
                method="L-BFGS-B",
                options=OPTIONS | {"maxiter": max_iter},
            )
        finally:
            questions.put((index, None))

    with ThreadPoolExecutor(len(starts)) as pool:
        futures = [pool.submit(run, index) for index in range(len(starts))]
        active, points = len(starts), {}
        while active:
            index, point = questions.get()
            if point is None:
                active -= 1
            else:
                points[index] = point
            if points and len(points) == active:
                try:
                    replies: Mapping[int, Any] = evaluate(points)
                except BaseException as error:  # the threads end, and raise it below
                    replies = dict.fromkeys(points, error)
                for index in points:
                    answers[index].put(replies[index])
                points = {}
        return [future.result() for future in futures]
