"""Check and measure a .onnx file from anywhere: ``python -m pipeline.bases.onnx_checks``.

`pipeline.bases.onnx_file` starts it as a process with limited memory. It reads nothing but the
file, the data files beside it that the file names, and the probe of its sidecar.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.file_base import read_sidecar
from pipeline.bases.onnx_file import FileLayer, patch_grid
from pipeline.bases.probe import check_probe, probe_name, probe_values
from pipeline.errors import BadDataError, PipelineError

MAX_BYTES = 2**33  # of the file with its data files; the largest of keras.applications has 1.4 GB
# Bytes beside five copies of the weights; every tensor of VGG16 at 224 needs 0.2 GB
MEMORY = 4 * 2**30
SPLIT_BYTES = 2**31 - 2**24  # a protobuf message has at most 2 GiB
# Results would differ between runs, or depend on earlier images
RANDOM_OPERATORS = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    "Bernoulli", "Loop", "Scan",
}  # fmt: skip


def load_checked(path: Path, *, with_data: bool = True) -> Any:
    """Load a model ``with_data`` of its data files; raise BadDataError for one that is refused."""
    import onnx

    if path.stat().st_size > MAX_BYTES:
        raise BadDataError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class
        raise BadDataError("it is not an ONNX file, or truncated") from error
    if not model.graph.node or not model.ir_version:
        raise BadDataError("it is not an ONNX file, or contains no network")
    for tensor in _tensors(model):
        _check_tensor(tensor, path.parent)
    constants = constants_of(model.graph)
    inlined = {(each.domain, each.name) for each in model.functions}
    for graph in (model.graph, *model.functions):
        for node in _nodes(graph):
            if (node.domain, node.op_type) not in inlined:
                _check_node(node, constants)
    try:
        onnx.checker.check_model(path)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BadDataError(f"it is not valid ONNX: {reason[:200]}") from error
    if with_data:
        onnx.load_external_data_for_model(model, os.fspath(path.parent))
    return model


def constants_of(graph: Any) -> dict[str, Any]:
    """Return the weights and other constants of a graph by name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in (each for each in _nodes(graph) if each.op_type == "Constant"):
        if node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    return constants


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, and those of its branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs):
                yield from _nodes(branch)


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor with values, in constants, attributes, branches and functions."""
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        yield from getattr(graph, "initializer", ())
        for attribute in (each for node in graph.node for each in node.attribute):
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            yield attribute.t
            graphs += [each for each in (attribute.g, *attribute.graphs) if each.node]


def _external(tensor: Any) -> dict[str, str]:
    is_external = tensor.data_location == tensor.EXTERNAL or len(tensor.external_data)
    return {entry.key: entry.value for entry in tensor.external_data} if is_external else {}


def _check_tensor(tensor: Any, folder: Path) -> None:
    """Raise BadDataError unless the file, or a data file in its folder, has a tensor's values."""
    from onnx import TensorProto, helper

    if tensor.data_type == TensorProto.UNDEFINED and not tensor.dims:
        return  # an attribute of another kind
    name = tensor.name[:80]
    if tensor.data_type == TensorProto.STRING:
        size = 0
    else:
        try:
            size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except KeyError:
            raise BadDataError(f"{name} has an unknown type") from None
    declared = math.prod(tensor.dims) * size
    if min(tensor.dims, default=0) < 0:
        raise BadDataError(f"{name} has a negative shape")
    if info := _external(tensor):
        location = info.get("location", "")
        if location in ("", ".", "..") or set(location) & set("/\\:\0"):
            raise BadDataError(f"its data file {location!r} is not a plain file name beside it")
        file = folder / location
        if file.is_symlink() or not file.is_file():
            raise BadDataError(
                f"its data file {location} is missing or a link: place the file itself beside it"
            )
        try:
            offset = int(info.get("offset", 0))
            length = int(info.get("length", declared))
        except ValueError:
            raise BadDataError(f"{name} has an invalid place in {location}") from None
        if min(offset, length) < 0 or offset + length > min(file.stat().st_size, MAX_BYTES):
            raise BadDataError(f"{name} ends after its data file {location}")
        stored = length
    elif tensor.HasField("raw_data"):
        stored = len(tensor.raw_data)
    else:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        stored = max(len(getattr(tensor, field)) for field in fields) * size
    if (declared > 1.01 * stored and declared - stored > 1) or declared > MAX_BYTES:
        raise BadDataError(f"{name} declares {declared:,} bytes; the file contains {stored:,}")


