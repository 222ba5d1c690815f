"""The book's head: one hidden layer with dropout, trained by Keras (DLwP 5.3, listing 5.18)."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.heads.head import Candidate, FitOptions, Floats, HeadSpec, Input
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.keras_backend import keras
from pipeline.text import counted

ROWS_PER_BLOCK = 1024  # of validation and prediction: 32 MiB at 8,192 features
STEPS_PER_EXECUTION = 100  # steps between two returns from TensorFlow to Python

log = logging.getLogger("pipeline")


def build_dense(
    feature_count: int, *, class_count: int, settings: DenseSettings | None = None
) -> Any:
    """Flatten → Dense(relu) → Dropout → Dense(1, sigmoid), or Dense(K, softmax), compiled.

    2,097,665 parameters for (4, 4, 512) feature maps and two classes.
    """
    settings = settings or DenseSettings()
    binary = class_count == 2
    model = keras.Sequential(
        [
            keras.Input((feature_count,)),
            keras.layers.Flatten(),
            keras.layers.Dense(settings.units, activation="relu"),
            keras.layers.Dropout(settings.dropout),
            keras.layers.Dense(1, activation="sigmoid")
            if binary
            else keras.layers.Dense(class_count, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=_optimizer(settings),
        loss="binary_crossentropy" if binary else "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # 30 epochs on 1,000 × 8,192 take 21 s so, 31 s with one step an execution; XLA (Keras'
        # default) takes 30 s and compiles once more for each batch size
        jit_compile=False,
        steps_per_execution=STEPS_PER_EXECUTION,
    )
    return model


def _optimizer(settings: DenseSettings) -> Any:
    kinds = {
        "rmsprop": keras.optimizers.RMSprop,
        "adam": keras.optimizers.Adam,
        "sgd": keras.optimizers.SGD,
    }
    return kinds[settings.optimizer](learning_rate=settings.learning_rate)


@dataclass(frozen=True)
class DenseClassifier:
    """A trained Keras model."""

    model: Any
    has_probabilities: bool = True

    @property
    def parameters(self) -> int:
        return int(self.model.count_params())

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        # called directly: `predict` would compile again for every new number of rows
        probabilities = np.concatenate(
            [
                keras.ops.convert_to_numpy(self.model(features[start : start + ROWS_PER_BLOCK]))
                for start in range(0, len(features), ROWS_PER_BLOCK)
            ]
        ).astype(np.float64)
        if probabilities.shape[1] == 1:
            return np.hstack([1 - probabilities, probabilities])
        total = probabilities.sum(axis=1, keepdims=True)  # float32 sums to 1 ± 1e-7
        return np.asarray(probabilities / total)


class _EpochLog(keras.callbacks.Callback):  # type: ignore[misc]
    """One line an epoch, shown under ``--verbose``."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        values = logs or {}
        log.debug(
            "epoch %d/%d: loss %.4f, accuracy %.1f %%; validation loss %.4f, accuracy %.1f %%",
            epoch + 1,
            self.params["epochs"],
            values["loss"],
            100 * values["accuracy"],
            values["val_loss"],
            100 * values["val_accuracy"],
        )


class Dense:
    """A hidden layer with dropout; its settings are given, none is searched."""

    default_input: Input = "flat"

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        settings = options.dense
        keras.utils.set_random_seed(options.seed)  # initial weights, dropout, order of the rows
        model = build_dense(
            train.features.shape[1], class_count=train.class_count, settings=settings
        )
        log.info("dense: training for %s", counted(settings.epochs, "epoch"))
        history = model.fit(
            train.features,
            train.labels,
            validation_data=(validation.features, validation.labels),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            validation_batch_size=ROWS_PER_BLOCK,
            callbacks=[_EpochLog()],
            verbose=0,
        )
        yield Candidate(
            spec=HeadSpec("dense", settings.changed()),
            classifier=DenseClassifier(model),
            history={name: tuple(map(float, values)) for name, values in history.history.items()},
        )
