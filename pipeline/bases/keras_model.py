"""Load the network in a .keras file, and flatten it: every layer is one of the base itself."""

import copy
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bases.file_base import read_sidecar
from pipeline.bases.keras_file import RANDOM_LAYERS, Contents, flat_name, read_contents
from pipeline.bases.probe import check_probe, probe_name, probe_values
from pipeline.errors import BadDataError
from pipeline.keras_backend import keras
from pipeline.text import printable

MAX_MAP_NUMBERS = 2**28  # of an image in a layer: 1 GiB


def load_file_base(path: Path, image_size: int) -> Any:
    """Return the frozen base in a file: (B, S, S, 3) float32 -> maps of its last layer.

    Keras loads it in safe mode, without optimizers and losses. Raises BadDataError, one line, for a
    file that `pipeline.bases.keras_file` refuses or Keras cannot load.
    """
    contents = read_contents(path)
    try:
        _check_size(contents)
        model = _build(contents)
        model.load_weights(path)
        base = _flatten(model, contents, image_size)
        if "probe" in read_sidecar(path):
            _check_probe(base, path, image_size)
    except BadDataError as error:
        raise BadDataError(f"--base {printable(path)} is refused: {error}") from error
    except Exception as error:  # of any type: it depends on the layer
        reason = printable(" ".join(str(error).split())[:200])
        raise BadDataError(f"--base {printable(path)}: Keras cannot load it: {reason}") from error
    base.trainable = False
    return base


def _build(contents: Contents) -> Any:
    """Return the network as it was checked, in safe mode, with new weights."""
    config = copy.deepcopy(contents.config)  # Keras changes it
    return keras.saving.deserialize_keras_object(config, safe_mode=True)


def _check_size(contents: Contents) -> None:
    """Raise BadDataError unless layers and file have as many weights; allocates none of them."""
    with keras.StatelessScope(initialize_variables=False):
        model = _build(contents)
    weights = [each for each in model.weights if "float" in str(each.dtype)]
    declared = sum(math.prod(each.shape) for each in weights)
    if declared != contents.parameters:
        raise BadDataError(
            f"its layers have {declared:,} weights; the file contains {contents.parameters:,}"
        )


def _check_probe(base: Any, path: Path, image_size: int) -> None:
    """Raise BadDataError unless the sidecar's probe image has the features that it states."""
    layer = read_sidecar(path)["probe"].get("layer", base.layers[-1].name)
    if layer not in [each.name for each in base.layers]:
        raise BadDataError(f"{probe_name(path)} needs a layer that the file has: {layer}")
    maps = keras.Model(base.input, base.get_layer(layer).output)
    values = np.asarray(maps(probe_values(path, image_size)), np.float64)[0]
    check_probe(path, layer, values.mean(axis=(0, 1)) if values.ndim == 3 else values)


def _flatten(model: Any, contents: Contents, image_size: int) -> Any:
    """Return a model of copies of all layers, those of inner models included, up to the last maps.

    Copies have one caller each: a layer of an inner model has an output there, too.
    """
    counts = Counter(_leaf_names(model))
    pairs: list[tuple[Any, Any]] = []

    def call(operation: Any, path: tuple[str, ...], arguments: Any, options: Any) -> Any:
        if isinstance(operation, keras.Model):
            tensors = [
                each for each in keras.tree.flatten((arguments, options)) if _is_tensor(each)
            ]
            return run(operation, (*path, operation.name), tensors)
        name = flat_name(path, operation.name, counts)
        is_layer = isinstance(operation, keras.Layer)
        own = name if is_layer else f"{name}_operation"
        is_random = type(operation).__name__ in RANDOM_LAYERS
        kind = keras.layers.Identity if is_random else type(operation)
        settings = {} if is_random else operation.get_config()
        result = (duplicate := kind.from_config({**settings, "name": own}))(*arguments, **options)
        if is_layer and not is_random:
            pairs.append((operation, duplicate))
        elif not is_layer:  # of keras.ops: only a layer has an output by name
            result = keras.layers.Identity(name=name)(result)
        if max(map(_numbers, keras.tree.flatten(result))) > MAX_MAP_NUMBERS:
            raise BadDataError(f"its layer {name} has over {MAX_MAP_NUMBERS:,} numbers an image")
        return result

    def run(container: Any, path: tuple[str, ...], tensors: list[Any]) -> Any:
        if isinstance(container, keras.Sequential):
            (value,) = tensors
            for layer in container.layers:
                value = call(layer, path, (value,), {})
            return value
        values = dict(zip(map(id, container.inputs), tensors, strict=True))
        for operation in container.operations:
            if isinstance(operation, keras.layers.InputLayer):
                continue
            (node,) = operation._inbound_nodes  # Keras has the arguments of a call nowhere else
            arguments, options = keras.tree.map_structure(
                lambda each, values=values: values[id(each)] if _is_tensor(each) else each,
                (node.arguments.args, node.arguments.kwargs),
            )
            result = call(operation, path, arguments, options)
            # not operation.output, which for a model is a tensor inside it
            values |= dict(zip(map(id, node.outputs), keras.tree.flatten(result), strict=True))
        return keras.tree.map_structure(lambda each: values[id(each)], container.output)

    images = keras.Input((image_size, image_size, 3), name="input")
    flat = keras.Model(images, run(model, (), [images]))
    for old, new in pairs:
        new.set_weights(old.get_weights())
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()
    return keras.Model(images, flat.get_layer(contents.last_layer).output, name=model.name)


def _leaf_names(container: Any) -> Iterator[str]:
    is_sequential = isinstance(container, keras.Sequential)
    for operation in container.layers if is_sequential else container.operations:
        if isinstance(operation, keras.Model):
            yield from _leaf_names(operation)
        elif not isinstance(operation, keras.layers.InputLayer):
            yield operation.name


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _numbers(tensor: Any) -> int:
    return math.prod(side or 1 for side in tensor.shape)
