"""The reference engine: Keras on TensorFlow."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.bases.build import build_base, feature_model
from pipeline.bases.registry import Base
from pipeline.bases.weights import WeightsChoice
from pipeline.keras_backend import tf
from pipeline.spec import split_layer_key


class TensorFlowEngine:
    """Runs the whole model, preprocessing included, in one traced function.

    Every batch is padded to the same size, so that the function is traced once and an image's
    features do not depend on how many stand beside it.
    """

    name = "tensorflow"
    version = tf.__version__

    def __init__(
        self,
        base: Base,
        *,
        image_size: int,
        preprocessing: str,
        weights: WeightsChoice,
        weights_folder: Path,
        layers: Sequence[str],
        batch_size: int,
    ) -> None:
        base_model, self.weights = build_base(
            base, image_size=image_size, weights=weights, weights_folder=weights_folder
        )
        self._model = feature_model(
            base_model,
            base,
            image_size=image_size,
            preprocessing=preprocessing,
            layers=[split_layer_key(key) for key in layers],
        )
        self._batch_size = batch_size
        self.row_shapes: Mapping[str, tuple[int, ...]] = {
            key: tuple(output.shape[1:])
            for key, output in zip(layers, self._model.outputs, strict=True)
        }
        self._forward = tf.function(
            lambda images: tf.nest.flatten(self._model(images, training=False))
        )

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        missing = self._batch_size - len(images)
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
        outputs = self._forward(tf.constant(padded))
        return {
            key: output.numpy()[: len(images)]
            for key, output in zip(self.row_shapes, outputs, strict=True)
        }
