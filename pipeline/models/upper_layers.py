"""The layers of a base above a boundary, run by Keras."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.build import build_untrained
from pipeline.bases.registry import find_base
from pipeline.keras_backend import keras, tf
from pipeline.models.estimator_validation import InvalidModelError
from pipeline.text import printable

Array = npt.NDArray[np.float32]

MAX_BATCH_SIZE = 8  # as in extract
MAX_FEATURES = 2**23  # of one image; EfficientNetB7's first maps at 600 pixels have 5.8 million
BATCH_FEATURES = 2**22  # 16 MiB; the outputs of the first layers take several times that


class UpperLayers:
    """The layers after a boundary, in inference mode; their output has F = ``width`` features.

    Raises InvalidModelError for an invalid boundary, or weights that do not fit the layers.
    """

    def __init__(
        self, base: str, image_size: int, boundary: str, weights: Mapping[str, Array]
    ) -> None:
        tf.config.experimental.enable_tensor_float_32_execution(False)  # as in TensorFlowEngine
        base_model = build_untrained(find_base(base), image_size)
        upper = layers_above(base_model, boundary)
        self._shape = upper.input_shape[1:]
        self._feature_count = math.prod(self._shape)
        if self._feature_count > MAX_FEATURES:
            raise InvalidModelError(
                f"it takes {self._feature_count:,} features, more than {MAX_FEATURES:,}"
            )
        put_weights(upper, weights)
        self.width = math.prod(upper.output_shape[1:])
        self._batch_size = max(1, min(MAX_BATCH_SIZE, BATCH_FEATURES // self._feature_count))
        self._forward = tf.function(lambda maps: upper(maps, training=False))

    def batches(self, features: Array) -> Iterator[tuple[Array, int]]:
        """Yield outputs (batch_size, F) of maps (N, H·W·C), each with its unpadded size."""
        if features.shape[1] != self._feature_count:
            raise InvalidModelError(
                f"its layers take {self._feature_count:,} features; received {features.shape[1]:,}"
            )
        for start in range(0, max(len(features), 1), self._batch_size):
            batch = features[start : start + self._batch_size]
            maps = np.zeros((self._batch_size, *self._shape), np.float32)
            maps[: len(batch)] = batch.reshape(-1, *self._shape)
            values = self._forward(tf.constant(maps)).numpy()
            yield values.reshape(self._batch_size, self.width), len(batch)


def layers_above(base_model: Any, boundary: str) -> Any:
    """Return a Keras model of the layers after a boundary; it shares them with the base."""
    try:
        return keras.Model(base_model.get_layer(boundary).output, base_model.output)
    except ValueError as error:  # no such layer, or a path around it
        raise InvalidModelError(
            f"{base_model.name} cannot be cut after a layer {printable(boundary)}"
        ) from error


def put_weights(upper: Any, weights: Mapping[str, Array]) -> None:
    """Assign weights by name; raise InvalidModelError unless names and shapes match."""
    variables = {variable.path: variable for layer in upper.layers for variable in layer.weights}
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    received = {name: array.shape for name, array in weights.items()}
    for name, _ in sorted(expected.items() ^ received.items()):
        raise InvalidModelError(
            f"the weight {printable(name)} has shape {received.get(name, 'none')}; "
            f"expected {expected.get(name, 'none')}"
        )
    for name, variable in variables.items():
        variable.assign(weights[name])
