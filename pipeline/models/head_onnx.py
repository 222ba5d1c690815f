"""Append scikit-learn heads to ONNX models, with skl2onnx."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.heads.calibration import TemperatureScaling, label_order
from pipeline.heads.inputs import feature_count
from pipeline.heads.scaler import CommonScaler
from pipeline.models.bundle import Bundle
from pipeline.models.head_layers import (
    NotExportableError,
    head_layers,
    linear_weights,
    steps_of,
)
from pipeline.text import printable

OPSETS = {"": 15, "ai.onnx.ml": 1}  # ONNX Runtime reads them since version 1.10 (2021)
MAX_OPSET = 21  # that skl2onnx 1.20 writes; later ones read it alike
PREFIX = "head/"  # of the head's names in the model


def append_head(base: Any, bundle: Bundle) -> Any:
    """Return a base with a head after it: "probabilities" (B, K) float32.

    ``base`` is an ONNX model with the output "features" (B, D) float64, in which scikit-learn
    computes after `CommonScaler`: trees compare the same numbers with their thresholds.

    Raises NotExportableError for a head that skl2onnx cannot convert, or of more than 2 GiB.
    """
    from onnx import TensorProto, checker, compose, helper, numpy_helper

    version = next(each.version for each in base.opset_import if each.domain in ("", "ai.onnx"))
    opsets = OPSETS | {"": version}
    estimator, head = bundle.estimator, _convert(bundle, opsets)
    if (size := base.ByteSize() + head.ByteSize()) > checker.MAXIMUM_PROTOBUF:
        raise NotExportableError(
            f"{printable(bundle.head)} cannot be exported: it needs {size / 2**30:.1f} GiB, and an "
            f"ONNX file has at most 2. Train on pooled features or fewer images"
        )
    head.ir_version = base.ir_version
    for model in (base, head):
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(*entry) for entry in opsets.items())
    _, scores = (PREFIX + output.name for output in head.graph.output)  # (B,) labels, (B, K)
    joined = compose.merge_models(
        base, head, [("features", "features")], outputs=[scores], prefix2=PREFIX
    )
    graph, output = joined.graph, ["probabilities"]
    del graph.value_info[:]  # it declares the float32 outputs of trees as float64
    order = label_order(steps_of(estimator)[-1], len(bundle.classes))
    if np.any(np.diff(order) < 0):
        graph.initializer.append(numpy_helper.from_array(order, "order"))
        graph.node.append(
            helper.make_node("Gather", [scores, "order"], [scores := "ordered"], axis=1)
        )
    if isinstance(estimator, TemperatureScaling):
        temperature = np.array(estimator.temperature)
        graph.initializer.append(numpy_helper.from_array(temperature, "temperature"))
        graph.node.append(helper.make_node("Div", [scores, "temperature"], ["logits"]))
        graph.node.append(helper.make_node("Softmax", ["logits"], [scores := "softmax"], axis=1))
    graph.node.append(helper.make_node("Cast", [scores], output, to=TensorProto.FLOAT))
    del graph.output[:]
    shape = [None, len(bundle.classes)]
    graph.output.append(helper.make_tensor_value_info(*output, TensorProto.FLOAT, shape))
    return joined


def append_layers(base: Any, bundle: Bundle) -> Any:
    """Return a base with a dense head after it; as `append_head`, but for float32 features."""
    from onnx import TensorProto, helper, numpy_helper

    graph, value = base.graph, "features"

    def constant(name: str, values: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    *hidden, last = head_layers(bundle)
    for number, layer in enumerate([*hidden, last]):
        name = f"{PREFIX}{number}"
        weights = [constant(f"{name}/kernel", layer.kernel), constant(f"{name}/bias", layer.bias)]
        value = add("Gemm", [value, *weights], f"{name}/sums")
        if layer is not last:
            value = add("Relu", [value], f"{name}/relu")
    if len(last.bias) == 1:
        second = add("Sigmoid", [value], f"{PREFIX}second")
        first = add("Sub", [constant(f"{PREFIX}one", 1), second], f"{PREFIX}first")
        add("Concat", [first, second], "probabilities", axis=1)
    else:
        add("Softmax", [value], "probabilities", axis=1)
    del graph.output[:]
    shape = [None, len(bundle.classes)]
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)
    graph.output.append(output)
    return base


def save_onnx(proto: Any, about: Mapping[str, Any], path: Path) -> None:
    """Write one valid ONNX file with ``about`` in its metadata: text, or JSON for other values."""
    import onnx  # takes a second

    metadata = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in about.items()
    }
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def _convert(bundle: Bundle, opsets: Mapping[str, int]) -> Any:
    """Return an ONNX model: "features" (B, D) float64 -> labels, and probabilities or scores."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import DoubleTensorType

    is_scaled = isinstance(bundle.estimator, TemperatureScaling)
    *before, model = map(_as_known, steps_of(bundle.estimator))
    options = {"zipmap": False, "raw_scores": True} if is_scaled else {"zipmap": False}
    width = feature_count(bundle.shape, bundle.input)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # skl2onnx reads SVC's probA_
            return to_onnx(
                make_pipeline(*before, model),
                initial_types=[("features", DoubleTensorType([None, width]))],
                options={id(model): options},
                target_opset={**opsets, "": min(opsets[""], MAX_OPSET)},
            )
    except Exception as error:  # it raises many types
        reason = printable(" ".join(str(error).split()))[:200]
        raise NotExportableError(
            f"{printable(bundle.head)} cannot be exported: skl2onnx does not convert it ({reason})"
        ) from error


def _as_known(step: Any) -> Any:
    """Return an equivalent estimator that skl2onnx converts right, or the step itself.

    skl2onnx 1.20 gives wrong probabilities for two classes of LDA, and labels for ridge.
    """
    if isinstance(step, CommonScaler):
        scaler = StandardScaler(with_mean=step.mean_ is not None)
        scaler.mean_, scaler.scale_ = step.mean_, np.full(step.n_features_in_, step.scale_)
        scaler.n_features_in_ = step.n_features_in_
        return scaler
    weights = linear_weights(step)
    if weights is None:
        return step
    logistic = LogisticRegression()
    logistic.coef_, logistic.intercept_ = weights
    logistic.classes_, logistic.n_features_in_ = np.arange(len(step.classes_)), step.n_features_in_
    return logistic
