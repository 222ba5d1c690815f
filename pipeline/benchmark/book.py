"""What a reader of "Deep Learning with Python" writes, with today's Keras."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bases.build import build_base
from pipeline.bases.config import BaseConfig
from pipeline.benchmark.drawn import LAYER, training_rows
from pipeline.benchmark.roofline import operations_per_image
from pipeline.errors import UsageError
from pipeline.frames import load_features
from pipeline.keras_backend import keras, tf
from pipeline.spec import split_layer_key

BATCH_SIZE = 32  # the default of Keras' own loader


class Loop:
    """The features of a folder, batch by batch through ``predict`` (5.3, "fast feature extraction
    without data augmentation"; the second edition's 8.3).

    Parameters
    ----------
    layer : layer key; the book takes the base's last layer, without pooling.
    whole : one ``predict`` over the whole dataset instead of one a batch: what Keras does best.
    """

    def __init__(
        self, *, base: str, image_size: int, weights: str, layer: str, cache_dir: str, whole: bool
    ) -> None:
        config = BaseConfig(
            base=base, image_size=image_size, weights=weights, cache_dir=Path(cache_dir)
        )
        conv_base, _ = build_base(config)
        name, pooling = split_layer_key(layer)
        if name not in {part.name for part in conv_base.layers}:
            raise UsageError(
                f"{base} has no layer {name!r}: python -m pipeline.extract --list-layers {base} "
                f"shows them"
            )
        features = conv_base.get_layer(name).output
        if pooling == "avg":
            features = keras.layers.GlobalAveragePooling2D()(features)
        elif pooling == "max":
            features = keras.layers.GlobalMaxPooling2D()(features)
        self._model = keras.Model(conv_base.input, features)
        self._preprocess = getattr(keras.applications, config.network.module).preprocess_input
        self._image_size = image_size
        self._whole = whole
        self._model.predict(np.zeros((BATCH_SIZE, image_size, image_size, 3)), verbose=0)
        self.about = {
            "version": tf.__version__,
            "operations_per_image": operations_per_image(self._model),
            "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
        }

    def __call__(self, *, folder: str) -> dict[str, float]:
        size = (self._image_size, self._image_size)
        dataset = keras.utils.image_dataset_from_directory(
            folder, image_size=size, batch_size=BATCH_SIZE, shuffle=False
        )
        started = time.perf_counter()
        if self._whole:
            ready = dataset.map(lambda images, _: self._preprocess(images))
            self._model.predict(ready, verbose=0)
        else:
            all_features, all_labels = [], []
            for images, labels in dataset:
                all_features.append(self._model.predict(self._preprocess(images), verbose=0))
                all_labels.append(labels)
            np.concatenate(all_features), np.concatenate(all_labels)
        return {"seconds": time.perf_counter() - started}


def open_dense(*, cache: str, epochs: int) -> Callable[[], dict[str, float]]:
    """The book's classifier (listing 5.18) trained by Keras' ``fit`` on arrays in memory."""
    table = load_features(cache)
    (features, labels), validation = training_rows(table)
    shape = table.layers[LAYER]

    def fit(epochs: int) -> Any:
        model = keras.Sequential(
            [
                keras.Input(shape),
                keras.layers.Flatten(),
                keras.layers.Dense(256, activation="relu"),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile(
            optimizer=keras.optimizers.RMSprop(learning_rate=2e-5),
            loss="binary_crossentropy",
            metrics=["accuracy"],
        )
        clock = _EpochClock()
        model.fit(
            features, labels, epochs=epochs, batch_size=20, validation_data=validation, verbose=0,
            callbacks=[clock],
        )  # fmt: skip
        return clock

    def measure() -> dict[str, float]:
        clock = fit(epochs + 1)  # the first compiles
        return {"seconds": (clock.ends[-1] - clock.ends[0]) / epochs}

    return measure


class _EpochClock(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ends.append(time.perf_counter())
