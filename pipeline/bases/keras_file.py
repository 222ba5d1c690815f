"""Check and describe the network in a .keras file from anywhere, without TensorFlow.

Such a file is a zip archive of a JSON description and HDF5 weights. Keras imports whatever class a
description names: only layers and operations for images are accepted, before Keras sees the file.
"""

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from pipeline.bases.file_base import FileDescription, version_of
from pipeline.errors import BadDataError
from pipeline.text import printable

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MAX_BYTES = 2**32  # of a member; the largest network of keras.applications has 1.4 GB
MAX_CONFIG_BYTES = 2**25
MAX_EXPANSION = 100  # of a member; trained weights hardly shrink
CONTAINERS = ("Functional", "Sequential", "Model")
LAYERS = frozenset((
    "Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average", "AveragePooling2D",
    "BatchNormalization", "CategoryEncoding", "Concatenate", "Conv2D", "Conv2DTranspose",
    "Cropping2D", "Dense", "DepthwiseConv2D", "Dot", "Dropout", "ELU", "Flatten", "GaussianDropout",
    "GaussianNoise", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "GroupNormalization",
    "Identity", "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling2D", "Maximum",
    "Minimum", "Multiply", "Normalization", "PReLU", "Permute", "ReLU", "RepeatVector", "Rescaling",
    "Reshape", "SeparableConv2D", "Softmax", "SpatialDropout2D", "SpectralNormalization",
    "Subtract", "UnitNormalization", "UpSampling2D", "ZeroPadding2D",
))  # fmt: skip
# Augmentation: these change images in training only
RANDOM_LAYERS = frozenset((
    "RandomBrightness", "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation",
    "RandomZoom",
))  # fmt: skip
OPERATIONS = ("keras.src.ops.numpy", "keras.src.ops.nn")  # modules of x + 3 and keras.ops.relu
PARTS = (  # modules of what a layer's description may contain
    "keras", "keras.initializers", "keras.regularizers", "keras.constraints",
    "keras.dtype_policies",
)  # fmt: skip
PART_KINDS_OF_KERAS = ("DTypePolicy",)  # of the module "keras"
TO_VECTORS = ("Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D")


class FlatLayer(NamedTuple):
    """A layer of the flattened network: layers of models inside it are its own."""

    name: str
    kind: str
    parents: tuple[str, ...]


class Contents(NamedTuple):
    """What a file contains; ``image_size`` is 0 for any; ``last_layer`` gives the last maps."""

    layers: tuple[FlatLayer, ...]
    last_layer: str
    image_size: int
    parameters: int
    config: Mapping[str, Any]  # of the model, as Keras deserialises it


def describe(path: Path, version: tuple[int, ...]) -> FileDescription:
    """Check a file and describe it; raises BadDataError, one line, if it is refused.

    ``version`` : of the file, `pipeline.bases.file_base.version_of`.
    """
    contents, digest = _read(path, version)
    return FileDescription(
        sha256=digest,
        image_size=contents.image_size,
        parameters=contents.parameters,
        last_layer=contents.last_layer,
    )


def read_contents(path: Path) -> Contents:
    """Check a file and return its layers; raises BadDataError, one line, if it is refused."""
    return _read(path, version_of(path))[0]


