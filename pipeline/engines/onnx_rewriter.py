"""Rewrite a .onnx file as a base of `OnnxEngine`: uint8 RGB (B, S, S, 3) in, float32 layers out.

The optimised file is used only if it computes what ONNX Runtime computes without optimisation from
the original file and pixels that NumPy has preprocessed.
"""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.config import RUNTIMES, BaseConfig
from pipeline.bases.onnx_checks import (
    ancestors,
    constants_of,
    input_of,
    inputs_of,
    load_checked,
    open_plain,
    prepared,
    save_model,
)
from pipeline.bases.onnx_file import FileLayer, patch_grid
from pipeline.engines import SAMPLE_IMAGES, Engine
from pipeline.engines.onnx import MODEL_FILE
from pipeline.engines.worker import (
    conversions_folder,
    in_subprocess,
    is_complete,
    largest_error,
    load_runtime,
    run_all,
    runtime_version,
    unpooled_layers,
)
from pipeline.text import printable

PREFIX = "base/"  # of the file's own names; those of layers contain no slash
TRIAL_FILE = "trial.json"
CHANNELS_FIRST = "pixels/maps"  # the prepared pixels, (B, 3, S, S)
TOLERANCE = 1e-4  # largest accepted relative error of a row, in the L2 norm
_TO_MAPS, _TO_ROWS = (0, 3, 1, 2), (0, 2, 3, 1)

log = logging.getLogger("pipeline")


def open_file(
    config: BaseConfig, layers: Sequence[str], images: npt.NDArray[np.uint8] | None
) -> Engine:
    """Open the layer keys of a .onnx file, rewritten once; ``images`` are compared, else noise.

    Raises the errors of `BaseConfig.file_layers`.
    """
    config.file_layers(unpooled_layers(layers))
    weights = config.description.sha256
    version = runtime_version(RUNTIMES["onnx"])
    folder = conversions_folder(config, layers, weights) / f"onnx-{version}"
    if not is_complete(folder):
        log.info("preparing %s for ONNX Runtime", printable(config.base))
        with tempfile.TemporaryDirectory() as scratch:
            sample = Path(scratch) / "images.npy"
            if images is None or not len(images):
                shape = (2, config.size, config.size, 3)
                images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
            np.save(sample, images[:SAMPLE_IMAGES])
            in_subprocess("rewrite", config, layers=layers, folder=folder, images=sample)
    trial = json.loads((folder / TRIAL_FILE).read_text())
    engine = load_runtime("onnx")(folder, layers=layers, optimize=trial["optimize"])
    engine.version, engine.weights, engine.error = version, weights, trial["error"]
    return engine


def convert(
    config: BaseConfig, names: Sequence[str], images: npt.NDArray[np.uint8], folder: Path
) -> None:
    """Write the model of `rewrite` into a folder, with its trial on images (n, S, S, 3)."""
    layers = config.file_layers(names)
    path = Path(config.base).expanduser()
    save_model(rewrite(load_checked(path), config, layers), folder, MODEL_FILE)
    expected = plain_features(load_checked(path), config, layers, images)
    for optimize in (True, False):
        engine = load_runtime("onnx")(folder, layers=names, optimize=optimize)
        received = run_all(engine, images, len(images))
        error = {name: largest_error(expected[name], received[name]) for name in names}
        if max(error.values()) <= TOLERANCE:
            break
        log.warning(
            "%s: ONNX Runtime's optimisation changes features by %.0e: it is switched off",
            printable(config.base), max(error.values()),
        )  # fmt: skip
    trial = {"optimize": optimize, "error": error}
    (folder / TRIAL_FILE).write_text(json.dumps(trial))


