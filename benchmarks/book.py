"""What a reader of "Deep Learning with Python" writes, with today's Keras."""

import time
from pathlib import Path

import numpy as np

from benchmarks.roofline import operations_per_image
from pipeline.bases.build import build_base
from pipeline.bases.config import BaseConfig
from pipeline.errors import UsageError
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
