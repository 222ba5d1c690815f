"""A Keras model of the user's own; apart from `own`, for it loads TensorFlow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.heads.blocks import ROWS_PER_BLOCK, in_blocks
from pipeline.heads.head import Candidate, FitOptions, Floats, HeadSpec
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.keras_backend import keras

CURVES = ("loss", "accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class KerasClassifier:
    """A trained Keras model: softmax of K outputs, or sigmoid of one."""

    model: Any
    has_probabilities: bool = True
    unsavable: ClassVar[str] = (
        "a Keras model of one's own may hold layers that execute code when loaded"
    )

    @property
    def parameters(self) -> int:
        return int(self.model.count_params())

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        return in_blocks(self._probabilities, features)

    def _probabilities(self, features: Floats) -> npt.NDArray[np.float64]:
        # called directly: `predict` would compile again for every new number of rows
        outputs = keras.ops.convert_to_numpy(self.model(features, training=False))
        outputs = outputs.astype(np.float64)
        if outputs.shape[1] == 1:
            return np.hstack([1 - outputs, outputs])
        return np.asarray(outputs / outputs.sum(axis=1, keepdims=True))  # float32: 1 ± 1e-7


def fit_keras(
    name: str,
    first: Any,
    build: Callable[[], Any],
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
    *,
    seed: int,
) -> Candidate:
    """Train a new model for the epochs and with the batch size of the dense head.

    Parameters
    ----------
    first : what ``build`` made when it was not yet known to make a Keras model.
    build : makes a model of (feature_count,) inputs. If it is not compiled, it gets Adam and the
        loss of its outputs; its labels are (N,) int64.

    Raises UsageError for a model whose outputs are not the probabilities of the classes.
    """
    keras.utils.set_random_seed(seed)  # before it is built: initial weights are drawn then
    model = build()
    if model is first:
        raise UsageError("made the same model twice; expected a new one from each call")
    outputs = tuple(model(train.features[:1]).shape[1:])
    if outputs != (train.class_count,) and (train.class_count, outputs) != (2, (1,)):
        raise UsageError(f"made a model of {outputs} outputs; expected ({train.class_count},)")
    if not model.compiled:
        model.compile(
            optimizer="adam",
            loss="binary_crossentropy" if outputs == (1,) else "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=False,  # XLA compiles once more for each batch size
        )
    history = model.fit(
        train.features,
        train.labels,
        sample_weight=train.row_weights if train.balanced else None,
        validation_data=(validation.features, validation.labels),
        epochs=options.dense[0].epochs,
        batch_size=options.dense[0].batch_size,
        validation_batch_size=ROWS_PER_BLOCK,
        verbose=0,
    ).history
    _check_probabilities(keras.ops.convert_to_numpy(model(train.features[:ROWS_PER_BLOCK])))
    return Candidate(
        spec=HeadSpec(name),
        classifier=KerasClassifier(model),
        seed=seed,
        # without an accuracy among its metrics there are no curves to draw
        history={curve: tuple(map(float, history[curve])) for curve in CURVES}
        if set(CURVES) <= set(history)
        else None,
    )


def _check_probabilities(outputs: Floats) -> None:
    """Logits would pass for probabilities; what diverged is its caller's to find."""
    if not np.isfinite(outputs).all():
        return
    sums_to_one = outputs.shape[1] == 1 or np.allclose(outputs.sum(axis=1), 1, atol=1e-3)
    if outputs.min() < 0 or outputs.max() > 1 + 1e-6 or not sums_to_one:
        raise UsageError(
            f"gave outputs from {outputs.min():.3g} to {outputs.max():.3g}; "
            f"expected probabilities (softmax, or sigmoid of one output)"
        )
