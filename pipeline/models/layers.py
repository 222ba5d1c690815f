"""Heads as fully connected layers, for formats that know nothing else."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline

from pipeline.errors import UsageError
from pipeline.heads.calibration import TemperatureScaling
from pipeline.heads.dense import DenseClassifier
from pipeline.heads.scaler import CommonScaler
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
    estimator = bundle.estimator
    if views := bundle.plan.views:
        raise UsageError(
            f"the head {printable(bundle.head)} cannot be exported, for its probabilities are "
            f"means over {counted(views + 1, 'view')} of an image, which no one model draws: "
            f"classify without --tta"
        )
    if isinstance(estimator, TopBlockClassifier):  # behind the layers that composition puts there
        estimator = estimator.head
    if isinstance(estimator, DenseClassifier):
        kernel, bias, output_kernel, output_bias = estimator.weights_
        return Layer(kernel, bias), Layer(output_kernel, output_bias)
    scale = 1.0
    has_probabilities = True
    if isinstance(estimator, TemperatureScaling):
        scale, has_probabilities = 1 / estimator.temperature, False
        estimator = estimator.estimator
    found = _decision_weights(estimator)
    if found is None:
        raise UsageError(
            f"the head {printable(bundle.head)} cannot be exported, for it is no layer of a "
            f"network: choose dense or a linear one (logistic, linear_svm, ridge, lda) with --head"
        )
    weights, intercepts = found
    # of two classes with a decision value d, the scores are -d and d: softmax is the sigmoid of 2 d
    if len(intercepts) == 1 and not has_probabilities:
        scale *= 2
    weights, intercepts = weights.T * scale, intercepts * scale
    return (Layer(weights.astype(np.float32), intercepts.astype(np.float32)),)


def _decision_weights(estimator: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Decision values as ``features @ weights.T + intercepts``: (K, D) or (1, D); None if not so.

    The affine steps before a linear model are folded into its coefficients.
    """
    steps = (
        [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    )
    *before, model = steps
    is_linear = hasattr(model, "coef_") and hasattr(model, "intercept_")
    if not is_linear or not all(type(step) in (CommonScaler, PCA) for step in before):
        return None
    weights = np.atleast_2d(np.asarray(model.coef_, np.float64))
    intercepts = np.atleast_1d(np.asarray(model.intercept_, np.float64))
    for step in reversed(before):
        weights = weights @ step.components_ if isinstance(step, PCA) else weights / step.scale_
        if step.mean_ is not None:
            intercepts = intercepts - weights @ step.mean_
    return weights, intercepts
