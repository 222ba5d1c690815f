"""Train networks of one hidden layer side by side, in one pass over the rows.

They are Keras' networks with Keras' training (Dense, Dropout, Dense; its initialisers, losses,
optimisers and running means) without Keras' cost: its `fit` carries the hidden kernel of (D, U)
weights through main memory some ten times a step. Here the kernel is cut into tiles that stay in
a core's cache, and each tile does in turn all that a step asks of it: its gradient, its update,
and its part of the *next* batch's pre-activations. Threads share the tiles out, and the parts are
always added up in the same order, so the number of threads changes no bit.

Networks of one width share their arrays along a first axis, H. All networks of a call see the same
batches, whose order is drawn from a stream of its own: a seed gives initial weights and dropout,
nothing else. So a network comes out of a grid as if it had been trained alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp
from threadpoolctl import threadpool_limits

from pipeline.cores import usable_cores
from pipeline.heads.settings import DenseSettings, Optimizer
from pipeline.heads.training import LabelledRows, TrainingSet

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Measures = dict[str, float]

WEIGHTS_PER_TILE = 131_072  # 512 KiB: smaller ones wait for each other, larger ones leave the cache
WEIGHTS_WORTH_THREADS = 524_288  # with fewer, waking a thread at each step costs what it saves
ROWS_PER_BLOCK = 256  # of validation; a task for a thread
ORDER, INITIAL, DROPOUT = range(3)  # independent random streams

# Keras' defaults
RHO = 0.9  # RMSprop
BETA_1, BETA_2 = 0.9, 0.999  # Adam
EPSILON = 1e-7  # both


class Member(NamedTuple):
    """One network of a grid; epochs, batch size and optimiser are the same for all of them."""

    settings: DenseSettings
    seed: int


class Weights(NamedTuple):
    """What a network learns, float32, in Keras' order.

    hidden_kernel (D, U), hidden_bias (U,), output_kernel (U, K) and output_bias (K,); of two
    classes, one output decides: (U, 1) and (1,).
    """

    hidden_kernel: Array
    hidden_bias: Array
    output_kernel: Array
    output_bias: Array


class Trained(NamedTuple):
    """Weights, and what Keras calls history: loss, accuracy, val_loss, val_accuracy by epoch."""

    weights: Weights
    history: Mapping[str, Sequence[float]]


def train_networks(
    train: TrainingSet,
    validation: LabelledRows,
    members: Sequence[Member],
    *,
    threads: int | None = None,
    on_epoch: Callable[[int, Sequence[Measures]], None] | None = None,
) -> list[Trained]:
    """Train all members in one pass over ``train``, each as Keras does.

    Parameters
    ----------
    members : all different.
    threads : as many as cores by default; the result does not depend on it.
    on_epoch : called after each epoch with its number, from 0, and every member's measures.

    Training that diverges ends in weights that are not finite, and warns of nothing.
    """
    settings = members[0].settings
    count, width = train.features.shape
    crew = threads or usable_cores()
    if width * sum(member.settings.units for member in members) < WEIGHTS_WORTH_THREADS:
        crew = 1
    epochs: list[dict[Member, Measures]] = []
    weights: dict[Member, Weights] = {}
    with (
        threadpool_limits(1, user_api="blas"),  # the crew's threads are enough
        np.errstate(all="ignore"),
        ThreadPoolExecutor(crew, initializer=partial(np.seterr, all="ignore")) as executor,
    ):
        stacks = [
            _Stack(train, [member for member in members if member.settings.units == units])
            for units in dict.fromkeys(member.settings.units for member in members)
        ]
        tiles = [tile for stack in stacks for tile in stack.tiles()]
        largest = max(tile.kernel.size for tile in tiles)
        buffers = [np.empty((2, largest), np.float32) for _ in range(min(crew, len(tiles)))]
        # features of this step's batch and of the next one's, in turn
        batches = np.empty((2, min(settings.batch_size, count), width), np.float32)
        current: Array | None = None
        for batch, following in pairwise(chain([None], _batches(count, settings), [None])):
            if batch:
                for stack in stacks:
                    stack.learn(batch, executor)
            upcoming: Array | None = None
            if following:
                upcoming = batches[following.step % 2, : len(following.rows)]
                np.take(train.features, following.rows, axis=0, out=upcoming, mode="clip")
            step = batch.step if batch else 0
            work = partial(_advance, iter(tiles), step, current, upcoming)
            helpers = [executor.submit(work, buffer) for buffer in buffers[1:]]
            work(buffers[0])
            for helper in helpers:
                if not helper.cancel():  # it came too late: nothing was left to do
                    helper.result()
            current = upcoming
            if batch and batch.ends_epoch:
                measured: dict[Member, Measures] = {}
                for stack in stacks:
                    measured |= stack.measure(validation, executor)
                epochs.append(measured)
                if on_epoch:
                    on_epoch(batch.epoch, [measured[member] for member in members])
        for stack in stacks:
            weights |= stack.weights()
    return [
        Trained(
            weights[member],
            {name: [epoch[member][name] for epoch in epochs] for name in epochs[0][member]},
        )
        for member in members
    ]


def initial_weights(width: int, member: Member, *, class_count: int) -> Weights:
    """Glorot uniform kernels (Glorot & Bengio 2010), biases of zero."""
    random = np.random.default_rng((INITIAL, member.seed))
    units = member.settings.units
    outputs = len(_output_classes(class_count))

    def kernel(fan_in: int, fan_out: int) -> Array:
        drawn = random.random((fan_in, fan_out), np.float32)
        drawn -= 0.5
        drawn *= 2 * math.sqrt(6 / (fan_in + fan_out))
        return drawn

    return Weights(
        kernel(width, units),
        np.zeros(units, np.float32),
        kernel(units, outputs),
        np.zeros(outputs, np.float32),
    )


def row_order(count: int, epoch: int) -> Indices:
    """The order of the rows in an epoch (count,), the same for every network.

    It matters little: of eight networks on 1,000 cats and dogs (VGG16) another order moves the mean
    test accuracy by 0.1 points, where another seed moves that of one network by 0.6.
    """
    return np.random.default_rng((ORDER, epoch)).permutation(count)


def probabilities(logits: Array) -> Array:
    """Sigmoid of a single output, softmax of several: (..., K) -> (..., K)."""
    if logits.shape[-1] == 1:
        return np.asarray(expit(logits))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


class _Batch(NamedTuple):
    """Rows (B,) that a step learns from, from place ``start`` of the epoch's order."""

    epoch: int
    step: int  # from 1, over all epochs
    start: int
    rows: Indices
    ends_epoch: bool


