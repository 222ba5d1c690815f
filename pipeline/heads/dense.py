"""The book's head in Keras: one hidden layer with dropout (DLwP 5.3, listing 5.18)."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.config import DenseConfig

log = logging.getLogger("pipeline")

ROWS_PER_BATCH = 1024  # of a forward pass: 32 MiB at 8,192 features
XLA_ROWS = 10_000  # rows in all epochs from which XLA's 2 s of compilation pay


def build_dense(shape: tuple[int, ...], class_count: int, config: DenseConfig, seed: int) -> Any:
    """Build Flatten → Dense(relu) → Dropout → Dense(1, sigmoid), or Dense(K, softmax), compiled.

    2,097,665 parameters for features of shape (4, 4, 512), two classes and the book's config.
    ``seed`` draws the initial weights and dropout.
    """
    from pipeline.keras_backend import keras

    layers, glorot = keras.layers, keras.initializers.GlorotUniform
    outputs, activation = (1, "sigmoid") if class_count == 2 else (class_count, "softmax")
    hidden = layers.Dense(config.units, "relu", kernel_initializer=glorot(seed))
    output = layers.Dense(outputs, activation, kernel_initializer=glorot(seed + 1))
    dropout = layers.Dropout(config.dropout, seed=seed)
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), hidden, dropout, output])
    optimizer = keras.optimizers.get(config.optimizer)
    optimizer.learning_rate = config.learning_rate
    loss = "binary_crossentropy" if outputs == 1 else "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


@dataclass(kw_only=True, eq=False, repr=False)
class DenseClassifier(ClassifierMixin, BaseEstimator, DenseConfig):  # type: ignore[misc]
    """A Keras network of one hidden layer, as a scikit-learn classifier of labels 0 … K - 1.

    Attributes
    ----------
    weights_ : kernel and bias of the hidden and of the output layer, float32.
    history_ : loss, accuracy, val_loss and val_accuracy by epoch.
    """

    random_state: int | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None, validation_data: Any = ()) -> Self:
        X, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_ = np.unique(y)
        self._model = self._build()
        weights = np.ones(len(y)) if sample_weight is None else sample_weight
        self._train(self._model, (X, y, np.asarray(weights, np.float32)), validation_data)
        self.weights_ = self._model.get_weights()
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        if not hasattr(self, "_model"):  # it comes from a file
            self._model = self._build()
            self._model.set_weights(self.weights_)
        # called directly: `predict` compiles anew for each number of rows
        outputs = np.asarray(self._model(X, training=False), np.float64)
        if outputs.shape[1] == 1:
            return np.hstack([1 - outputs, outputs])
        return np.asarray(outputs / outputs.sum(axis=1, keepdims=True))  # float32: 1 ± 1e-7

    def predict(self, X: Any) -> npt.NDArray[Any]:
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def _build(self) -> Any:
        return build_dense((self.n_features_in_,), len(self.classes_), self, self.random_state or 0)

    def _train(self, model: Any, rows: tuple[Any, ...], validation: tuple[Any, ...]) -> None:
        """Train like ``model.fit``: Keras' own steps, but one compiled call an epoch.

        The rows stay in memory as tensors, where ``fit`` copies each batch: 2 to 3 times as fast.
        """
        from pipeline.keras_backend import keras, tf

        tensors, watched = ([tf.constant(each) for each in group] for group in (rows, validation))
        count, size = len(rows[0]), self.batch_size
        whole = count - count % size

        def steps(batches: Any) -> None:  # (steps, rows of a batch)
            for step in tf.range(tf.shape(batches)[0]):
                model.train_step(tuple(tf.gather(each, batches[step]) for each in tensors))

        use_xla = count * self.epochs >= XLA_ROWS
        train, train_rest = tf.function(steps, jit_compile=use_xla), tf.function(steps)
        evaluate = tf.function(lambda: model.test_step(watched))
        model.optimizer.build(model.trainable_variables)
        model.evaluate(rows[0][:1], rows[1][:1], verbose=0)  # creates the metrics' variables
        callbacks = [keras.callbacks.History()]
        if self.patience and validation:
            stop = keras.callbacks.EarlyStopping(patience=self.patience, restore_best_weights=True)
            callbacks.append(stop)
        if self.tensorboard:
            folder = Path(self.tensorboard) / f"dense-seed{self.random_state}"
            callbacks.append(keras.callbacks.TensorBoard(folder, write_graph=False))
        run = keras.callbacks.CallbackList(callbacks, model=model)
        generator, model.stop_training = np.random.default_rng(self.random_state), False
        run.on_train_begin()
        for epoch in range(self.epochs):
            if model.stop_training:
                break
            run.on_epoch_begin(epoch)
            model.reset_metrics()
            order = generator.permutation(count)
            if whole:
                train(tf.constant(order[:whole].reshape(-1, size)))
            if whole < count:
                train_rest(tf.constant(order[None, whole:]))
            logs = {name: float(value) for name, value in model.get_metrics_result().items()}
            if validation:
                model.reset_metrics()
                logs |= {f"val_{name}": float(value) for name, value in evaluate().items()}
            log.debug("epoch %d/%d: %s", epoch + 1, self.epochs, logs)
            run.on_epoch_end(epoch, logs)
        run.on_train_end()
        self.history_ = dict(callbacks[0].history)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_model"}
