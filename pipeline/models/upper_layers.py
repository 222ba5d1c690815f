"""The layers of a base above a boundary, at work in Keras."""

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

MOST_ROWS = 8  # at once: as in extract
MOST_FEATURES = 2**23  # of an image: EfficientNetB7's first maps at 600 pixels are 5.8 million
BATCH_FEATURES = 2**22  # 16 MiB at once; what the first layers make of them is several times that


class UpperLayers:
    """The layers that follow a boundary, in inference mode; of an image they give F = ``width``.

    Raises InvalidModelError if there are none, or the weights are not theirs.
    """

    def __init__(
        self, base: str, image_size: int, boundary: str, weights: Mapping[str, Array]
    ) -> None:
        tf.config.experimental.enable_tensor_float_32_execution(False)  # as in TensorFlowEngine
        base_model = build_untrained(find_base(base), image_size)
        upper = layers_above(base_model, boundary)
        self._shape = upper.input_shape[1:]
        self._feature_count = math.prod(self._shape)
        if self._feature_count > MOST_FEATURES:
            raise InvalidModelError(
                f"it takes {self._feature_count:,} features, more than {MOST_FEATURES:,}"
            )
        put_weights(upper, weights)
        self.width = math.prod(upper.output_shape[1:])
        self._batch_size = max(1, min(MOST_ROWS, BATCH_FEATURES // self._feature_count))
        self._forward = tf.function(lambda maps: upper(maps, training=False))

    def batches(self, features: Array) -> Iterator[tuple[Array, int]]:
        """Of maps (N, H·W·C): (batch_size, F) float32 each, and how many rows are not padding."""
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
    """A Keras model of the layers that follow a boundary, shared with the base."""
    try:
        return keras.Model(base_model.get_layer(boundary).output, base_model.output)
    except ValueError as error:  # there is no such layer, or others cross
        raise InvalidModelError(
            f"{base_model.name} cannot be cut behind a layer {printable(boundary)}"
        ) from error


def put_weights(upper: Any, weights: Mapping[str, Array]) -> None:
    """Give layers the weights of these names; raises InvalidModelError if one is left over."""
    variables = {each.path: each for layer in upper.layers for each in layer.weights}
    expected = {name: tuple(each.shape) for name, each in variables.items()}
    received = {name: each.shape for name, each in weights.items()}
    odd = sorted(name for name, _ in expected.items() ^ received.items())
    if odd:
        raise InvalidModelError(
            f"of its layers {printable(odd[0])} has shape {received.get(odd[0], 'none')}; "
            f"expected {expected.get(odd[0], 'none')}"
        )
    for name, variable in variables.items():
        variable.assign(weights[name])
