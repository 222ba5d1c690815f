"""Write small .onnx files: networks of random weights, and files that are to be refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 32  # pixels: height and width of the images
CHANNELS = 8


def weights(name: str, *shape: int) -> Any:
    values = np.random.default_rng(len(name)).normal(size=shape).astype("f4")
    return numpy_helper.from_array(values / np.sqrt(np.prod(shape[1:])).astype("f4"), name)


def conv_nodes() -> tuple[list[Any], list[Any]]:
    """Return nodes and weights of a network from ``images`` to ``vector``, (B, 8)."""
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["/conv"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["/conv"], ["/relu:0"]),
        helper.make_node("MaxPool", ["/relu:0"], ["/pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["/pool"], ["average"]),
        helper.make_node("Flatten", ["average"], ["vector"]),
    ]
    return nodes, [weights("kernel", CHANNELS, 3, 3, 3)]


def token_nodes(*, class_token: bool = True) -> tuple[list[Any], list[Any]]:
    """Return nodes and weights of a transformer's frame: patches of 8 pixels, a layer norm."""
    arrays = [weights("patches", CHANNELS, 3, 8, 8), weights("first", 1, 1, CHANNELS)]
    arrays += [numpy_helper.from_array(np.ones(CHANNELS, "f4"), "scale")]
    arrays += [numpy_helper.from_array(np.array([0, CHANNELS, -1]), "flat")]
    arrays += [numpy_helper.from_array(np.array([1]), "one")]
    nodes = [
        helper.make_node("Conv", ["images", "patches"], ["grid"], strides=[8, 8]),
        helper.make_node("Reshape", ["grid", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
    ]
    last = "tokens"
    if class_token:
        arrays += [numpy_helper.from_array(np.array([CHANNELS]), "width")]
        nodes += [
            helper.make_node("Shape", ["images"], ["size"], start=0, end=1),
            helper.make_node("Concat", ["size", "one", "width"], ["target"], axis=0),
            helper.make_node("Expand", ["first", "target"], ["class"]),
            helper.make_node("Concat", ["class", "tokens"], [last := "joined"], axis=1),
        ]
    nodes.append(helper.make_node("LayerNormalization", [last, "scale"], ["vector"], axis=-1))
    return nodes, arrays


def write_onnx_file(
    path: Path,
    nodes: Sequence[Any] | None = None,
    arrays: Sequence[Any] | None = None,
    *,
    shape: Sequence[Any] = ("batch", 3, SIZE, SIZE),
    inputs: Sequence[Any] = (),
    rows: Sequence[Any] = (CHANNELS,),
) -> Any:
    """Write a network, by default that of `conv_nodes`, with outputs (B, *rows); return it."""
    default_nodes, default_arrays = conv_nodes()
    graph = helper.make_graph(
        default_nodes if nodes is None else nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape), *inputs],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", *rows])],
        default_arrays if arrays is None else arrays,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return model
