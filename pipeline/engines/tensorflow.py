"""The reference engine: Keras on TensorFlow."""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.bases.build import build_base, feature_model
from pipeline.bases.config import TENSORFLOW, BaseConfig
from pipeline.engines import Engine
from pipeline.keras_backend import tf
from pipeline.text import printable

log = logging.getLogger(__name__)


class TensorFlowEngine(Engine):
    """Run the model, preprocessing included, in one traced function.

    Every batch is padded to the same size: the function is traced once, and the features of an
    image do not depend on the rest of the batch. TensorFloat-32, the default of GPUs, is off: its
    error is 1e-3.
    """

    name = TENSORFLOW
    version = tf.__version__
    calls_at_once = 1  # all cores compute one batch

    def __init__(self, config: BaseConfig, layers: Sequence[str]) -> None:
        self.error = {}
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self.gpus = [
            str(tf.config.experimental.get_device_details(device).get("device_name", device.name))
            for device in tf.config.list_physical_devices("GPU")
        ]
        if self.gpus:
            log.info("TensorFlow computes on %s", printable(", ".join(self.gpus)))
        self.base_model, self.weights = build_base(config)
        model = feature_model(self.base_model, config, layers)
        self._batch_size = config.batch_size
        shapes = [tuple(output.shape[1:]) for output in model.outputs]
        self.row_shapes = dict(zip(layers, shapes, strict=True))
        self._forward = tf.function(lambda images: tf.nest.flatten(model(images, training=False)))

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        missing = self._batch_size - len(images)
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
        outputs = self._forward(tf.constant(padded))
        named = zip(self.row_shapes, outputs, strict=True)
        return {key: output.numpy()[: len(images)] for key, output in named}