def rewrite(model: Any, config: BaseConfig, layers: Sequence[FileLayer]) -> Any:
    """Return the model of a file as one that computes layers from pixels."""
    from onnx import TensorProto, compose, helper

    compose.add_prefix(model, PREFIX, inplace=True)
    graph = model.graph
    entry = input_of(graph)
    tensors = [PREFIX + layer.tensor for layer in layers]
    kept = ancestors(graph, tensors)
    nodes = [node for node in graph.node if kept & set(node.output)]
    weights = [tensor for tensor in graph.initializer if tensor.name in kept]
    nodes = _fold_pads(nodes, constants_of(graph), tensors)
    before, after = _Nodes(), _Nodes()
    for layer, tensor in zip(layers, tensors, strict=True):
        after.output(layer, tensor, config)
    kind = entry.type.tensor_type.elem_type
    for node in nodes if kind == TensorProto.FLOAT else ():
        orders = [list(each.ints) for each in node.attribute if each.name == "perm"]
        if list(node.input) == [entry.name] and orders == [list(_TO_MAPS)]:
            node.CopyFrom(helper.make_node("Identity", [CHANNELS_FIRST], list(node.output)))
    is_read = any(entry.name in inputs_of(node) for node in nodes)
    before.preprocess(config, entry.name if is_read else "", kind)
    for field in ("node", "initializer", "input", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend([*before.nodes, *nodes, *after.nodes])
    graph.initializer.extend([*weights, *before.constants, *after.constants])
    batch: Any = config.measured.batch or "batch"
    shape = [batch, config.size, config.size, 3]
    graph.input.append(helper.make_tensor_value_info(before.images, TensorProto.UINT8, shape))
    for layer in layers:
        shape = [batch, *row_shape(layer, config)]
        graph.output.append(helper.make_tensor_value_info(layer.name, TensorProto.FLOAT, shape))
    model.ClearField("metadata_props")
    return model


def _fold_pads(
    nodes: Sequence[Any], constants: Mapping[str, Any], outputs: Sequence[str]
) -> list[Any]:
    """Move zero pads into the convolutions after them; ``outputs`` are kept.

    tf2onnx writes MobileNetV2's four as nodes of their own. ONNX Runtime leaves its blocked layout
    for each, as it may not fuse them (`WRONG_OPTIMIZERS`): the network took 50 % longer.
    """
    from onnx import helper, numpy_helper

    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in dict.fromkeys(inputs_of(node)):
            readers.setdefault(name, []).append(node)
    folded: list[int] = []
    for node in (each for each in nodes if each.op_type == "Pad"):
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        sides, value, axes = ([*node.input, "", "", ""][index] for index in (1, 2, 3))
        known = sides in constants and (not value or value in constants) and not axes
        convs = readers.get(node.output[0], [])
        if not known or attributes.get("mode", b"constant") != b"constant" or not convs:
            continue
        pads = numpy_helper.to_array(constants[sides]).reshape(2, -1)  # before, after
        is_zero = not value or not np.any(numpy_helper.to_array(constants[value]))
        is_spatial = pads.shape == (2, 4) and not np.any(pads[:, :2]) and np.all(pads >= 0)
        if not (is_zero and is_spatial) or node.output[0] in outputs:
            continue
        if all(_takes_pads(conv, node.output[0]) for conv in convs):
            for conv in convs:
                conv.input[0] = node.input[0]
                own = [each for each in conv.attribute if each.name == "pads"]
                if not own:
                    conv.attribute.append(helper.make_attribute("pads", [0, 0, 0, 0]))
                    own = [conv.attribute[-1]]
                own[0].ints[:] = (np.array(own[0].ints) + pads[:, 2:].ravel()).tolist()
            folded.append(id(node))
    return [node for node in nodes if id(node) not in folded]


def _takes_pads(node: Any, name: str) -> bool:
    """Return whether a node is a convolution of a tensor, with pads as numbers."""
    modes = [each.s for each in node.attribute if each.name == "auto_pad"]
    is_first = list(node.input).index(name) == 0 if name in node.input else False
    return node.op_type == "Conv" and is_first and modes in ([], [b"NOTSET"])


def row_shape(layer: FileLayer, config: BaseConfig) -> tuple[int, ...]:
    """Return the shape of one row: (H, W, C), or (C,) for a vector or the class token."""
    if layer.form != "tokens":
        return layer.shape
    count, channels = layer.shape
    side = patch_grid(count, config.size)
    is_class = config.file_options["tokens"] == "cls"
    return (channels,) if is_class else (side, side, channels)


def plain_features(
    model: Any, config: BaseConfig, layers: Sequence[FileLayer], images: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float32]]:
    """Compute layers of the original file without optimisation: (n, S, S, 3) -> (n, *row)."""
    session = open_plain(model, [layer.tensor for layer in layers])
    (entry,) = session.get_inputs()
    rescale, layout = config.rescale, config.file_options["layout"]
    values = images[..., ::-1] if rescale.bgr else images
    feed = prepared(values, layout, entry.type, rescale.scale, rescale.offset)
    batch = config.measured.batch or 1
    feed = feed[np.arange(len(feed) + -len(feed) % batch) % len(feed)]  # whole batches
    names = [layer.tensor for layer in layers]
    starts = range(0, len(feed), batch)
    runs = [session.run(names, {entry.name: feed[start : start + batch]}) for start in starts]
    rows = {}
    for layer, parts in zip(layers, zip(*runs, strict=True), strict=True):
        maps = np.concatenate(parts)[: len(images)].astype(np.float32)
        if layer.form == "tokens" and config.file_options["tokens"] == "cls":
            maps = maps[:, 0]
        elif layer.form == "tokens":
            side = patch_grid(layer.shape[0], config.size)
            maps = maps[:, -(side**2) :].reshape(len(maps), side, side, -1)
        rows[layer.name] = maps.transpose(_TO_ROWS) if layer.form == "nchw" else maps
    return rows


