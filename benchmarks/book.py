"""The feature extraction of "Deep Learning with Python", with current Keras."""

import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.roofline import operations_per_image
from pipeline.bases.build import build_base, preprocess
from pipeline.bases.config import BaseConfig
from pipeline.errors import UsageError
from pipeline.keras_backend import keras, tf
from pipeline.spec import split_layer_key

BATCH_SIZE = 32  # the default of Keras' own loader


class Loop:
    """Extract the features of a folder with ``predict``, batch by batch.

    Source: section 5.3, "Fast feature extraction without data augmentation"; second edition, 8.3.

    Parameters
    ----------
    layer : layer key; the book uses the base's last layer, without pooling.
    whole : one ``predict`` for the whole dataset, Keras' fastest way, instead of one per batch.
    """

    def __init__(
        self, *, base: str, image_size: int, weights: str, layer: str, cache_dir: str, whole: bool
    ) -> None:
        config = BaseConfig(
            base=base, image_size=image_size, weights=weights, cache_dir=Path(cache_dir)
        )
        conv_base, _ = build_base(config)
        name, pooling = split_layer_key(layer)
        if name not in {member.name for member in conv_base.layers}:
            raise UsageError(
                f"{base} has no layer {name!r}: see python -m pipeline.extract --list-layers {base}"
            )
        features = conv_base.get_layer(name).output
        if pooling == "avg":
            features = keras.layers.GlobalAveragePooling2D()(features)
        elif pooling == "max":
            features = keras.layers.GlobalMaxPooling2D()(features)
        self._model = keras.Model(conv_base.input, features)
        if config.network.is_in_keras:
            self._preprocess = getattr(keras.applications, config.network.module).preprocess_input
        else:
            self._preprocess = partial(preprocess, rescale=config.rescale)
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
            self._model.predict(dataset.map(lambda x, _: self._preprocess(x)), verbose=0)
        else:
            all_features, all_labels = [], []
            for images, labels in dataset:
                all_features.append(self._model.predict(self._preprocess(images), verbose=0))
                all_labels.append(labels)
            np.concatenate(all_features), np.concatenate(all_labels)
        return {"seconds": time.perf_counter() - started}
