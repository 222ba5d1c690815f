"""Heads as fully connected layers, for formats that know nothing else."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadDataError, UsageError
from pipeline.heads.calibration import Calibrated
from pipeline.heads.dense import DenseClassifier
from pipeline.heads.head import Classifier
from pipeline.heads.linear import LinearClassifier
from pipeline.heads.settings import DenseSettings
from pipeline.models.bundle import Bundle
from pipeline.models.top_block import TopBlockClassifier
from pipeline.text import counted, printable


class Layer(NamedTuple):
    """kernel (D, U) and bias (U,), float32."""

    kernel: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def head_layers(bundle: Bundle) -> Sequence[Layer]:
    """The head's layers, a ReLU between two; the last one's sigmoid (U = 1) is the probability of
    the second of two classes, its softmax (U = K) that of each.

    Raises UsageError for a head that is no such network.
    """
    classifier = bundle.classifier
    if views := bundle.plan.views:
        raise UsageError(
            f"the head {printable(bundle.head)} cannot be exported, for its probabilities are "
            f"means over {counted(views + 1, 'view')} of an image, which no one model draws: "
            f"classify without --tta"
        )
    if isinstance(classifier, TopBlockClassifier):  # behind the layers that composition puts there
        classifier = classifier.head
    if isinstance(classifier, DenseClassifier):
        return (
            Layer(classifier.hidden_kernel, classifier.hidden_bias),
            Layer(classifier.output_kernel, classifier.output_bias),
        )
    linear, temperature = _unwrapped(classifier)
    if not isinstance(linear, LinearClassifier):
        raise UsageError(
            f"the head {printable(bundle.head)} cannot be exported, for it is no layer of a "
            f"network: choose dense or a linear one (logistic, linear_svm, ridge, lda, prototype) "
            f"with --head"
        )
    # of two classes with a decision value d, the scores are -d and d: softmax is the sigmoid of 2 d
    doubled = len(linear.intercepts) == 1 and not linear.has_probabilities
    scale = (2 if doubled else 1) / temperature
    return (Layer(_float32(linear.weights.T * scale), _float32(linear.intercepts * scale)),)


def dropout_of(params: str) -> float:
    """The dropout that settings such as ``epochs=5 dropout=0.2`` name, else the book's.

    Raises BadDataError if it is no number from 0 to below 1.
    """
    named = re.search(r"\bdropout=(\S*)", params)
    if named is None:
        return DenseSettings().dropout
    try:
        dropout = float(named[1])
    except ValueError:
        dropout = math.nan
    if not 0 <= dropout < 1:
        raise BadDataError(
            f"the model says {printable(named[0][:60])}; expected a number from 0 to below 1"
        )
    return dropout


def _unwrapped(classifier: Classifier) -> tuple[Classifier, float]:
    """A classifier without its temperature, and that."""
    if isinstance(classifier, Calibrated):
        return classifier.classifier, classifier.temperature
    return classifier, 1.0


def _float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32)
