"""Build and save one Keras or ONNX model, images to class probabilities, without custom code."""

import gc
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.bases.build import build_base, feature_model
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import PIXELS
from pipeline.errors import BadDataError
from pipeline.heads.dense import DenseClassifier
from pipeline.keras_backend import keras, tf
from pipeline.models.bundle import Bundle
from pipeline.models.head_layers import HeadLayer, head_layers
from pipeline.models.head_onnx import OPSETS, append_head
from pipeline.models.top_block import TopBlockClassifier
from pipeline.models.upper_layers import layers_above, put_weights
from pipeline.spec import layer_key, split_layer_key
from pipeline.text import printable


def compose(bundle: Bundle, config: BaseConfig) -> Any:
    """Build the model: "images" (B, H, W, 3) uint8 RGB -> probabilities (B, K) float32.

    It contains the base as one frozen layer with the base's name, so that the saved model can be
    fine-tuned as in the book: unfreeze the last block, compile with a low learning rate, fit.

    Raises NotExportableError for a head that is not a network, BadDataError for other weights than
    in training or features of another shape.
    """
    *hidden, last = head_layers(bundle)
    images, values = _head_input(bundle, config)
    for layer in hidden:
        values = _dense(layer, "relu", name="hidden")(values)
        dropout = getattr(bundle.estimator, "head", bundle.estimator).dropout
        values = keras.layers.Dropout(dropout, name="dropout")(values)
    if len(last.bias) == 1:
        second = _dense(last, "sigmoid", name="probability")(values)
        values = keras.ops.concatenate([1 - second, second], axis=-1)
    else:
        values = _dense(last, "softmax", name="probabilities")(values)
    return keras.Model(images, values, name="classifier")


def compose_onnx(bundle: Bundle, config: BaseConfig) -> Any:
    """Build the model of `compose` in ONNX, for any head that skl2onnx or tf2onnx converts."""
    if isinstance(bundle.estimator, DenseClassifier | TopBlockClassifier):
        return _to_onnx(compose(bundle, config), "probabilities")
    images, values = _head_input(bundle, config)
    base = keras.Model(images, keras.ops.cast(values, "float64"))
    return append_head(_to_onnx(base, "features"), bundle)


def _head_input(bundle: Bundle, config: BaseConfig) -> tuple[Any, Any]:
    """Return the model's input and what its head takes, (B, D)."""
    images, values = _feature_tensors(bundle, config)
    is_tuned = isinstance(bundle.estimator, TopBlockClassifier)  # its head takes the base's output
    if tuple(values.shape[1:]) != bundle.shape and not is_tuned:
        raise BadDataError(
            f"the head takes {printable(bundle.layer)} of shape {bundle.shape}; "
            f"{bundle.spec.base} gives {tuple(values.shape[1:])}"
        )
    if bundle.input == "flat":
        values = keras.layers.Flatten(name="flatten")(values)
    elif len(values.shape) == 4:
        values = keras.layers.GlobalAveragePooling2D(name="average")(values)
    return images, values


def _dense(layer: HeadLayer, activation: str, *, name: str) -> Any:
    dense = keras.layers.Dense(len(layer.bias), activation=activation, name=name)
    dense.build((None, len(layer.kernel)))
    dense.set_weights([layer.kernel, layer.bias])
    return dense


def _feature_tensors(bundle: Bundle, config: BaseConfig) -> tuple[Any, Any]:
    """Return the model's input and the layer's features (of a fine-tuned base, its output)."""
    spec = bundle.spec
    layer, pooling = split_layer_key(bundle.layer)
    if spec.base == PIXELS:
        images = keras.Input((spec.image_size, spec.image_size, 3), dtype="uint8", name="images")
        return images, _pool(keras.layers.Rescaling(1 / 255, name="to_float")(images), pooling)
    base = config.network
    base_model, digest = build_base(config)
    if digest != spec.weights:
        raise BadDataError(
            f"the head was trained on {base.name} with the weights {spec.weights[:12]}…; received "
            f"{digest[:12]}…: pass those of the training with --weights FILE"
        )
    if isinstance(bundle.estimator, TopBlockClassifier):
        put_weights(layers_above(base_model, layer), bundle.estimator.block)
        layer = base.last_layer
    model = feature_model(base_model, config, [layer_key(layer, pooling)])
    network = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    network.name = base.name  # for model.get_layer("vgg16")
    return model.input, model.outputs[0]


def _pool(maps: Any, pooling: str) -> Any:
    if pooling == "avg":
        return keras.layers.GlobalAveragePooling2D(name="pooled")(maps)
    return keras.layers.GlobalMaxPooling2D(name="pooled")(maps) if pooling == "max" else maps


def save_keras(model: Any, about: Mapping[str, Any], path: Path) -> None:
    """Write a ``.keras`` file, a zip, with ``about`` in its member classifier.json."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("classifier.json", json.dumps(about, indent=2))


def _to_onnx(model: Any, output: str) -> Any:
    """Convert a Keras model with the input "images" and one output, which gets a name."""
    import tf2onnx  # takes a second

    # tf2onnx logs tracebacks of optimisations that it skips
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    signature = [tf.TensorSpec(model.input.shape, tf.uint8, name="images")]
    function = tf.function(
        lambda images: {output: model(images, training=False)}, input_signature=signature
    )
    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSETS[""])
    # The traced graph, with copies of all weights, is in a reference cycle: 1 GB of VGG16's stays
    # until Python next looks for cycles, and eleven exports in one process need 16 GB.
    del function
    gc.collect()
    # EfficientNet's normalisation leaves inputs that no node reads
    for unread in [entry for entry in proto.graph.input if entry.name != "images"]:
        proto.graph.input.remove(unread)
    return proto
