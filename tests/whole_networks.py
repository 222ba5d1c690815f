"""Grad-CAM through the whole Keras network, for comparison."""

from typing import Any

import numpy as np

from pipeline.bases.config import BaseConfig
from pipeline.models.bundle import Bundle


def gradcam_through_network(bundle: Bundle, base: BaseConfig, pixels: Any) -> tuple[Any, Any]:
    """Return the layer's maps (B, H, W, C), and Grad-CAM (B, H, W) of the second of two classes.

    The gradient is that of the exported model: a tape on the layer's output, below the head.
    """
    from pipeline.keras_backend import keras, tf
    from pipeline.models.composition import compose

    whole = compose(bundle, base)
    first = "flatten" if bundle.input == "flat" else "average"
    names = [layer.name for layer in whole.layers]
    above = [whole.get_layer(name) for name in (first, "hidden", "probability") if name in names]
    above[-1].activation = keras.activations.linear  # its logit
    maps = keras.Model(whole.input, above[0].input)(pixels)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        logits = keras.Sequential(above)(maps)
    weights = tf.reduce_mean(tape.gradient(logits, maps), axis=(1, 2), keepdims=True)
    return np.asarray(maps), np.asarray(tf.reduce_sum(weights * maps, axis=-1))