def _check_node(node: Any, constants: Mapping[str, Any]) -> None:
    """Raise BadDataError for an operator of another domain, or one with random results."""
    from onnx import numpy_helper

    if node.domain not in ("", "ai.onnx"):
        raise BadDataError(
            f"{node.op_type} is of the domain {node.domain}: only ONNX's own operators are run"
        )
    attributes = {each.name: each for each in node.attribute}
    is_training = "training_mode" in attributes and attributes["training_mode"].i != 0
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        constant = constants.get(node.input[2])
        is_training = constant is None or bool(numpy_helper.to_array(constant))
    if is_training:
        raise BadDataError(f"{node.op_type} is in training mode: export the network in eval mode")
    if node.op_type in RANDOM_OPERATORS:
        raise BadDataError(f"{node.op_type} is random or keeps a state: features would not repeat")


def _describe(path: Path) -> dict[str, Any]:
    import onnx

    model = load_checked(path, with_data=False)
    graph = model.graph
    entry = input_of(graph)
    tensor = entry.type.tensor_type
    kinds = onnx.TensorProto
    if tensor.elem_type not in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.UINT8):
        raise BadDataError("its input is not of floats or bytes")
    sides = [side.dim_value for side in tensor.shape.dim]  # 0 where it is open
    if len(sides) != 4:
        raise BadDataError(f"its input {entry.name} has {len(sides)} axes; expected 4, images")
    layout = _layout(sides, entry.name, graph)
    height, width = sides[2:] if layout == "nchw" else sides[1:3]
    if layout and height and width and height != width:
        raise BadDataError(f"it takes images of {height} × {width} pixels; expected a square")
    parameters = (t for t in graph.initializer if t.data_type in (kinds.FLOAT, kinds.FLOAT16))
    return {
        "sha256": _digest(path, model),
        "image_size": max(height, width) if layout else 0,
        "parameters": sum(math.prod(each.dims) for each in parameters),
        "batch": sides[0],
        "layout": layout,
    }


def _layout(sides: Sequence[int], name: str, graph: Any) -> str:
    """Return where the channels of the input are, by its shape, else by the first operator."""
    if 3 in (sides[1], sides[3]) and sides[1] != sides[3]:
        return "nchw" if sides[1] == 3 else "nhwc"
    if sides[1] and sides[3] and sides[1] != 3:
        raise BadDataError(f"its input has the shape {sides}; expected 3 channels, RGB")
    for node in graph.node:
        if name in node.input and node.op_type == "Conv":
            return "nchw"
        orders = [list(each.ints) for each in node.attribute if each.name == "perm"]
        if name in node.input and node.op_type == "Transpose" and orders == [[0, 3, 1, 2]]:
            return "nhwc"
    return ""


def _digest(path: Path, model: Any) -> str:
    """Return the SHA-256 of the file; with data files, that of all their digests."""
    digests = []
    for file in _files(path, model):
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _files(path: Path, model: Any) -> list[Path]:
    """Return the file of a model and its data files, if these are not loaded yet."""
    names = {info["location"] for tensor in _tensors(model) if (info := _external(tensor))}
    return [path, *(path.parent / name for name in sorted(names))]


def open_plain(model: Any, tensors: Sequence[str]) -> Any:
    """Open a model in ONNX Runtime without optimisation, with these tensors as its outputs."""
    import onnx
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        is_large = model.ByteSize() > SPLIT_BYTES
        file = save_model(model, Path(folder)) if is_large else model.SerializeToString()
        return onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])


def save_model(model: Any, folder: Path, name: str = "model.onnx") -> Path:
    """Save a model; with more than 2 GB, its weights in another file."""
    import onnx

    path = folder / name
    is_large = model.ByteSize() > SPLIT_BYTES
    options = {"save_as_external_data": True, "location": "weights.bin"} if is_large else {}
    onnx.save_model(model, path, **options)
    return path


def prepared(
    images: npt.NDArray[Any], layout: str, kind: str, scale: Any = 1.0, offset: Any = 0.0
) -> npt.NDArray[Any]:
    """Preprocess with NumPy: (B, S, S, 3) uint8 -> the input of a file, of ``kind``."""
    types = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(double)": "f8"}
    values = images * np.float32(scale) + np.float32(offset)
    values = values.transpose(0, 3, 1, 2) if layout == "nchw" else values
    return np.ascontiguousarray(values, types.get(kind, "u1"))


