"""Class scores of fitted estimators, and temperature scaling (Guo et al. 2017)."""

import math
import reprlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from joblib import parallel_config
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin

from pipeline.errors import BadDataError
from pipeline.spec import CLASSES, MULTILABEL

SUM_TOLERANCE = 1e-3  # of probabilities; some estimators' sums differ from 1 by more than rounding
# The search for a temperature covers the logits' spread divided and multiplied by this factor:
# below, all probabilities are 0 or 1; above, they are equal to three digits.
SEARCH_FACTOR = 1e3
ROWS_PER_BLOCK = 1024  # memory does not grow with the number of rows

Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


def class_scores(
    estimator: Any, features: Any, class_count: int, *, method: str = "predict_proba"
) -> Scores:
    """Return scores of a fitted estimator: (N, D) -> (N, K) float64; the highest is predicted.

    ``features`` are an array, or lazy and read in slices. Column k is of label k, in whatever order
    ``classes_`` has them. The estimator gets copies of the rows, as a custom head may change them
    in place. With the method ``predict``, the predicted class scores 1, the others 0. A network
    that diverged gives rows of NaN.

    Raises BadDataError if ``classes_`` are not the labels 0 … K - 1, or the estimator does not
    return one score per class, probabilities, or labels.
    """
    order = label_order(estimator, class_count)
    if not len(features):
        return np.empty((0, class_count))
    starts = range(0, len(features), ROWS_PER_BLOCK)
    blocks = (features[start : start + ROWS_PER_BLOCK].copy() for start in starts)
    with parallel_config("sequential"):  # threads would sum trees' votes in random order
        output = np.concatenate([np.asarray(getattr(estimator, method)(block)) for block in blocks])
    if method == "decision_function" and class_count == 2 and output.ndim == 1:
        output = np.stack([-output, output], axis=1)
    expected = (len(features),) if method == "predict" else (len(features), class_count)
    if output.shape != expected:
        raise BadDataError(f"gave {method} of shape {output.shape}; expected {expected}")
    if method == "predict":
        wrong = output[~np.isin(output, np.arange(class_count))]
        if len(wrong):
            received = reprlib.repr(wrong.tolist()[0])
            raise BadDataError(f"predicted {received}; expected labels 0 to {class_count - 1}")
        return np.asarray(output[:, None] == np.arange(class_count), np.float64)
    scores = np.take(output.astype(np.float64), order, axis=1)
    if method == "predict_proba":
        check_probabilities(scores)
        scores = scores.clip(min=0)
        scores /= scores.sum(axis=1, keepdims=True)
    return scores


def head_outputs(estimator: Any, features: Any, count: int, task: str = CLASSES) -> Scores:
    """Return what a fitted head predicts: (N, D) -> (N, K) float64.

    These are the probabilities of K classes, of K labels that an image may have, or the number of a
    regression (K = 1). Raises BadDataError as `class_scores` does.
    """
    if task == CLASSES:
        return class_scores(estimator, features, count)
    method = "predict_proba" if hasattr(estimator, "predict_proba") else "predict"
    starts = range(0, len(features), ROWS_PER_BLOCK)
    blocks = (features[start : start + ROWS_PER_BLOCK].copy() for start in starts)
    with parallel_config("sequential"):  # threads would sum trees' votes in random order
        outputs = [np.asarray(getattr(estimator, method)(block), np.float64) for block in blocks]
    output = np.concatenate(outputs).reshape(-1, count) if outputs else np.empty((0, count))
    return output.clip(0, 1) if task == MULTILABEL else output


def label_order(estimator: Any, class_count: int) -> Labels:
    """Return the column of each label (K,), as ``classes_`` gives the label of each column.

    Raises BadDataError unless ``classes_`` contains every label 0 … K - 1 once, as numbers of any
    type.
    """
    classes = np.asarray(getattr(estimator, "classes_", None))
    column_of = dict(zip(classes.ravel().tolist(), range(classes.size), strict=True))
    if classes.size != class_count or column_of.keys() != set(range(class_count)):
        received = reprlib.repr(classes.tolist())
        raise BadDataError(
            f"has classes_ {received}; expected the labels 0 to {class_count - 1}, each once"
        )
    return np.array([column_of[label] for label in range(class_count)])


def check_probabilities(scores: Scores) -> None:
    """Raise BadDataError unless rows (N, K) are probabilities that sum to 1, or NaN."""
    sums = scores.sum(axis=1)
    if np.any(scores < -SUM_TOLERANCE) or np.any(np.abs(sums - 1) > SUM_TOLERANCE):
        raise BadDataError(
            f"gave predict_proba from {np.nanmin(scores):.3g} to {np.nanmax(scores):.3g} with sums "
            f"from {np.nanmin(sums):.3g} to {np.nanmax(sums):.3g}; expected probabilities, as of "
            f"softmax: a classifier of other scores needs decision_function instead"
        )


