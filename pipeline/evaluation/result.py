"""One line of the results table, and what else is known of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Result:
    """A chosen head on one layer of one cache; the fields are the columns of results.csv.

    Later columns are added at the end. Accuracies and the like are shares in 0 … 1, NaN where a
    measure does not apply.

    Attributes
    ----------
    input : ``flat`` or ``pooled`` features.
    params : the chosen settings, ``C=0.1``.
    test_low, test_high : 95 % Wilson interval of the test accuracy.
    fit_seconds : all candidates of the head, from which one was chosen.
    predict_ms : milliseconds per test image, from cached features to a class.
    parameters : how many numbers the chosen classifier has learned.
    """

    head: str
    input: str
    params: str
    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    test_low: float
    test_high: float
    macro_f1: float
    roc_auc: float
    log_loss: float
    top5_accuracy: float
    fit_seconds: float
    predict_ms: float
    parameters: int
    base: str
    layer: str
    image_size: int
    fingerprint: str
    cache: str

    def row(self) -> dict[str, Any]:
        """Column -> value; None instead of NaN, as JSON and CSV want it."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in ((name, getattr(self, name)) for name in COLUMN_NAMES)
        }


COLUMN_NAMES = tuple(field.name for field in fields(Result))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A result with what plots and statistics need.

    Attributes
    ----------
    confusion : (K, K) counts on test: true class by row, predicted class by column.
    history : of a head that is trained by epoch: loss, accuracy, val_loss, val_accuracy.
    """

    result: Result
    confusion: npt.NDArray[np.int64]
    history: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every head's outcome, the highest validation accuracy first.

    Attributes
    ----------
    classes : class names, in the order of the confusion matrices.
    run : what was compared and how: caches, splits, settings, versions.
    """

    outcomes: tuple[Outcome, ...]
    classes: tuple[str, ...]
    run: Mapping[str, Any]

    @property
    def results(self) -> tuple[Result, ...]:
        """The lines of the table."""
        return tuple(outcome.result for outcome in self.outcomes)

    def document(self) -> dict[str, Any]:
        """The contents of results.json."""
        return {"run": dict(self.run), "rows": [result.row() for result in self.results]}