def _measure(path: Path, image_size: int, layout: str) -> dict[str, Any]:
    import onnx

    graph = (model := load_checked(path, with_data=False)).graph
    _limit_memory(_files(path, model))
    onnx.load_external_data_for_model(model, os.fspath(path.parent))
    name = (image := input_of(graph)).name
    batch = image.type.tensor_type.shape.dim[0].dim_value
    outputs = [each.name for each in graph.output]
    varying = _dependents(graph, name)
    tensors = [out for node in graph.node for out in node.output if out in varying]
    session = open_plain(model, tensors)
    (entry,) = session.get_inputs()
    kinds = {out.name: out.type for out in session.get_outputs()}
    floats = [each for each in tensors if kinds[each] in FLOAT_KINDS]
    images = np.random.default_rng(0).integers(0, 256, (batch or 1, image_size, image_size, 3))
    feed = prepared(images.astype(np.uint8), layout, entry.type, 1 / 128, -1)
    arrays = dict(zip(floats, session.run(floats, {entry.name: feed}), strict=True))
    weights = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    layers: dict[str, FileLayer] = {}
    for node in graph.node:
        for tensor in (each for each in node.output if each in arrays):
            form, shape = _form(arrays[tensor].shape, batch or 1, image_size, layout)
            if form:
                count = sum(weights.get(each, 0) for each in node.input)
                safe = _safe_name(tensor, layers)
                layers[safe] = FileLayer(safe, tensor, node.op_type, form, shape, count)
    bottlenecks = _bottlenecks(graph, outputs, name, varying)
    by_tensor = {layer.tensor: layer for layer in layers.values()}
    found = [by_tensor[each] for each in bottlenecks if each in by_tensor]
    maps = [each for each in found if each.form == "tokens" or max(each.shape[:-1], default=0) > 1]
    if not (maps or found):
        raise BadDataError("none of its tensors is a map, a list of tokens or a vector per image")
    default = (maps or found)[-1]
    if not batch:
        batch = 1
        with contextlib.suppress(Exception):  # of any type: it takes one image at a time
            (pair,) = session.run([default.tensor], {entry.name: np.concatenate([feed, feed])})
            batch = 0 if _is_pair_of(pair, arrays[default.tensor]) else 1
    _check_probe(path, session, layers, default, layout, batch or 1)
    return {
        "layers": [e._asdict() for e in layers.values()],
        "default": default.name,
        "batch": batch,
    }


def _check_probe(
    path: Path,
    session: Any,
    layers: Mapping[str, FileLayer],
    default: FileLayer,
    layout: str,
    batch: int,
) -> None:
    """Raise BadDataError unless the sidecar's probe image has the features that it states.

    Maps and patches are averaged, as with ``--pooling avg``.
    """
    sidecar = read_sidecar(path)
    if (probe := sidecar.get("probe")) is None:
        return
    (entry,) = session.get_inputs()
    layer = layers.get(probe.get("layer", default.name))
    size = sidecar.get("image-size", entry.shape[2])
    if layer is None or not isinstance(size, int):
        raise BadDataError(f"{probe_name(path)} needs image-size, and a layer that the file has")
    values = np.repeat(probe_values(path, size), batch, axis=0)  # (B, S, S, 3)
    feed = prepared(values, layout, entry.type)
    received = session.run([layer.tensor], {entry.name: feed})[0][0].astype(np.float64)
    if layer.form == "tokens" and sidecar.get("tokens", "cls") == "cls":
        received = received[0]
    elif layer.form == "tokens":
        received = received[-(patch_grid(len(received), size) ** 2) :].mean(axis=0)
    elif layer.form != "vector":
        received = received.mean(axis=(1, 2) if layer.form == "nchw" else (0, 1))
    check_probe(path, layer.name, received)


OUT_OF_MEMORY = ("bad_alloc", "BFCArena", "Failed to allocate", "would require more than")
FLOAT_KINDS = ("tensor(float)", "tensor(float16)", "tensor(double)")


def _is_pair_of(pair: npt.NDArray[Any], one: npt.NDArray[Any]) -> bool:
    return pair.shape == (2, *one.shape[1:]) and all(
        np.allclose(each, one[0], rtol=1e-2, atol=1e-2) for each in pair
    )


def _dependents(graph: Any, name: str) -> set[str]:
    """Return the tensors whose values depend on the input; shapes do not."""
    varying = {name}
    for node in graph.node:
        if varying.intersection(inputs_of(node)) and node.op_type not in ("Shape", "Size"):
            varying.update(filter(None, node.output))
    return varying - {name}