class _Nodes:
    """Collect nodes and constants."""

    images = "images"  # the input

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def preprocess(self, config: BaseConfig, output: str, kind: int) -> None:
        """Preprocess as `plain_features`, channels first: a loop over three numbers is slow.

        Bytes transpose faster than floats. A file with channels last transposes them itself, which
        `rewrite` leaves out: MobileNetV2 of tf2onnx took 20 % longer. ``output`` : input of the
        file, empty if nothing reads it.
        """
        from onnx import TensorProto

        rescale = config.rescale
        value = self.node("Transpose", [self.images], "pixels/bytes", perm=_TO_MAPS)
        if rescale.bgr:
            order = self.constant("pixels/order", np.array([2, 1, 0]))
            value = self.node("Gather", [value, order], "pixels/bgr", axis=1)
        value = self.node("Cast", [value], "pixels/float", to=TensorProto.FLOAT)
        for name, numbers, neutral in (("Mul", rescale.scale, 1), ("Add", rescale.offset, 0)):
            if set(numbers) != {neutral}:
                factors = np.array(numbers, np.float32).reshape(3, 1, 1)
                constant = self.constant(f"pixels/{name}/numbers", factors)
                value = self.node(name, [value, constant], f"pixels/{name}")
        value = self.node("Identity", [value], CHANNELS_FIRST)
        if not output:
            return
        if config.file_options["layout"] == "nhwc":
            value = self.node("Transpose", [value], "pixels/rows", perm=_TO_ROWS)
        if kind == TensorProto.FLOAT:
            self.node("Identity", [value], output)
        else:
            self.node("Cast", [value], output, to=kind)

    def output(self, layer: FileLayer, tensor: str, config: BaseConfig) -> None:
        """Turn a tensor of the file into rows of a layer."""
        from onnx import TensorProto

        name, value = f"rows/{layer.name}", tensor
        shape = row_shape(layer, config)
        if layer.form == "nchw":
            value = self.node("Transpose", [value], name, perm=_TO_ROWS)
        elif layer.form == "tokens":
            count = layer.shape[0]
            first = count - shape[0] * shape[1] if len(shape) == 3 else 0
            indices = np.arange(first, count) if len(shape) == 3 else np.array(0)
            chosen = self.constant(f"{name}/indices", indices.astype(np.int64))
            value = self.node("Gather", [value, chosen], name, axis=1)
            if len(shape) == 3:
                sides = self.constant(f"{name}/shape", np.array([0, *shape], np.int64))
                value = self.node("Reshape", [value, sides], f"{name}/grid")
        self.node("Cast", [value], layer.name, to=TensorProto.FLOAT)