@lru_cache
def _read(path: Path, version: tuple[int, ...]) -> tuple[Contents, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            text = _member(archive, CONFIG, MAX_CONFIG_BYTES)
            parameters = _count_numbers(_member(archive, WEIGHTS, MAX_BYTES))
        # how the network was trained, inner models too: optimizers and losses are of no use here
        config = json.loads(text, object_hook=_without_compilation)
        network = _Network(config)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        layers, last = tuple(network.layers.values()), network.last_layer()
        contents = Contents(layers, last, network.image_size, parameters, config)
    except BadDataError as error:
        raise BadDataError(f"--base {printable(path)} is refused: {error}") from error
    except Exception as error:  # zipfile, json and h5py raise errors of many types
        raise BadDataError(
            f"--base {printable(path)} is not a model that Keras 3 saved with "
            f"model.save('FILE.keras'), or damaged"
        ) from error
    return contents, digest


def _without_compilation(value: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key != "compile_config"}


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > min(limit, MAX_EXPANSION * info.compress_size + 2**16):
        raise BadDataError(f"{name} declares {info.file_size:,} bytes")
    return archive.read(name)


def _count_numbers(weights: bytes) -> int:
    """Return how many floats an HDF5 file contains; raise BadDataError for links and bombs."""
    count = 0

    links: list[str] = []

    def collect_link(name: str, link: object) -> None:
        if not isinstance(link, h5py.HardLink):  # h5py loses an exception that is raised here
            links.append(name)

    def check_array(name: str, node: object) -> None:
        nonlocal count
        if not isinstance(node, h5py.Dataset) or "/optimizer/" in f"/{name}":
            return
        is_inside = not (node.is_virtual or node.external)
        if not is_inside or node.nbytes > MAX_EXPANSION * node.id.get_storage_size():
            raise BadDataError(
                f"its weights {printable(name)} declare {node.nbytes:,} bytes that it does not "
                f"contain"
            )
        count += node.size if node.dtype.kind == "f" else 0

    with h5py.File(io.BytesIO(weights), "r") as file:
        file.visititems_links(collect_link)
        if links:
            raise BadDataError(f"its weights link to {printable(links[0])}")
        file.visititems(check_array)
    return count


class _Network:
    """The flattened graph of a description, checked."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.layers: dict[str, FlatLayer] = {}
        self.image_size = 0
        self._shapes: dict[str, Sequence[int | None]] = {}  # of outputs, where a reader states them
        _check_classes(config)
        inputs = _input_layers(config)
        self._counts = Counter(_leaf_names(config))
        if len(inputs) != 1:
            raise BadDataError(f"expected one input, an image; it has {len(inputs)}")
        self._read_input(inputs[0])
        (self._output,) = self._read_container(config, (), [""])

    def _read_input(self, layer: Mapping[str, Any]) -> None:
        shape = layer["config"]["batch_shape"]
        if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise BadDataError(
                f"its input has the shape {tuple(shape)}; expected square RGB images, "
                f"(None, S, S, 3)"
            )
        self.image_size = shape[1] or 0

    def _read_container(
        self, container: Mapping[str, Any], path: tuple[str, ...], inputs: list[str]
    ) -> list[str]:
        """Add the layers of a model; returns the names of its output layers."""
        config, values = container["config"], dict[str, list[str]]()
        previous = inputs
        open_inputs = list(inputs)
        for layer in config["layers"]:
            kind, name = layer["class_name"], layer["config"]["name"]
            if kind == "InputLayer":
                values[name] = [open_inputs.pop(0)]
                continue
            if len(layer.get("inbound_nodes", "1")) != 1:
                raise BadDataError(f"its layer {printable(name)} is used more than once")
            tensors = list(_tensors(layer.get("inbound_nodes", [])))
            parents = [each for tensor in tensors for each in values[tensor["keras_history"][0]]]
            if container["class_name"] == "Sequential":
                parents = previous
            for tensor, parent in zip(tensors, parents, strict=False):
                self._shapes[parent] = tensor["shape"]
            if kind in CONTAINERS:
                outputs = self._read_container(layer, (*path, name), parents)
            else:
                flat = flat_name(path, name, self._counts)
                if flat in self.layers:
                    raise BadDataError(f"two of its layers have the name {printable(flat)}")
                self.layers[flat] = FlatLayer(flat, kind, tuple(parents))
                outputs = [flat]
            values[name] = previous = outputs
        if container["class_name"] == "Sequential":
            return previous
        outputs = config["output_layers"]
        outputs = [outputs] if isinstance(outputs[0], str) else outputs
        if len(outputs) != 1:
            raise BadDataError(f"expected one output; it has {len(outputs)}")
        return values[outputs[0][0]]

    def last_layer(self) -> str:
        """Return the layer of the last maps: that before pooling or flattening, else the output."""
        name = self._output
        while (layer := self.layers[name]).kind not in TO_VECTORS:
            if len(layer.parents) != 1 or not layer.parents[0]:
                return self._output
            name = layer.parents[0]
        (name,) = layer.parents
        # a Dropout changes nothing; maps of 1 × 1 are already averages
        while name and (
            self.layers[name].kind.endswith("Dropout") or self._shapes.get(name, (0, 0))[1] == 1
        ):
            (name,) = self.layers[name].parents
        if not name:
            raise BadDataError("it has no layer of maps: it flattens the image itself")
        return name


def flat_name(path: Sequence[str], name: str, counts: Mapping[str, int]) -> str:
    """Return the name of a layer in the flattened network: with its models' if it is not unique."""
    return name if counts[name] == 1 else "_".join([*path, name])


def _leaf_names(container: Mapping[str, Any]) -> Iterator[str]:
    for layer in container["config"]["layers"]:
        if layer["class_name"] in CONTAINERS:
            yield from _leaf_names(layer)
        elif layer["class_name"] != "InputLayer":
            yield layer["config"]["name"]


def _input_layers(container: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if container.get("class_name") not in CONTAINERS:
        raise BadDataError("it contains no Functional or Sequential model")
    layers = container["config"]["layers"]
    first = layers[0] if layers else {"class_name": ""}
    if first["class_name"] in CONTAINERS:
        return _input_layers(first)
    return [layer for layer in layers if layer["class_name"] == "InputLayer"]


def _tensors(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the description of every tensor in the arguments of a call."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        yield value["config"]
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _check_classes(value: Any) -> None:
    """Raise BadDataError for a class that is not a layer or operation for images, or its part."""
    if isinstance(value, dict) and "class_name" in value:
        _check_class(value)
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_classes(each)


def _check_class(value: Mapping[str, Any]) -> None:
    kind, module = value["class_name"], value.get("module")
    if kind == "__keras_tensor__" and module is None:
        return
    is_layer = module == "keras.layers" and kind in LAYERS | RANDOM_LAYERS
    is_model = kind in CONTAINERS and str(module).split(".")[0] == "keras"
    is_part = module in PARTS[1:] or (module == PARTS[0] and kind in PART_KINDS_OF_KERAS)
    registered = value.get("registered_name")
    is_own = registered is None or (module in OPERATIONS and registered == kind)
    if not (is_layer or is_model or is_part or module in OPERATIONS) or not (is_own or is_model):
        raise BadDataError(
            f"{printable(f'{module}.{kind}')} is not a layer for images: Lambda, custom and other "
            f"layers are not loaded"
        )
