"""Convert heads to fully connected layers, for exported models."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline.errors import UsageError
from pipeline.heads.calibration import TemperatureScaling, label_order
from pipeline.heads.dense import DenseClassifier
from pipeline.heads.novelty import NoveltyDetector
from pipeline.heads.prototype import NearestPrototype
from pipeline.heads.scaler import CommonScaler
from pipeline.models.bundle import Bundle
from pipeline.models.top_block import TopBlockClassifier
from pipeline.spec import CLASSES
from pipeline.text import counted, printable

LinearWeights = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

AFFINE = (CommonScaler, PCA, StandardScaler)


class HeadLayer(NamedTuple):
    """A fully connected layer: kernel (D, U) and bias (U,), float32."""

    kernel: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


class NotExportableError(UsageError):
    """A head that cannot be exported; the message says why."""


def why_not_exportable(bundle: Bundle) -> str:
    """Return the reason why no ONNX model can equal a head, or an empty string."""
    if bundle.task != CLASSES:
        return f"only classifiers are exported; this head is of {bundle.task}: use pipeline.predict"
    if views := bundle.plan.views:
        return (
            f"its probabilities are means over {counted(views + 1, 'view')} of an image: classify "
            f"without --tta"
        )
    model = steps_of(bundle.estimator)[-1]
    if isinstance(model, NoveltyDetector):
        return "it compares patches with a bank, which is no network: use pipeline.predict"
    if getattr(model, "weights", "uniform") != "uniform":
        return "skl2onnx ignores the weights of neighbors"
    if isinstance(model, DummyClassifier) and linear_weights(model) is None:
        return f"skl2onnx does not convert the strategy {printable(model.strategy)}"
    return ""


def head_layers(bundle: Bundle) -> Sequence[HeadLayer]:
    """Return the head's layers, with a ReLU between them.

    The last layer's sigmoid (U = 1) is the second class's probability; its softmax (U = K) is the
    probability of each class. Raises NotExportableError for a head that is not such a network.
    """
    estimator = bundle.estimator
    if isinstance(estimator, TopBlockClassifier):  # composition adds the layers before it
        estimator = estimator.head
    if isinstance(estimator, DenseClassifier):
        kernel, bias, output_kernel, output_bias = estimator.weights_
        output = HeadLayer(output_kernel, output_bias)
        return HeadLayer(kernel, bias), _in_label_order(output, estimator, bundle)
    is_scaled = isinstance(estimator, TemperatureScaling)
    scale = 1 / estimator.temperature if is_scaled else 1.0
    found = decision_weights(estimator)
    if found is None:
        raise NotExportableError(
            f"{printable(bundle.head)} cannot be exported to Keras or LiteRT: it is not a layer of "
            f"a network; choose --format onnx"
        )
    weights, intercepts = found
    # two classes with a decision value d have scores -d and d: their softmax is the sigmoid of 2 d
    if len(intercepts) == 1 and is_scaled:
        scale *= 2
    weights, intercepts = weights.T * scale, intercepts * scale
    layer = HeadLayer(weights.astype(np.float32), intercepts.astype(np.float32))
    return (_in_label_order(layer, steps_of(estimator)[-1], bundle),)


def _in_label_order(layer: HeadLayer, estimator: Any, bundle: Bundle) -> HeadLayer:
    """Return the last layer with its outputs in the order of the bundle's classes."""
    order = label_order(estimator, len(bundle.classes))
    if len(layer.bias) == 1:  # of the class in classes_[1]
        return layer if order[1] == 1 else HeadLayer(-layer.kernel, -layer.bias)
    return HeadLayer(layer.kernel[:, order], layer.bias[order])


def steps_of(estimator: Any) -> list[Any]:
    """Return the transformers of a fitted head that do something, and its classifier."""
    if isinstance(estimator, TemperatureScaling):
        estimator = estimator.estimator
    steps = [step for _, step in getattr(estimator, "steps", [("", estimator)])]
    return [step for step in steps if step != "passthrough"]


def linear_weights(model: Any) -> LinearWeights | None:
    """Return weights (K, D), or (1, D) for two classes, and intercepts; None if not linear."""
    if isinstance(model, NearestPrototype):  # without |x|², which all classes share
        weights, intercepts = model.centroids_, -(model.centroids_**2).sum(axis=1) / 2
    elif isinstance(model, NearestCentroid) and model.metric == "euclidean":
        deviations = np.where(model.within_class_std_dev_, model.within_class_std_dev_, 1)
        weights = 2 * model.centroids_ / deviations**2
        intercepts = 2 * np.log(model.class_prior_)
        intercepts = intercepts - ((model.centroids_ / deviations) ** 2).sum(axis=1)
    elif isinstance(model, DummyClassifier) and model.strategy == "prior":
        weights = np.zeros((len(model.classes_), model.n_features_in_))
        intercepts = np.log(model.class_prior_)
    elif hasattr(model, "coef_") and not isinstance(model, SVC):  # which has weights per pair
        weights, intercepts = model.coef_, model.intercept_
    else:
        return None
    weights = np.atleast_2d(np.asarray(weights, np.float64))
    intercepts = np.atleast_1d(np.asarray(intercepts, np.float64))
    if len(weights) == 2:  # two classes have one decision value
        weights, intercepts = np.diff(weights, axis=0), np.diff(intercepts)
    return weights, intercepts


def target_weights(model: Any) -> LinearWeights | None:
    """Return weights (T, D) and intercepts (T,) of labels or a number; None if not linear."""
    models = model.estimators_ if isinstance(model, OneVsRestClassifier) else [model]
    if not all(hasattr(each, "coef_") for each in models):
        return None
    weights = np.concatenate([np.atleast_2d(each.coef_) for each in models])
    return weights, np.concatenate([np.atleast_1d(each.intercept_) for each in models])


def decision_weights(estimator: Any, task: str = CLASSES) -> LinearWeights | None:
    """Return the weights of decision values on unscaled features; None if they are not linear.

    See `linear_weights` and `target_weights`; the affine steps before are folded in.
    """
    *before, model = steps_of(estimator)
    found = linear_weights(model) if task == CLASSES else target_weights(model)
    if found is None or not all(type(step) in AFFINE for step in before):
        return None
    weights, intercepts = found
    for step in reversed(before):
        if isinstance(step, PCA):
            deviations = np.sqrt(step.explained_variance_) if step.whiten else 1
            weights = (weights / deviations) @ step.components_
        elif step.scale_ is not None:
            weights = weights / step.scale_
        if step.mean_ is not None and getattr(step, "with_mean", True):
            intercepts = intercepts - weights @ step.mean_
    return weights, intercepts
