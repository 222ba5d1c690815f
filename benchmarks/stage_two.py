"""Measure stage two: an epoch of the dense head and of Keras' ``fit``."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.process import Worker
from benchmarks.rounds import Spread, alternate

KERAS, OURS = "Keras fit", "dense head"
TRAIN_ROWS, VALIDATION_ROWS = 2000, 1000  # as in the book
FEATURES = 8192  # VGG16 at 150 pixels, block5_pool (4, 4, 512), flattened
UNITS, DROPOUT, LEARNING_RATE, BATCH_SIZE = 256, 0.5, 2e-5, 20  # listing 5.18
EPOCHS = 3  # of each measurement

Progress = Callable[[int, int], None]


class Rows(NamedTuple):
    """Features (N, D) float32 and labels (N,) int64, 0 or 1."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def measure_stage_two(*, rounds: int, progress: Progress) -> dict[str, Any]:
    """Measure seconds per epoch of each side alternately, and their ratio within rounds."""
    with Worker(KERAS) as keras_fit, Worker(OURS) as ours:
        workers = {KERAS: keras_fit, OURS: ours}
        sides = {name: worker.ask for name, worker in workers.items()}
        alternate(sides, rounds=1)  # warm-up
        measured = alternate(sides, rounds=rounds, progress=progress)
    seconds = {name: [each["seconds"] for each in values] for name, values in measured.items()}
    return {
        "rows": TRAIN_ROWS,
        "features": FEATURES,
        "batch_size": BATCH_SIZE,
        "sides": [
            {
                "side": name,
                "seconds_per_epoch": Spread.of(seconds[name]).as_dict(),
                "times_faster": Spread.of_ratio(seconds[KERAS], seconds[name]).as_dict(),
                "peak_bytes": worker.peak,
                "rounds": seconds[name],
            }
            for name, worker in workers.items()
        ],
    }


def open_keras() -> Callable[[], dict[str, float]]:
    """Return a timer of the book's classifier, trained with ``fit``."""
    from pipeline.keras_backend import keras

    def fit(train: Rows, validation: Rows, epochs: int) -> None:
        model = keras.Sequential(
            [
                keras.Input((FEATURES,)),
                keras.layers.Dense(UNITS, activation="relu"),
                keras.layers.Dropout(DROPOUT),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile(
            optimizer=keras.optimizers.RMSprop(learning_rate=LEARNING_RATE),
            loss="binary_crossentropy",
            metrics=["accuracy"],
        )
        model.fit(
            *train, epochs=epochs, batch_size=BATCH_SIZE, validation_data=validation, verbose=0
        )

    return _epoch_timer(fit)


def open_ours() -> Callable[[], dict[str, float]]:
    """Return a timer of the same network, trained by `pipeline.heads`."""
    from pipeline.heads.dense import DenseClassifier

    def fit(train: Rows, validation: Rows, epochs: int) -> None:
        head = DenseClassifier(
            units=UNITS, dropout=DROPOUT, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE,
            epochs=epochs, random_state=0,
        )  # fmt: skip
        head.fit(*train, validation_data=tuple(validation))

    return _epoch_timer(fit)


def _epoch_timer(fit: Callable[[Rows, Rows, int], None]) -> Callable[[], dict[str, float]]:
    """Return a timer of one epoch, without the first epoch of a fit, which compiles."""
    train, validation = draw_rows(TRAIN_ROWS, seed=0), draw_rows(VALIDATION_ROWS, seed=1)

    def seconds(epochs: int) -> float:
        started = time.perf_counter()
        fit(train, validation, epochs)
        return time.perf_counter() - started

    return lambda: {"seconds": (seconds(1 + EPOCHS) - seconds(1)) / EPOCHS}


def draw_rows(count: int, *, seed: int) -> Rows:
    """Return rows of two classes; 84 % of the features are 0, as after VGG16's last ReLU."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    noise = random.normal(-1, 1, (count, FEATURES)) + 0.02 * labels[:, None]
    return Rows(np.maximum(noise, 0).astype(np.float32), labels)
