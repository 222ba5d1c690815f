"""Custom heads, ``module:factory``: any scikit-learn classifier or Keras model."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier, is_regressor
from sklearn.multiclass import OneVsRestClassifier

from pipeline.errors import PipelineError, UsageError
from pipeline.heads.calibration import check_probabilities, keras_probabilities
from pipeline.heads.registry import Head, required_arguments
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION
from pipeline.text import error_text

ROWS_PER_BATCH = 1024  # of a forward pass


class HeadFailedError(PipelineError):
    """A custom head raised an error; the message is the status of its row."""

    exit_code = UsageError.exit_code


def load_custom_head(name: str, *, epochs: int, batch_size: int, task: str = CLASSES) -> Head:
    """Return the head that ``module:factory`` makes; the module may be in the current folder.

    Raises UsageError if the module or factory is missing or the factory cannot be called.
    """
    module_name, _, path = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # not removed: factories and fitting processes import later
    try:
        with redirect_stdout(sys.stderr):
            factory: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--head {name}: cannot import {module_name}: {error_text(error)}"
        ) from error
    for attribute in path.split("."):
        if not hasattr(factory, attribute):
            raise UsageError(f"--head {name}: module {module_name} has no {path}")
        factory = getattr(factory, attribute)
    if not callable(factory):
        raise UsageError(
            f"--head {name}: expected a function or class; received {_type_of(factory)}"
        )
    if required_arguments(factory) not in (0, 2):
        raise UsageError(
            f"--head {name}: expected a factory without arguments or with (feature_count, "
            f"class_count); received one with {required_arguments(factory)}"
        )

    wanted = "regressor" if task == REGRESSION else "classifier"

    def make(feature_count: int, class_count: int) -> Any:
        build = partial(factory, *((feature_count, class_count)[: required_arguments(factory)]))
        model = build()
        if any(base.__module__.partition(".")[0] == "keras" for base in type(model).__mro__):
            if task != CLASSES:
                raise UsageError(f"expected a scikit-learn {wanted} for {task}; received Keras")
            return KerasClassifier(build, class_count, epochs=epochs, batch_size=batch_size)
        is_wanted = is_regressor if task == REGRESSION else is_classifier
        if not (hasattr(model, "get_params") and hasattr(model, "fit") and is_wanted(model)):
            kind = _type_of(model)
            raise UsageError(f"expected a scikit-learn {wanted} or Keras model; received {kind}")
        model = clone(model)  # a factory may return the same object every time
        return OneVsRestClassifier(model) if task == MULTILABEL else model

    return Head(make, is_stochastic=True, is_custom=True)


@contextmanager
def failures_of(head: Head) -> Iterator[None]:
    """Convert a custom head's errors into HeadFailedError and send its output to stderr."""
    if not head.is_custom:  # an error in a built-in head is a bug
        yield
        return
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            yield
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:  # a custom head may raise anything
        raise HeadFailedError(f"failed: {error_text(error)}") from error


@dataclass(eq=False, repr=False)
class KerasClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A custom Keras model, trained by Keras' ``fit``, as a scikit-learn classifier.

    ``build`` returns a new model with softmax outputs (K,) or a sigmoid output (1,). An uncompiled
    model is compiled with Adam and the loss that matches its outputs.
    """

    not_savable: ClassVar = "a custom Keras model may contain layers that execute code when loaded"

    build: Callable[[], Any]
    class_count: int
    epochs: int
    batch_size: int
    random_state: int | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None, validation_data: Any = None) -> Self:
        """Raises UsageError for another number of outputs, BadDataError for other than
        probabilities.
        """
        from pipeline.keras_backend import keras

        self.classes_ = np.arange(self.class_count)
        first = self.build()
        keras.utils.set_random_seed(self.random_state or 0)  # build draws the initial weights
        self.model_ = model = self.build()
        if model is first:
            raise UsageError("expected a new model from each call; received the same one twice")
        outputs = tuple(model(X[:1]).shape[1:])
        if outputs != (self.class_count,) and (self.class_count, outputs) != (2, (1,)):
            raise UsageError(f"expected ({self.class_count},) outputs; received {outputs}")
        if not model.compiled:
            loss = "binary_crossentropy" if outputs == (1,) else "sparse_categorical_crossentropy"
            # XLA would compile again for each batch size
            model.compile("adam", loss, metrics=["accuracy"], jit_compile=False)
        sizes = {"batch_size": self.batch_size, "validation_batch_size": ROWS_PER_BATCH}
        weighted = {"sample_weight": sample_weight, "validation_data": validation_data}
        self.history_ = model.fit(X, y, epochs=self.epochs, verbose=0, **sizes, **weighted).history
        scores = np.asarray(model(X[:ROWS_PER_BATCH]), np.float64)  # not yet divided by their sums
        check_probabilities(np.hstack([1 - scores, scores]) if outputs == (1,) else scores)
        return self

    @property
    def parameters(self) -> int:
        return int(self.model_.count_params())

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        return keras_probabilities(self.model_, X)


def _type_of(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
