"""Cut a base in two at its freeze boundary: frozen layers below, trained layers above."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.bases.registry import Base
from pipeline.errors import UsageError
from pipeline.keras_backend import keras


class Boundary(NamedTuple):
    """A cut after ``layer``, the last frozen one, whose output has the shape (H, W, C).

    ``unfrozen`` are the names of all layers above it.
    """

    layer: str
    unfrozen: tuple[str, ...]
    shape: tuple[int, int, int]


def find_boundary(base_model: Any, base: Base, first_unfrozen: str) -> Boundary:
    """Find the last frozen layer if ``first_unfrozen`` and all layers beside and after it train.

    VGG16's ``block5_conv1`` -> ``block4_pool``, (9, 9, 512) at 150 pixels. If a block begins with
    several branches, the first layer of any branch unfreezes all.

    Raises UsageError for an unknown layer, or one before which several tensors cross.
    """
    names = [layer.name for layer in base_model.layers]
    if first_unfrozen not in names:
        raise UsageError(
            f"{base.name} has no layer {first_unfrozen!r}: --list-layers {base.name} shows them"
        )
    boundaries = _find_boundaries(base_model)
    if boundary := boundaries.get(first_unfrozen):
        return boundary
    index = names.index(first_unfrozen)
    before = [name for name in names[:index] if name in boundaries][-1:]
    after = [name for name in names[index:] if name in boundaries][:1]
    raise UsageError(
        f"{base.name} cannot be cut before {first_unfrozen}: expected a layer before which a "
        f"single feature map crosses, with frozen layers below and weights to train above; the "
        f"nearest: {' and '.join(before + after) or 'none'}"
    )


def upper_model(base_model: Any, boundary: Boundary) -> Any:
    """Return the model of the layers above the boundary: (B, H, W, C) float32 -> last layer.

    It shares its layers with the base: training it trains the base.
    """
    return keras.Model(base_model.get_layer(boundary.layer).output, base_model.output)


@contextlib.contextmanager
def unfrozen(base_model: Any, boundary: Boundary) -> Iterator[dict[str, Any]]:
    """Make the layers above the boundary trainable; restore and freeze the base afterwards.

    Yields their trainable variables by name, ``block5_conv1/kernel``. BatchNorm layers stay frozen,
    scale and offset included: in Keras, a frozen one runs in inference mode.
    """
    layers = [base_model.get_layer(name) for name in boundary.unfrozen]
    before = [layer.get_weights() for layer in layers]
    base_model.trainable = True  # a frozen model hides trainable layers
    for layer in base_model.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name in boundary.unfrozen and not is_norm
    try:
        yield {weight.path: weight for layer in layers for weight in layer.trainable_variables}
    finally:
        base_model.trainable = False
        for layer, weights in zip(layers, before, strict=True):
            layer.set_weights(weights)


def _find_boundaries(base_model: Any) -> dict[str, Boundary]:
    """Map every layer from which a base can be unfrozen, in order, to its boundary.

    Sets of operations are integers, one bit per operation: networks have up to a thousand.
    """
    operations = base_model.operations  # sorted: parents first
    indices = {id(operation.output): index for index, operation in enumerate(operations)}
    parents: list[list[int]] = []
    ancestors: list[int] = []  # of each operation, itself included
    for index, operation in enumerate(operations):
        is_input = isinstance(operation, keras.layers.InputLayer)
        tensors = [] if is_input else keras.tree.flatten(operation.input)
        parents.append([indices[id(tensor)] for tensor in tensors])
        bits = 1 << index
        for parent in parents[-1]:
            bits |= ancestors[parent]
        ancestors.append(bits)

    def cut_after(index: int) -> Boundary | None:
        last = operations[index]
        is_frozen = [bool(ancestors[index] >> i & 1) for i in range(len(operations))]
        later = [i for i in range(len(operations)) if not is_frozen[i]]
        crossing = {parent for i in later for parent in parents[i] if is_frozen[parent]}
        # an operation that is not a layer, such as a sum of ConvNeXt, cannot be cached by name
        if not isinstance(last, keras.Layer) or not parents[index] or crossing != {index}:
            return None
        layers = [operations[i] for i in later if isinstance(operations[i], keras.Layer)]
        norm = keras.layers.BatchNormalization
        is_trainable = any(layer.weights and not isinstance(layer, norm) for layer in layers)
        if len(last.output.shape) != 4 or not is_trainable:
            return None
        names = tuple(layer.name for layer in layers)
        return Boundary(last.name, names, tuple(last.output.shape[1:]))

    only_parents = {index: each[0] for index, each in enumerate(parents) if len(each) == 1}
    cuts = {parent: cut_after(parent) for parent in set(only_parents.values())}
    return {operations[i].name: cut for i, parent in only_parents.items() if (cut := cuts[parent])}
