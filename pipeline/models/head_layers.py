"""Convert heads to fully connected layers, for exported models."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline

from pipeline.errors import UsageError
from pipeline.heads.calibration import TemperatureScaling, label_order
from pipeline.heads.dense import DenseClassifier
from pipeline.heads.scaler import CommonScaler
from pipeline.models.bundle import Bundle
from pipeline.models.top_block import TopBlockClassifier
from pipeline.text import counted, printable


class HeadLayer(NamedTuple):
    """A fully connected layer: kernel (D, U) and bias (U,), float32."""

    kernel: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def head_layers(bundle: Bundle) -> Sequence[HeadLayer]:
    """Return the head's layers, with a ReLU between them.

    The last layer's sigmoid (U = 1) is the second class's probability; its softmax (U = K) is the
    probability of each class. Raises UsageError for a head that is not such a network.
    """
    estimator = bundle.estimator
    if views := bundle.plan.views:
        raise UsageError(
            f"the head {printable(bundle.head)} cannot be exported: its probabilities are means "
            f"over {counted(views + 1, 'view')} of an image; classify without --tta"
        )
    if isinstance(estimator, TopBlockClassifier):  # composition adds the layers before it
        estimator = estimator.head
    if isinstance(estimator, DenseClassifier):
        kernel, bias, output_kernel, output_bias = estimator.weights_
        output = HeadLayer(output_kernel, output_bias)
        return HeadLayer(kernel, bias), _in_label_order(output, estimator, bundle)
    scale, is_scaled = 1.0, isinstance(estimator, TemperatureScaling)
    if is_scaled:
        scale, estimator = 1 / estimator.temperature, estimator.estimator
    decision_weights = _decision_weights(estimator)
    if decision_weights is None:
        raise UsageError(
            f"the head {printable(bundle.head)} cannot be exported: it is not a layer of a "
            f"network; choose dense or a linear one (logistic, linear_svm, ridge, lda) with --head"
        )
    weights, intercepts = decision_weights
    # two classes with a decision value d have scores -d and d: their softmax is the sigmoid of 2 d
    if len(intercepts) == 1 and is_scaled:
        scale *= 2
    weights, intercepts = weights.T * scale, intercepts * scale
    layer = HeadLayer(weights.astype(np.float32), intercepts.astype(np.float32))
    return (_in_label_order(layer, estimator, bundle),)


def _in_label_order(layer: HeadLayer, estimator: Any, bundle: Bundle) -> HeadLayer:
    """Return the last layer with its outputs in the order of the bundle's classes."""
    order = label_order(estimator, len(bundle.classes))
    if len(layer.bias) == 1:  # of the class in classes_[1]
        return layer if order[1] == 1 else HeadLayer(-layer.kernel, -layer.bias)
    return HeadLayer(layer.kernel[:, order], layer.bias[order])


def _decision_weights(estimator: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Return weights (K, D) or (1, D) and intercepts of a linear head; None for another head.

    The affine steps before a linear model are folded into its coefficients.
    """
    is_pipeline = isinstance(estimator, Pipeline)
    *before, model = [step for _, step in estimator.steps] if is_pipeline else [estimator]
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