def _form(
    shape: Sequence[int], batch: int, image_size: int, layout: str
) -> tuple[str, tuple[int, ...]]:
    """Return the form of a tensor, see `FileLayer`, and its shape for one image; "" if unknown."""
    first, *rest = shape
    if len(shape) < 2 or first != batch or not min(rest):
        return "", ()
    if len(rest) == 1:
        return "vector", tuple(rest)
    if len(rest) == 2:
        return ("tokens", tuple(rest)) if patch_grid(rest[0], image_size) else ("", ())
    if len(rest) != 3:
        return "", ()
    a, b, c = rest
    is_nchw, is_nhwc = b == c, a == b
    if is_nchw and (not is_nhwc or layout == "nchw"):
        return "nchw", (b, c, a)
    return ("nhwc", (a, b, c)) if is_nhwc else ("", ())


def ancestors(graph: Any, tensors: Sequence[str]) -> set[str]:
    """Return the tensors that these are computed from, themselves included."""
    producers = {out: node for node in graph.node for out in node.output}
    found, open_ends = set(tensors), list(tensors)
    while open_ends:
        node = producers.get(open_ends.pop())
        new = set(inputs_of(node) if node else ()) - found
        found |= new
        open_ends += new
    return found


def inputs_of(node: Any) -> list[str]:
    """Return the tensors that a node reads, also in its branches."""
    branches = (graph for each in node.attribute for graph in (each.g, *each.graphs))
    inner = [name for graph in branches for each in graph.node for name in inputs_of(each)]
    return [*filter(None, node.input), *inner]


def input_of(graph: Any) -> Any:
    """Return the only input that is not a weight; raise BadDataError if there are several."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs) or "none"
        raise BadDataError(f"expected one input, an image; it has {len(inputs)}: {names[:80]}")
    return inputs[0]


def _bottlenecks(graph: Any, outputs: Sequence[str], name: str, varying: set[str]) -> list[str]:
    """Return the tensors, in order, that everything from the input to the output passes through."""
    ends = [each for each in outputs if each in varying]
    if not ends:
        raise BadDataError("its output does not depend on its input")
    needed = max((ancestors(graph, [end]) & {*varying, name} for end in ends), key=len)
    nodes = [node for node in graph.node if needed & set(node.output)]
    last_use = {each: index for index, node in enumerate(nodes) for each in inputs_of(node)}
    found, reach = [], last_use.get(name, 0)
    for index, node in enumerate(nodes):
        results = [each for each in node.output if each in needed]
        if reach <= index and len(results) == 1:
            found += results
        reach = max(reach, *(last_use.get(each, index) for each in results))
    return found


def _safe_name(tensor: str, taken: Mapping[str, Any]) -> str:
    """Return a layer's name: without what separates layers, poolings and folders.

    >>> _safe_name("/features/features.0/Conv_output_0", {}), _safe_name("relu:0", {})
    ('features.features.0.Conv', 'relu')
    """
    text = tensor.strip("/").removesuffix(":0").removesuffix("_output_0").replace("/", ".")
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text) or "_"
    safe = safe.lstrip(".-") or "_"
    number = 2
    while (name := safe if number == 2 else f"{safe}_{number}") in taken:
        number += 1
    return name


def _limit_memory(files: Sequence[Path]) -> None:
    """Limit this process to `MEMORY` and five copies of the weights in files."""
    with contextlib.suppress(ImportError):  # Windows has no limits
        import resource

        limit = MEMORY + 5 * min(sum(file.stat().st_size for file in files), MAX_BYTES)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        is_lower = hard not in (resource.RLIM_INFINITY, -1) and hard < limit
        resource.setrlimit(resource.RLIMIT_AS, (hard if is_lower else limit, hard))


JOBS: Mapping[str, Callable[..., dict[str, Any]]] = {"describe": _describe, "measure": _measure}


def _main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    job, path = JOBS[request.pop("job")], Path(request.pop("path"))
    del request["version"]
    answer_stream = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is not the answer
    _limit_memory([path])
    too_large = f"it needs more than {MEMORY / 2**30:.0f} GiB for one image"
    try:
        answer = job(path, **request)
    except PipelineError as error:
        answer = {"refused": str(error)}
    except MemoryError:
        answer = {"refused": too_large}
    except Exception as error:  # ONNX Runtime's share no base class
        reason = " ".join(str(error).split())
        if any(text in reason for text in OUT_OF_MEMORY):
            answer = {"refused": too_large}
        else:
            answer = {"refused": f"ONNX Runtime cannot run it: {reason[:200]}"}
    os.write(answer_stream, json.dumps(answer).encode())


if __name__ == "__main__":
    _main()
