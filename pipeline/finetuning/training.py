"""The training loop: RMSprop, early stopping, weights of the best epoch, checkpoints."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.durable import make_folder
from pipeline.errors import UsageError
from pipeline.finetuning.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from pipeline.finetuning.config import Schedule
from pipeline.finetuning.rows import Rows, row_order
from pipeline.heads.calibration import to_probabilities
from pipeline.keras_backend import keras, tf
from pipeline.text import counted

log = logging.getLogger(__name__)

MEASURES = ("loss", "accuracy", "val_loss", "val_accuracy")

StageProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A trained network after its best epoch, the one with the lowest validation loss.

    Attributes
    ----------
    weights : trained weights by name: ``block5_conv1/kernel``, ``head/hidden_kernel``.
    history : `MEASURES` by epoch; those of training are of each batch before its step.
    seconds : training time of each epoch, without validation and checkpoint.
    best_epoch : counts from 1.
    validation_probabilities : (N, K) float64.
    frozen_head : result of the first stage, which trains the head on the frozen base.
    """

    weights: Mapping[str, npt.NDArray[np.float32]]
    history: Mapping[str, Sequence[float]]
    seconds: Sequence[float]
    best_epoch: int
    validation_probabilities: npt.NDArray[np.float64]
    frozen_head: "TrainingResult | None" = None

    @property
    def validation_accuracy(self) -> float:
        """Accuracy of the best epoch, 0 … 1."""
        return self.history["val_accuracy"][self.best_epoch - 1]


class TrainableModel(NamedTuple):
    """A network, inputs (B, …) -> probabilities (B, 1) or (B, K), and its trainable variables.

    It consists of two Keras models: in a single one, ``training=True`` would reach the layers of
    the base, too, and turn on their BatchNorm and dropout.
    """

    top: Any
    variables: Mapping[str, Any]  # to train, of both models, by name
    body: Any | None = None  # runs before top, always in inference mode

    def __call__(self, inputs: Any, *, training: bool) -> Any:
        features = inputs if self.body is None else self.body(inputs, training=False)
        return self.top(features, training=training)


class Task(NamedTuple):
    """The rows to train on and to validate with."""

    train: Rows
    validation: Rows
    class_count: int


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of all stages of a run.

    Attributes
    ----------
    checkpoints : folder with a file for each stage; None writes no checkpoints. The caller removes
        it when the results are saved.
    identity : JSON values that identify the run; checkpoints of other runs are ignored.
    progress : called with (stage, finished rows, total rows).
    """

    seed: int = 0
    checkpoints: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    progress: StageProgress | None = None


def train(
    network: TrainableModel, task: Task, schedule: Schedule, options: RunOptions, *, stage: str
) -> TrainingResult:
    """Train the variables of a network, and set them to their values of the best epoch.

    The result depends only on the seed, also after interruptions. Raises UsageError if a loss is
    not finite.
    """
    variables = network.variables
    count = sum(math.prod(variable.shape) for variable in variables.values())
    shapes = (f"{name} ({' × '.join(map(str, v.shape))})" for name, v in variables.items())
    text = f"{count:,} parameters: {', '.join(shapes)}"
    log.info("%s: trains %d tensors, %s", stage, len(variables), text)
    trainer = _Trainer(network, task.class_count, schedule.learning_rate, options.seed)
    path = None
    if options.checkpoints:
        make_folder(options.checkpoints)
        path = options.checkpoints / f"{stage}.safetensors"
    run = _run_identity(trainer, task, schedule, options, stage)
    state = _TrainingState()
    if path and (checkpoint := read_checkpoint(path, run=run)):
        best = _select(checkpoint.arrays, "best/")
        state = _TrainingState(**checkpoint.state, best=best)
        _assign(trainer.variables, _select(checkpoint.arrays, "now/"))
        path.touch()  # a recent time protects it from the removal of abandoned checkpoints
        log.info("%s: resumes after epoch %d", stage, state.epochs)
    total = schedule.epochs * len(task.train)
    while state.epochs < min(schedule.epochs, state.best_epoch + schedule.patience):
        epoch = state.epochs
        start = time.monotonic()
        order = row_order(len(task.train), seed=options.seed, epoch=epoch)
        means = _RunningMeans()
        batches = task.train.batches(order, size=schedule.batch_size, epoch=epoch)
        with closing(batches):
            for inputs, labels in batches:
                means.add(*trainer.train_batch(inputs, labels), labels)
                if options.progress:
                    options.progress(stage, epoch * len(order) + means.rows, total)
        seconds = time.monotonic() - start
        validation = trainer.evaluate(task.validation, schedule.batch_size)
        values = (*means.values, *validation.values)
        if not all(map(math.isfinite, values)):
            raise UsageError(
                f"{stage}: training diverged in epoch {epoch + 1}, its loss is not finite; choose "
                f"a lower learning rate than {schedule.learning_rate:g}"
            )
        state.add(values, seconds, network)
        log.info(
            "%s: epoch %d/%d: loss %.4f, accuracy %.1f %%; validation loss %.4f, accuracy %.1f %%",
            *(stage, epoch + 1, schedule.epochs),
            *(values[0], 100 * values[1], values[2], 100 * values[3]),
        )
        if path:
            arrays = {f"best/{name}": array for name, array in state.best.items()}
            current = _read_values(trainer.variables)
            arrays |= {f"now/{name}": array for name, array in current.items()}
            fields = {name: value for name, value in vars(state).items() if name != "best"}
            write_checkpoint(path, Checkpoint(arrays, fields), run=run)
    if state.epochs < schedule.epochs:
        patience = counted(schedule.patience, "epoch")
        log.info("%s: stopped: validation loss has not fallen in %s", stage, patience)
    _assign(variables, state.best)
    validation = trainer.evaluate(task.validation, schedule.batch_size)
    return TrainingResult(
        weights=state.best,
        history=state.history,
        seconds=state.seconds,
        best_epoch=state.best_epoch,
        validation_probabilities=validation.probabilities,
    )


class _RunningMeans:
    """Mean loss and accuracy of batches, and their outputs."""

    def __init__(self) -> None:
        self.rows = 0
        self._loss = 0.0
        self._right = 0
        self._outputs: list[npt.NDArray[np.float32]] = []

    def add(self, loss: float, outputs: npt.NDArray[np.float32], labels: Any) -> None:
        """Add a batch: its mean loss and its outputs (B, 1) or (B, K)."""
        self.rows += len(labels)
        self._loss += loss * len(labels)
        predicted = outputs[:, 0] > 0.5 if outputs.shape[1] == 1 else outputs.argmax(axis=1)
        self._right += int(np.sum(predicted == labels))
        self._outputs.append(outputs)

    @property
    def values(self) -> tuple[float, float]:
        """Mean loss and accuracy."""
        return self._loss / self.rows, self._right / self.rows

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Probabilities (N, K) float64; the sum of each row is 1."""
        return to_probabilities(np.concatenate(self._outputs))


