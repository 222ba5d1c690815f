"""A head of the user's own, ``module:factory``: any scikit-learn classifier or Keras model."""

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import clone, is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from pipeline.errors import PipelineError, UsageError
from pipeline.heads.blocks import in_blocks
from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.text import printable

log = logging.getLogger("pipeline")


class HeadFailedError(PipelineError):
    """A head of the user's own raised something; the message is its row's status."""

    exit_code = UsageError.exit_code


def load_own_head(name: str) -> "OwnHead":
    """The head that ``module:factory`` makes; the module may lie in the current folder.

    Raises UsageError where there is no such module or factory, or it cannot be called.
    """
    module_name, _, path = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # for good: factories import, too, and processes that fit
    try:
        with redirect_stdout(sys.stderr):
            factory: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--head {name}: cannot import {module_name}: {_one_line(error)}"
        ) from error
    for attribute in path.split("."):
        if not hasattr(factory, attribute):
            raise UsageError(f"--head {name}: {module_name} has no {path}")
        factory = getattr(factory, attribute)
    if not callable(factory):
        raise UsageError(f"--head {name}: expected a function or class; received {_kind(factory)}")
    if _required(factory) not in (0, 2):
        raise UsageError(
            f"--head {name}: expected a factory without arguments or with (feature_count, "
            f"class_count); received one with {_required(factory)}"
        )
    return OwnHead(name, factory)


class OwnHead(Head):
    """What a factory makes, fitted as it is; its settings are its maker's business.

    It gets features as they are cached, unscaled, and labels 0 … K - 1. Random states that are
    left open are set to the seed.
    """

    draws: ClassVar[bool] = True  # for all we know
    uses_all_cores: ClassVar[bool] = True

    def __init__(self, name: str, factory: Callable[..., Any]) -> None:
        self.name = name
        self.factory = factory

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        for seed in options.seeds:
            with failures_told():
                candidate = self._fit(train, validation, options, seed)
            yield candidate

    def _fit(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions, seed: int
    ) -> Candidate:
        width = train.features.shape[1]
        arguments = (width, train.class_count) if _required(self.factory) else ()
        made = self.factory(*arguments)
        if any(each.__module__.partition(".")[0] == "keras" for each in type(made).__mro__):
            from pipeline.heads.own_keras import fit_keras  # only now: it loads TensorFlow

            build = partial(self.factory, *arguments)
            return fit_keras(self.name, made, build, train, validation, options, seed=seed)
        if not (hasattr(made, "get_params") and hasattr(made, "fit") and is_classifier(made)):
            raise UsageError(
                f"made a {_kind(made)}; expected a scikit-learn classifier or a Keras model"
            )
        estimator = clone(made)  # a factory may return the same object each time
        _set_where_open(estimator, "random_state", seed)
        weights = _take_class_weights(self.name, estimator, train) if train.balanced else {}
        estimator.fit(train.features, train.labels, **weights)
        return Candidate(
            spec=HeadSpec(self.name),
            classifier=OwnClassifier(
                estimator,
                parameters=_size_of(estimator, most=train.features.size),
                class_count=train.class_count,
                has_probabilities=hasattr(estimator, "predict_proba"),
            ),
            seed=seed,
        )


@dataclass(frozen=True)
class OwnClassifier:
    """A fitted scikit-learn classifier of labels 0 … K - 1."""

    estimator: Any
    parameters: int
    class_count: int
    has_probabilities: bool
    unsavable: ClassVar[str] = (
        "an estimator of one's own can be saved only as a pickle, which executes code when loaded"
    )

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        with failures_told():
            return in_blocks(self._scores, features)

    def _scores(self, features: Floats) -> npt.NDArray[np.float64]:
        if self.has_probabilities:
            scores = self.estimator.predict_proba(features)
        elif hasattr(self.estimator, "decision_function"):
            scores = self.estimator.decision_function(features)
            if scores.ndim == 1:
                scores = np.stack([-scores, scores], axis=1)
        else:
            scores = self.estimator.predict(features)[:, None] == np.arange(self.class_count)
        if scores.shape != (len(features), self.class_count):
            raise ValueError(
                f"expected scores ({len(features)}, {self.class_count}); received {scores.shape}"
            )
        return np.asarray(scores, np.float64)


@contextmanager
def failures_told() -> Iterator[None]:
    """Turn what the user's code raises into a HeadFailedError of one line.

    What it prints goes to stderr: stdout is for results.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:  # anything may happen in there
        raise HeadFailedError(f"failed: {_one_line(error)}") from error


def _set_where_open(estimator: Any, name: str, value: object) -> bool:
    """Set each parameter of that name, however deep, that is None; tells whether there is one."""
    found = {key: now for key, now in estimator.get_params().items() if key.split("__")[-1] == name}
    estimator.set_params(**{key: value for key, now in found.items() if now is None})
    return bool(found)


def _take_class_weights(name: str, estimator: Any, train: TrainingSet) -> dict[str, Any]:
    """Have the classes count equally; returns what ``fit`` needs for it."""
    if _set_where_open(estimator, "class_weight", "balanced"):
        return {}
    if has_fit_parameter(estimator, "sample_weight"):
        return {"sample_weight": train.row_weights}
    if isinstance(estimator, Pipeline) and has_fit_parameter(estimator[-1], "sample_weight"):
        return {f"{estimator.steps[-1][0]}__sample_weight": train.row_weights}
    log.warning("%s knows no class weights; it is fitted without", name)
    return {}


def _size_of(estimator: Any, *, most: int) -> int:
    """How many numbers stand in the arrays of an estimator, however deep: none says what it has
    learned. ``most`` if it does not show them."""
    found = 0
    seen: dict[int, object] = {}
    left: list[Any] = [estimator]
    try:
        while left:
            thing = left.pop()
            if id(thing) in seen or isinstance(thing, type | ModuleType):
                continue
            seen[id(thing)] = thing
            if isinstance(thing, np.ndarray) and thing.dtype != object:
                found += thing.size * len(thing.dtype.names or (None,))  # a tree's nodes have names
            elif isinstance(thing, dict):
                left += thing.values()
            elif isinstance(thing, list | tuple | np.ndarray):
                left += list(thing)
            else:
                left.append(thing.__getstate__())  # also what is written in C shows its arrays so
    except Exception:  # their maker's code, all of it
        return most
    return found


def _required(factory: Callable[..., Any]) -> int:
    """How many arguments must be given."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # classes written in C may have no signature
        return 0
    given = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(each.default is each.empty and each.kind not in given for each in parameters)


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _one_line(error: BaseException) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split()))