def _batches(count: int, settings: DenseSettings) -> Iterator[_Batch]:
    step = 0
    for epoch in range(settings.epochs):
        order = row_order(count, epoch)
        for start in range(0, count, settings.batch_size):
            step += 1
            rows = order[start : start + settings.batch_size]
            yield _Batch(epoch, step, start, rows, start + len(rows) == count)


class _Rule(NamedTuple):
    """An optimiser, for weights that are divided by ``unit`` and the learning rate.

    Then no update multiplies by these, and moving averages may stand as mere sums.

    Attributes
    ----------
    moments : how many arrays like the weights it keeps.
    update : takes weights, gradient, moments, scratch, all of one shape, and the step's number;
        overwrites all arrays.
    """

    unit: float
    moments: int
    update: Callable[[Array, Array, Sequence[Array], Array, int], None]


def _rmsprop(
    weights: Array, gradient: Array, moments: Sequence[Array], scratch: Array, step: int
) -> None:
    (squares,) = moments
    squares *= RHO
    np.square(gradient, out=scratch)
    squares += scratch
    np.add(squares, EPSILON / (1 - RHO), out=scratch)
    np.sqrt(scratch, out=scratch)
    gradient /= scratch
    weights -= gradient


def _adam(
    weights: Array, gradient: Array, moments: Sequence[Array], scratch: Array, step: int
) -> None:
    sums, squares = moments
    sums *= BETA_1
    sums += gradient
    squares *= BETA_2
    np.square(gradient, out=scratch)
    squares += scratch
    np.sqrt(squares, out=scratch)
    scratch += EPSILON / math.sqrt(1 - BETA_2)
    np.divide(sums, scratch, out=scratch)
    scratch *= math.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)  # the moments start from zero
    weights -= scratch


def _sgd(
    weights: Array, gradient: Array, moments: Sequence[Array], scratch: Array, step: int
) -> None:
    weights -= gradient


RULES: dict[Optimizer, _Rule] = {
    "rmsprop": _Rule(1 / math.sqrt(1 - RHO), 1, _rmsprop),
    "adam": _Rule((1 - BETA_1) / math.sqrt(1 - BETA_2), 2, _adam),
    "sgd": _Rule(1.0, 0, _sgd),
}


