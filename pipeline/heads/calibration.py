"""Probabilities one can believe: temperature scaling (Guo et al. 2017), fitted on validation."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import softmax

from pipeline.heads.head import Classifier, Floats

# A temperature is sought within this factor of the logits' own spread, either way: colder, all
# probabilities are 0 or 1; hotter, they are equal to three digits.
RANGE = 1e3

Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


def fit_temperature(labels: Labels, scores: Scores, *, has_probabilities: bool) -> float:
    """The temperature T of the lowest log loss of ``softmax(logits / T)``.

    A convex problem in 1/T with one unknown. The logits are the logarithms of the probabilities,
    or the decision values where there are none.

    Where all (or nearly all) rows are right, the loss falls for ever as T goes to 0. So T is never
    so low that the mean confidence exceeds (N + 1) / (N + 2): after N right answers and no wrong
    one, that is how sure of the next one can be (Laplace's rule of succession).

    Parameters
    ----------
    labels : (N,) true classes of rows that nothing was fitted on.
    scores : (N, K) of a classifier.

    Returns above 1 for a classifier that is too sure of itself, below 1 for one that is not sure
    enough; 1 where the scores are the same for every row or every class and so tell nothing.
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


@dataclass(frozen=True)
class Calibrated:
    """A classifier whose scores have become probabilities.

    There is no bias beside the temperature: with one, as Platt's sigmoid has it, a head would
    predict other classes with its probabilities than it does without them.
    """

    classifier: Classifier
    temperature: float
    has_probabilities: bool = True

    @property
    def parameters(self) -> int:
        """The classifier's own; the temperature is not counted, every head has one."""
        return self.classifier.parameters

    def scores(self, features: Floats) -> Scores:
        return apply_temperature(
            self.classifier.scores(features),
            self.temperature,
            has_probabilities=self.classifier.has_probabilities,
        )


def _logits(scores: Scores, *, has_probabilities: bool) -> Scores:
    if not has_probabilities:
        return scores
    return np.asarray(np.log(np.maximum(scores, np.finfo(np.float64).eps)))
