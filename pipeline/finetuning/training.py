"""The one training loop: RMSprop by batches, early stopping, the best epoch kept, resumable."""

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
from pipeline.keras_backend import keras, tf
from pipeline.text import counted

log = logging.getLogger(__name__)

MEASURES = ("loss", "accuracy", "val_loss", "val_accuracy")

StageProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A network as it was after its best epoch, the one of lowest validation loss.

    Attributes
    ----------
    weights : all that was trained, by name: ``block5_conv1/kernel``, ``head/hidden_kernel``.
    history : `MEASURES` by epoch; of training rows as each batch found them, before it learned.
    seconds : each epoch's training, without validation and checkpoint.
    best_epoch : from 1.
    validation_probabilities : (N, K) float64.
    frozen_head : the head alone on the frozen base, where it was trained before.
    """

    weights: Mapping[str, npt.NDArray[np.float32]]
    history: Mapping[str, Sequence[float]]
    seconds: Sequence[float]
    best_epoch: int
    validation_probabilities: npt.NDArray[np.float64]
    frozen_head: "TrainingResult | None" = None

    @property
    def validation_accuracy(self) -> float:
        """Of the best epoch, 0 … 1."""
        return self.history["val_accuracy"][self.best_epoch - 1]

    @property
    def shortfall(self) -> str | None:
        """A line if it ends below the frozen head in validation accuracy."""
        before = self.frozen_head
        if before is None or self.validation_accuracy >= before.validation_accuracy:
            return None
        return (
            f"fine-tuning ends below the frozen head: {100 * self.validation_accuracy:.1f} % "
            f"of validation instead of {100 * before.validation_accuracy:.1f} %"
        )


class TrainableModel(NamedTuple):
    """What turns inputs (B, …) into probabilities (B, 1) or (B, K), and what of it learns.

    Two Keras models, not one: ``training=True`` reaches every model inside another, even one put
    in with ``training=False``, and would turn on BatchNorm and dropout of the base.
    """

    top: Any
    learns: Mapping[str, Any]  # variables of both by name
    body: Any | None = None  # comes before top, always in inference mode

    def __call__(self, inputs: Any, *, training: bool) -> Any:
        features = inputs if self.body is None else self.body(inputs, training=False)
        return self.top(features, training=training)


class Task(NamedTuple):
    train: Rows
    validation: Rows
    class_count: int


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What all stages of a run share.

    Attributes
    ----------
    checkpoints : folder for a file a stage, deleted by who has saved the result; None keeps none.
    identity : what tells this run from others that would use the folder, as JSON has it; a
        checkpoint of another is passed over.
    progress : called with the stage's name, and how many rows of how many were learned from.
    """

    seed: int = 0
    checkpoints: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    progress: StageProgress | None = None


def train(
    network: TrainableModel, task: Task, schedule: Schedule, options: RunOptions, *, stage: str
) -> TrainingResult:
    """Train what ``network.learns``; afterwards it has the weights of its best epoch.

    A seed gives the same result, however often it was killed. Raises UsageError if a loss is not
    finite.
    """
    count = sum(math.prod(each.shape) for each in network.learns.values())
    names = (f"{name} ({' × '.join(map(str, v.shape))})" for name, v in network.learns.items())
    log.info(
        "%s: trains %s tensors, %s parameters: %s",
        *(stage, len(network.learns), f"{count:,}", ", ".join(names)),
    )
    learner = _Learner(network, task.class_count, schedule.learning_rate, options.seed)
    path = None
    if options.checkpoints:
        make_folder(options.checkpoints)
        path = options.checkpoints / f"{stage}.safetensors"
    run = _run_identity(learner, task, schedule, options, stage)
    course = _Course()
    if path and (found := read_checkpoint(path, run=run)):
        course = _Course(**found.state, best=_part(found.arrays, "best/"))
        _assign(learner.state, _part(found.arrays, "now/"))
        path.touch()  # or it looks abandoned until the first epoch ends
        log.info("%s: goes on after epoch %d", stage, course.epochs)
    in_all = schedule.epochs * len(task.train)
    while course.epochs < min(schedule.epochs, course.best_epoch + schedule.patience):
        epoch = course.epochs
        began = time.monotonic()
        order = row_order(len(task.train), seed=options.seed, epoch=epoch)
        measured = _RunningMeans()
        batches = task.train.batches(order, size=schedule.batch_size, epoch=epoch)
        with closing(batches):
            for inputs, labels in batches:
                measured.add(*learner.learn(inputs, labels), labels)
                if options.progress:
                    options.progress(stage, epoch * len(order) + measured.rows, in_all)
        seconds = time.monotonic() - began
        watched = learner.measure(task.validation, schedule.batch_size)
        values = (*measured.means, *watched.means)
        if not all(map(math.isfinite, values)):
            raise UsageError(
                f"{stage}: training diverged in epoch {epoch + 1}, its loss is not finite; choose "
                f"a lower learning rate than {schedule.learning_rate:g}"
            )
        course.add(values, seconds, network)
        log.info(
            "%s: epoch %d/%d: loss %.4f, accuracy %.1f %%; validation loss %.4f, accuracy %.1f %%",
            *(stage, epoch + 1, schedule.epochs),
            *(values[0], 100 * values[1], values[2], 100 * values[3]),
        )
        if path:
            arrays = {f"best/{name}": each for name, each in course.best.items()}
            arrays |= {f"now/{name}": each for name, each in _values(learner.state).items()}
            state = {name: each for name, each in vars(course).items() if name != "best"}
            write_checkpoint(path, Checkpoint(arrays, state), run=run)
    if course.epochs < schedule.epochs:
        patience = counted(schedule.patience, "epoch")
        log.info("%s: stopped, for validation loss has not fallen in %s", stage, patience)
    _assign(network.learns, course.best)
    validation = learner.measure(task.validation, schedule.batch_size)
    return TrainingResult(
        weights=course.best,
        history=course.history,
        seconds=course.seconds,
        best_epoch=course.best_epoch,
        validation_probabilities=validation.probabilities,
    )