class _Stack:
    """H networks of one width U, with K outputs (see `Weights`).

    Attributes
    ----------
    kernel : (H, D, U) hidden kernels, divided by ``unit`` (H, 1, 1) as `_Rule` has it.
    parts : (P, H, B, U); summed over P rows of tiles, the next batch @ kernel.
    delta : (H, B, U) gradient of the loss with respect to this batch's pre-activations.
    """

    def __init__(self, train: TrainingSet, members: Sequence[Member]) -> None:
        settings = members[0].settings
        count, width = train.features.shape
        heads, units = len(members), settings.units
        self.members = members
        self.labels = train.labels
        self.row_weights = train.row_weights.astype(np.float32)
        self.classes = _output_classes(train.class_count)
        self.rule = RULES[settings.optimizer]
        self.unit = _column([self.rule.unit * each.settings.learning_rate for each in members])
        self.keep = _column([1 - each.settings.dropout for each in members])
        self.random = [np.random.default_rng((DROPOUT, each.seed)) for each in members]
        self.kept = np.empty((heads, count, units), bool)
        self.logits = np.empty((heads, count, len(self.classes)), np.float32)
        self.kernel = np.empty((heads, width, units), np.float32)
        self.moments = [np.zeros_like(self.kernel) for _ in range(self.rule.moments)]
        # hidden bias, output kernel and output bias, flat: one update for all three
        size = units + (units + 1) * len(self.classes)
        self.rest = np.empty((heads, 1, size), np.float32)
        self.rest_moments = [np.zeros_like(self.rest) for _ in range(self.rule.moments)]
        self.rest_gradient, self.rest_scratch = np.empty_like(self.rest), np.empty_like(self.rest)
        for head, member in enumerate(members):
            initial = initial_weights(width, member, class_count=train.class_count)
            np.divide(initial.hidden_kernel, self.unit[head], out=self.kernel[head])
            rest = np.concatenate([each.ravel() for each in initial[1:]])
            np.divide(rest, self.unit[head], out=self.rest[head])
        self.tile_rows = min(width, max(1, WEIGHTS_PER_TILE // units))
        batch = min(settings.batch_size, count)
        self.parts = np.empty((-(-width // self.tile_rows), heads, batch, units), np.float32)
        self.delta = np.empty((heads, batch, units), np.float32)

    def tiles(self) -> Iterator["_Tile"]:
        """Cut the kernel up: some rows of one network, or all rows of several narrow ones."""
        heads, width, units = self.kernel.shape
        tile_heads = max(1, WEIGHTS_PER_TILE // (width * units))
        for head in range(0, heads, tile_heads):
            for part, row in enumerate(range(0, width, self.tile_rows)):
                yield _Tile(
                    self, slice(head, head + tile_heads), slice(row, row + self.tile_rows), part
                )

    def learn(self, batch: _Batch, executor: ThreadPoolExecutor) -> None:
        """From the parts of the pre-activations to `delta`; update all but the kernel."""
        if batch.start == 0:
            list(executor.map(self._draw_kept, range(len(self.members))))
        size = len(batch.rows)
        hidden_bias, output_kernel, output_bias = self._views(self.rest * self.unit)
        output_kernel /= self.keep  # here, where it is small, instead of the hidden activations
        hidden = np.add.reduce(self.parts[:, :, :size], axis=0)  # (H, B, U)
        hidden *= self.unit
        hidden += hidden_bias
        active = hidden > 0
        active &= self.kept[:, batch.start : batch.start + size]
        hidden *= active
        logits = hidden @ output_kernel + output_bias  # (H, B, K)
        self.logits[:, batch.rows] = logits
        error = probabilities(logits)
        error -= self.labels[batch.rows, None] == self.classes
        error *= self.row_weights[batch.rows, None] / size
        delta = self.delta[:, :size]
        if len(self.classes) == 1:
            np.multiply(error, output_kernel.swapaxes(1, 2), out=delta)  # a third of matmul's time
        else:
            np.matmul(error, output_kernel.swapaxes(1, 2), out=delta)
        delta *= active
        hidden_gradient, kernel_gradient, output_gradient = self._views(self.rest_gradient)
        np.add.reduce(delta, axis=1, keepdims=True, out=hidden_gradient)
        np.matmul(hidden.swapaxes(1, 2), error / self.keep, out=kernel_gradient)
        np.add.reduce(error, axis=1, keepdims=True, out=output_gradient)
        self.rule.update(
            self.rest, self.rest_gradient, self.rest_moments, self.rest_scratch, batch.step
        )

    def _draw_kept(self, head: int) -> None:
        """Choose the hidden units that dropout keeps, for every row of an epoch."""
        drawn = self.random[head].random(self.kept.shape[1:], np.float32)
        np.less(drawn, self.keep[head], out=self.kept[head])

    def measure(
        self, validation: LabelledRows, executor: ThreadPoolExecutor
    ) -> dict[Member, Measures]:
        """Each member's measures after an epoch; of training rows, as each batch found them."""
        hidden_bias, output_kernel, output_bias = self._views(self.rest * self.unit)

        def logits_of(head: int, start: int) -> Array:
            hidden = validation.features[start : start + ROWS_PER_BLOCK] @ self.kernel[head]
            hidden *= self.unit[head]
            hidden += hidden_bias[head]
            np.maximum(hidden, 0, out=hidden)
            return np.asarray(hidden @ output_kernel[head] + output_bias[head])

        starts = range(0, len(validation), ROWS_PER_BLOCK)
        tasks = [(head, start) for head in range(len(self.members)) for start in starts]
        blocks = list(executor.map(logits_of, *zip(*tasks, strict=True)))
        measured = {}
        for head, member in enumerate(self.members):
            of_head = blocks[head * len(starts) : (head + 1) * len(starts)]
            loss, accuracy = _measure(self.logits[head], self.labels, self.row_weights)
            val_loss, val_accuracy = _measure(np.concatenate(of_head), validation.labels)
            measured[member] = {
                "loss": loss,
                "accuracy": accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
            }
        return measured

    def weights(self) -> dict[Member, Weights]:
        """What each member has learned, in plain units."""
        hidden_bias, output_kernel, output_bias = self._views(self.rest * self.unit)
        return {
            member: Weights(
                self.kernel[head] * self.unit[head],
                hidden_bias[head, 0].copy(),
                output_kernel[head].copy(),
                output_bias[head, 0].copy(),
            )
            for head, member in enumerate(self.members)
        }

    def _views(self, rest: Array) -> tuple[Array, Array, Array]:
        """Hidden bias (H, 1, U), output kernel (H, U, K) and output bias (H, 1, K) in `rest`."""
        heads, _, units = self.delta.shape
        outputs = len(self.classes)
        return (
            rest[:, :, :units],
            rest[:, 0, units:-outputs].reshape(heads, units, outputs),
            rest[:, :, -outputs:],
        )


class _Tile:
    """A piece of a stack's kernels that fits a core's cache."""

    def __init__(self, stack: _Stack, heads: slice, rows: slice, part: int) -> None:
        self.rows = rows
        self.update = stack.rule.update
        self.kernel = stack.kernel[heads, rows]
        self.moments = [moment[heads, rows] for moment in stack.moments]
        self.delta = stack.delta[heads]
        self.part = stack.parts[part, heads]

    def advance(
        self,
        step: int,
        current: Array | None,
        upcoming: Array | None,
        buffers: Array,
    ) -> None:
        """Learn from the current batch, then meet the upcoming one; either may be None."""
        if current is not None:
            gradient, scratch = (
                each[: self.kernel.size].reshape(self.kernel.shape) for each in buffers
            )
            np.matmul(current[:, self.rows].T, self.delta[:, : len(current)], out=gradient)
            self.update(self.kernel, gradient, self.moments, scratch, step)
        if upcoming is not None:
            np.matmul(upcoming[:, self.rows], self.kernel, out=self.part[:, : len(upcoming)])


def _advance(
    tiles: Iterator[_Tile], step: int, current: Array | None, upcoming: Array | None, buffers: Array
) -> None:
    """Take tiles until none is left; threads take them from the same iterator."""
    for tile in tiles:
        tile.advance(step, current, upcoming, buffers)


def _measure(
    logits: Array, labels: Indices, row_weights: Array | float = 1.0
) -> tuple[float, float]:
    """Mean weighted cross-entropy, and accuracy, of logits (N, K)."""
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return float(np.mean(losses * row_weights)), float(np.mean(logits.argmax(axis=1) == labels))


def _output_classes(class_count: int) -> Indices:
    """The class that each output stands for: of two classes, one output for the second."""
    return np.arange(1, 2) if class_count == 2 else np.arange(class_count)


def _column(values: Sequence[float]) -> Array:
    """(H,) -> (H, 1, 1) float32."""
    return np.array(values).astype(np.float32)[:, None, None]
