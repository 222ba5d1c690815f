"""Compose a base in a .onnx file and its trained head as one ONNX model, without TensorFlow."""

from pathlib import Path
from typing import Any

from pipeline.bases.config import BaseConfig
from pipeline.bases.onnx_checks import load_checked
from pipeline.engines.onnx_rewriter import rewrite, row_shape
from pipeline.errors import BadDataError
from pipeline.heads.dense import DenseClassifier
from pipeline.models.bundle import Bundle
from pipeline.models.head_onnx import append_head, append_layers
from pipeline.spec import split_layer_key
from pipeline.text import printable

AXES_ARE_INPUTS = 18  # first opset in which ReduceMean and ReduceMax take their axes as an input


def compose_file(bundle: Bundle, config: BaseConfig) -> Any:
    """Build the model: "images" (B, S, S, 3) uint8 RGB -> "probabilities" (B, K) float32.

    Raises NotExportableError as `append_head`, BadDataError for features of another shape.
    """
    from onnx import TensorProto, helper

    name, pooling = split_layer_key(bundle.layer)
    (layer,) = config.file_layers([name])
    shape = row_shape(layer, config)
    if pooling != "none":
        shape = shape[-1:]
    if shape != bundle.shape:
        raise BadDataError(
            f"the head takes {printable(bundle.layer)} of shape {bundle.shape}; "
            f"{bundle.spec.base} gives {shape}"
        )
    layer = layer._replace(name="layer/rows")  # the name "features" is taken
    model = rewrite(load_checked(Path(config.base).expanduser()), config, [layer])
    graph, value = model.graph, layer.name
    version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    is_map = len(row_shape(layer, config)) == 3
    if is_map and (pooling != "none" or bundle.input == "pooled"):
        kind = "ReduceMax" if pooling == "max" else "ReduceMean"
        if version >= AXES_ARE_INPUTS:
            axes = helper.make_tensor("pooled/axes", TensorProto.INT64, [2], [1, 2])
            graph.initializer.append(axes)
            value = add(kind, [value, "pooled/axes"], "pooled", keepdims=0)
        else:
            value = add(kind, [value], "pooled", axes=[1, 2], keepdims=0)
    elif is_map:
        value = add("Flatten", [value], "flat", axis=1)
    is_dense = isinstance(bundle.estimator, DenseClassifier)
    kind = TensorProto.FLOAT if is_dense else TensorProto.DOUBLE
    add("Cast", [value], "features", to=kind)
    del graph.output[:]
    width = [graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch", None]
    graph.output.append(helper.make_tensor_value_info("features", kind, width))
    return append_layers(model, bundle) if is_dense else append_head(model, bundle)