class _Trainer:
    """A network and its optimiser, compiled once for each batch size."""

    def __init__(
        self, network: TrainableModel, class_count: int, learning_rate: float, seed: int
    ) -> None:
        self._network = network
        self._binary = class_count == 2
        variables = list(network.variables.values())
        self._optimizer = keras.optimizers.RMSprop(learning_rate)
        self._optimizer.build(variables)
        weights = {id(weight) for weight in network.top.weights}
        # variables that are not weights are the states of random streams (dropout)
        streams = [each for each in network.top.variables if id(each) not in weights]
        for number, stream in enumerate(streams):
            stream.assign([seed, number])
        # everything that the next step depends on: weights, optimiser, random streams
        self.variables = dict(network.variables)
        for kind, others in (("optimizer", self._optimizer.variables), ("stream", streams)):
            self.variables |= {f"{kind}/{number}": each for number, each in enumerate(others)}
        values = [variable.value for variable in variables]

        def train_batch(inputs: Any, labels: Any) -> tuple[Any, Any]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)  # no gradients below the first of them
                outputs = network(inputs, training=True)
                loss = self._loss(labels, outputs)
            self._optimizer.apply(tape.gradient(loss, values), variables)
            return loss, outputs

        def evaluate_batch(inputs: Any, labels: Any) -> tuple[Any, Any]:
            outputs = network(inputs, training=False)
            return self._loss(labels, outputs), outputs

        self._train_batch = tf.function(train_batch)
        self._evaluate_batch = tf.function(evaluate_batch)

    def _loss(self, labels: Any, outputs: Any) -> Any:
        if self._binary:
            labels = tf.cast(labels[:, None], outputs.dtype)
            return tf.reduce_mean(keras.losses.binary_crossentropy(labels, outputs))
        return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, outputs))

    def train_batch(self, inputs: Any, labels: Any) -> tuple[float, npt.NDArray[np.float32]]:
        """Make one step; return loss and outputs before it."""
        loss, outputs = self._train_batch(tf.constant(inputs), tf.constant(labels))
        return float(loss), outputs.numpy()

    def evaluate(self, rows: Rows, size: int) -> _RunningMeans:
        """Evaluate rows in their order, without dropout."""
        means = _RunningMeans()
        with closing(rows.batches(np.arange(len(rows)), size=size)) as batches:
            for inputs, labels in batches:
                loss, outputs = self._evaluate_batch(tf.constant(inputs), tf.constant(labels))
                means.add(float(loss), outputs.numpy(), labels)
        return means


def _read_values(variables: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    return {name: each.value.numpy() for name, each in variables.items()}


def _assign(variables: Mapping[str, Any], values: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, variable in variables.items():
        variable.assign(values[name])


@dataclass
class _TrainingState:
    """History and best weights of a training so far."""

    history: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    seconds: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        return len(self.seconds)

    def add(self, values: tuple[float, ...], seconds: float, network: TrainableModel) -> None:
        for name, value in zip(MEASURES, values, strict=True):
            self.history[name].append(value)
        self.seconds.append(seconds)
        losses = self.history["val_loss"]
        if losses[-1] < min(losses[:-1], default=math.inf):
            self.best_epoch, self.best = self.epochs, _read_values(network.variables)


def _run_identity(
    trainer: _Trainer, task: Task, schedule: Schedule, options: RunOptions, stage: str
) -> dict[str, Any]:
    """Return the values that must be equal in a checkpoint and the run that resumes from it."""
    start = hashlib.sha256()
    for name, array in _read_values(trainer.variables).items():
        start.update(f"{name} {array.shape} {array.dtype} ".encode())
        start.update(array.tobytes())
    for rows in (task.train, task.validation):
        start.update(rows.labels.tobytes())
    return {
        "stage": stage,
        "seed": options.seed,
        "start": start.hexdigest(),
        "schedule": asdict(schedule),
        "identity": options.identity,
    }


def _select(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)
    }