def keras_probabilities(model: Any, rows: npt.NDArray[Any]) -> Scores:
    """Return probabilities (N, K) of a Keras model, softmax or sigmoid, for rows (N, D)."""
    return to_probabilities(np.asarray(model(rows, training=False)))  # `predict` would compile


def to_probabilities(outputs: npt.NDArray[Any]) -> Scores:
    """Return probabilities (N, K) float64 of softmax outputs (N, K) or sigmoid outputs (N, 1)."""
    outputs = outputs.astype(np.float64)
    if outputs.shape[1] == 1:
        return np.hstack([1 - outputs, outputs])
    return np.asarray(outputs / outputs.sum(axis=1, keepdims=True))  # float32: 1 ± 1e-7


def scoring_method(estimator: Any) -> str:
    """Return the first method that an estimator has: predict_proba, decision_function, predict."""
    methods = ("predict_proba", "decision_function", "predict")
    return next(method for method in methods if hasattr(estimator, method))


def fit_temperature(labels: Labels, scores: Scores, *, has_probabilities: bool) -> float:
    """Return the temperature T that minimises the log loss of ``softmax(logits / T)``.

    The problem is convex in 1/T. The logits are the logarithms of the probabilities, or the
    decision values of a classifier without probabilities.

    If all (or nearly all) rows are right, the loss falls as T approaches 0, and scikit-learn's
    ``CalibratedClassifierCV(method="temperature")`` returns probabilities of 0 and 1. The mean
    confidence is therefore limited to (N + 1) / (N + 2), the probability of another success after
    N successes (Laplace's rule of succession).

    Parameters
    ----------
    labels : (N,) true classes of rows that the classifier was not fitted on.
    scores : (N, K) of a classifier.

    The temperature of an overconfident classifier is above 1. It is 1 if the scores are the same
    for every row or every class.
    """
    logits = _to_logits(scores, has_probabilities=has_probabilities)
    spread = float(np.sqrt(np.mean((logits - logits.mean(axis=1, keepdims=True)) ** 2)))
    if spread == 0 or np.all(logits == logits[0]):
        return 1.0
    logits = logits / spread
    true = logits[np.arange(len(labels)), labels]
    most_confident = (len(labels) + 1) / (len(labels) + 2)

    def excess(log_inverse: float) -> float:
        """Return a number that is negative if 1/T is too low, and increases with it."""
        probabilities = softmax(logits * math.exp(log_inverse), axis=1)
        slope = np.mean((probabilities * logits).sum(axis=1) - true)  # of the loss over 1/T
        return float(max(slope, probabilities.max(axis=1).mean() - most_confident))

    hottest, coldest = -math.log(SEARCH_FACTOR), math.log(SEARCH_FACTOR)
    if excess(hottest) >= 0:
        log_inverse = hottest
    elif excess(coldest) <= 0:
        log_inverse = coldest
    else:
        log_inverse = brentq(excess, hottest, coldest, xtol=1e-12)
    return spread * math.exp(-log_inverse)


def apply_temperature(scores: Scores, temperature: float, *, has_probabilities: bool) -> Scores:
    """Return ``softmax(logits / temperature)`` (N, K); the order of the classes does not change."""
    logits = _to_logits(scores, has_probabilities=has_probabilities)
    return np.asarray(softmax(logits / temperature, axis=1))


@dataclass(eq=False, repr=False)
class TemperatureScaling(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted classifier; its probabilities are softmax(decision values / temperature).

    There is no bias: unlike Platt scaling, it does not change the predicted classes. ``method`` is
    ``decision_function`` or ``predict``.
    """

    estimator: Any
    method: str = "decision_function"
    temperature: float = 1.0

    @property
    def classes_(self) -> npt.NDArray[np.int64]:
        return np.sort(self.estimator.classes_)

    @property
    def n_features_in_(self) -> int:
        return int(self.estimator.n_features_in_)

    def fit(self, X: Any, y: Labels) -> Self:
        """Fit only the temperature, on rows that the estimator was not fitted on."""
        scores = self.decision_function(X)
        self.temperature = fit_temperature(y, scores, has_probabilities=False)
        return self

    def decision_function(self, X: Any) -> Scores:
        return class_scores(self.estimator, X, len(self.estimator.classes_), method=self.method)

    def predict_proba(self, X: Any) -> Scores:
        scores = self.decision_function(X)
        return apply_temperature(scores, self.temperature, has_probabilities=False)

    def predict(self, X: Any) -> Labels:
        return np.asarray(self.decision_function(X).argmax(axis=1))


def _to_logits(scores: Scores, *, has_probabilities: bool) -> Scores:
    if not has_probabilities:
        return scores
    return np.asarray(np.log(np.maximum(scores, np.finfo(np.float64).eps)))
