"""The dense head as a Keras model: for export, and as what `minibatch` is measured against."""

from typing import Any

from pipeline.heads.minibatch import Weights
from pipeline.heads.settings import DenseSettings
from pipeline.keras_backend import keras


def build_dense(
    shape: tuple[int, ...],
    *,
    class_count: int,
    settings: DenseSettings | None = None,
    weights: Weights | None = None,
) -> Any:
    """Flatten → Dense(relu) → Dropout → Dense(1, sigmoid), or Dense(K, softmax), compiled.

    Parameters
    ----------
    shape : of the features of one image, (4, 4, 512) or (512,).
    settings : the book's by default: 2,097,665 parameters for (4, 4, 512) and two classes.
    weights : what the model has learned; drawn by Keras if None.
    """
    settings = settings or DenseSettings()
    binary = class_count == 2
    optimizers = {
        "rmsprop": keras.optimizers.RMSprop,
        "adam": keras.optimizers.Adam,
        "sgd": keras.optimizers.SGD,
    }
    model = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(settings.units, activation="relu"),
            keras.layers.Dropout(settings.dropout),
            keras.layers.Dense(1, activation="sigmoid")
            if binary
            else keras.layers.Dense(class_count, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=optimizers[settings.optimizer](learning_rate=settings.learning_rate),
        loss="binary_crossentropy" if binary else "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # XLA, Keras' default, compiles anew for each batch size
    )
    if weights is not None:
        model.set_weights(list(weights))
    return model