class _RunningMeans:
    def __init__(self) -> None:
        self.rows = 0
        self._loss = 0.0
        self._right = 0
        self._outputs: list[npt.NDArray[np.float32]] = []

    def add(self, loss: float, outputs: npt.NDArray[np.float32], labels: Any) -> None:
        """A batch's mean loss and its outputs (B, 1) or (B, K)."""
        self.rows += len(labels)
        self._loss += loss * len(labels)
        said = outputs[:, 0] > 0.5 if outputs.shape[1] == 1 else outputs.argmax(axis=1)
        self._right += int(np.sum(said == labels))
        self._outputs.append(outputs)

    @property
    def means(self) -> tuple[float, float]:
        """Loss and accuracy."""
        return self._loss / self.rows, self._right / self.rows

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(N, K) float64, each row's sum 1."""
        outputs = np.concatenate(self._outputs).astype(np.float64)
        if outputs.shape[1] == 1:
            return np.hstack([1 - outputs, outputs])
        return np.asarray(outputs / outputs.sum(axis=1, keepdims=True))


class _Learner:
    """A network with its optimiser, compiled once for each size of a batch."""

    def __init__(
        self, network: TrainableModel, class_count: int, learning_rate: float, seed: int
    ) -> None:
        self._network = network
        self._binary = class_count == 2
        variables = list(network.learns.values())
        self._optimizer = keras.optimizers.RMSprop(learning_rate)
        self._optimizer.build(variables)
        weights = {id(weight) for weight in network.top.weights}
        # what a model has beside its weights: where its random streams (dropout) stand
        streams = [each for each in network.top.variables if id(each) not in weights]
        for number, stream in enumerate(streams):
            stream.assign([seed, number])
        # all that the next step depends on: weights, optimiser, random streams
        self.state = dict(network.learns)
        for kind, others in (("optimizer", self._optimizer.variables), ("stream", streams)):
            self.state |= {f"{kind}/{number}": each for number, each in enumerate(others)}
        values = [variable.value for variable in variables]

        def learn(inputs: Any, labels: Any) -> tuple[Any, Any]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)  # below the first of them nothing is differentiated
                outputs = network(inputs, training=True)
                loss = self._loss(labels, outputs)
            self._optimizer.apply(tape.gradient(loss, values), variables)
            return loss, outputs

        def measure(inputs: Any, labels: Any) -> tuple[Any, Any]:
            outputs = network(inputs, training=False)
            return self._loss(labels, outputs), outputs

        self._learn, self._measure = tf.function(learn), tf.function(measure)

    def _loss(self, labels: Any, outputs: Any) -> Any:
        if self._binary:
            labels = tf.cast(labels[:, None], outputs.dtype)
            return tf.reduce_mean(keras.losses.binary_crossentropy(labels, outputs))
        return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, outputs))

    def learn(self, inputs: Any, labels: Any) -> tuple[float, npt.NDArray[np.float32]]:
        """One step; gives loss and outputs as they were before it."""
        loss, outputs = self._learn(tf.constant(inputs), tf.constant(labels))
        return float(loss), outputs.numpy()

    def measure(self, rows: Rows, size: int) -> _RunningMeans:
        """Dropout off, in the rows' order."""
        measured = _RunningMeans()
        with closing(rows.batches(np.arange(len(rows)), size=size)) as batches:
            for inputs, labels in batches:
                loss, outputs = self._measure(tf.constant(inputs), tf.constant(labels))
                measured.add(float(loss), outputs.numpy(), labels)
        return measured


def _values(variables: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    return {name: each.value.numpy() for name, each in variables.items()}


def _assign(variables: Mapping[str, Any], values: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, variable in variables.items():
        variable.assign(values[name])


@dataclass
class _Course:
    """How a training has gone so far."""

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
            self.best_epoch, self.best = self.epochs, _values(network.learns)


def _run_identity(
    learner: _Learner, task: Task, schedule: Schedule, options: RunOptions, stage: str
) -> dict[str, Any]:
    """What a checkpoint must have in common with a run that goes on from it."""
    start = hashlib.sha256()
    for name, array in _values(learner.state).items():
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


def _part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)
    }
