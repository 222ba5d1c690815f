"""Class scores of fitted estimators, and temperature scaling (Guo et al. 2017)."""

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from joblib import parallel_config
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin

# A temperature is sought within this factor of the logits' own spread, either way: colder, all
# probabilities are 0 or 1; hotter, they are equal to three digits.
RANGE = 1e3
ROWS_PER_BLOCK = 1024  # so that memory does not grow with the number of rows

Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


def class_scores(
    estimator: Any, features: npt.NDArray[Any], class_count: int, *, method: str = "predict_proba"
) -> Scores:
    """Scores of a fitted estimator: (N, D) -> (N, K) float64, the highest for the predicted class.

    By ``predict``, the predicted class scores 1. Raises ValueError if they are not (N, K).
    """
    if not len(features):
        return np.empty((0, class_count))
    starts = range(0, len(features), ROWS_PER_BLOCK)
    blocks = [features[start : start + ROWS_PER_BLOCK] for start in starts]
    with parallel_config("sequential"):  # threads add the votes of trees in any order
        found = np.concatenate([np.asarray(getattr(estimator, method)(block)) for block in blocks])
    if method == "predict":
        return np.asarray(found[:, None] == np.arange(class_count), np.float64)
    if found.ndim == 1:
        found = np.stack([-found, found], axis=1)
    if found.shape != (len(features), class_count):
        raise ValueError(
            f"expected scores ({len(features)}, {class_count}); received {found.shape}"
        )
    scores = np.empty(found.shape)
    scores[:, np.asarray(estimator.classes_, np.int64)] = found  # its columns may be in any order
    if method == "predict_proba":  # some miss 1 by more than rounding in float64
        scores /= scores.sum(axis=1, keepdims=True)
    return scores


def probabilities(model: Any, rows: npt.NDArray[Any]) -> Scores:
    """Probabilities (N, K) of a Keras model of softmax outputs or one sigmoid, for rows (N, D)."""
    outputs = np.asarray(model(rows, training=False), np.float64)  # `predict` would compile anew
    if outputs.shape[1] == 1:
        return np.hstack([1 - outputs, outputs])
    return np.asarray(outputs / outputs.sum(axis=1, keepdims=True))  # float32: 1 ± 1e-7


def scoring_method(estimator: Any) -> str:
    """The best that an estimator has of predict_proba, decision_function and predict."""
    methods = ("predict_proba", "decision_function", "predict")
    return next(method for method in methods if hasattr(estimator, method))


def fit_temperature(labels: Labels, scores: Scores, *, has_probabilities: bool) -> float:
    """The temperature T of the lowest log loss of ``softmax(logits / T)``.

    A convex problem in 1/T. The logits are the logarithms of the probabilities, or the decision
    values where there are none.

    Where all (or nearly all) rows are right, the loss falls for ever as T goes to 0, and
    scikit-learn's ``CalibratedClassifierCV(method="temperature")`` returns probabilities of 0 and
    1. So the mean confidence is at most (N + 1) / (N + 2), how sure of the next answer one can be
    after N right ones (Laplace's rule of succession).

    Parameters
    ----------
    labels : (N,) true classes of rows that nothing was fitted on.
    scores : (N, K) of a classifier.

    Returns above 1 for a classifier that is too sure of itself, 1 where the scores are the same for
    every row or every class.
    """
    logits = _logits(scores, has_probabilities=has_probabilities)
    spread = float(np.sqrt(np.mean((logits - logits.mean(axis=1, keepdims=True)) ** 2)))
    if spread == 0 or np.all(logits == logits[0]):
        return 1.0
    logits = logits / spread
    true = logits[np.arange(len(labels)), labels]
    surest = (len(labels) + 1) / (len(labels) + 2)

    def excess(log_inverse: float) -> float:
        """Negative while the temperature is too high; rises with its inverse."""
        probabilities = softmax(logits * math.exp(log_inverse), axis=1)
        slope = np.mean((probabilities * logits).sum(axis=1) - true)  # of the loss, by 1/T
        return float(max(slope, probabilities.max(axis=1).mean() - surest))

    hottest, coldest = -math.log(RANGE), math.log(RANGE)
    if excess(hottest) >= 0:
        log_inverse = hottest
    elif excess(coldest) <= 0:
        log_inverse = coldest
    else:
        log_inverse = brentq(excess, hottest, coldest, xtol=1e-12)
    return spread * math.exp(-log_inverse)


def apply_temperature(scores: Scores, temperature: float, *, has_probabilities: bool) -> Scores:
    """``softmax(logits / temperature)`` (N, K); the order of the classes stays as it is."""
    logits = _logits(scores, has_probabilities=has_probabilities)
    return np.asarray(softmax(logits / temperature, axis=1))


class TemperatureScaling(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted classifier whose decision values, divided by a temperature, are logits.

    There is no bias: with one, as Platt's sigmoid has it, a head would predict other classes with
    its probabilities than without. ``method`` is ``decision_function`` or ``predict``.
    """

    def __init__(
        self, estimator: Any, *, method: str = "decision_function", temperature: float = 1.0
    ) -> None:
        self.estimator = estimator
        self.method = method
        self.temperature = temperature

    @property
    def classes_(self) -> npt.NDArray[np.int64]:
        return np.sort(self.estimator.classes_)

    @property
    def n_features_in_(self) -> int:
        return int(self.estimator.n_features_in_)

    def fit(self, X: Any, y: Labels) -> Self:
        """Fit the temperature alone, on rows that the estimator was not fitted on."""
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


def _logits(scores: Scores, *, has_probabilities: bool) -> Scores:
    if not has_probabilities:
        return scores
    return np.asarray(np.log(np.maximum(scores, np.finfo(np.float64).eps)))
