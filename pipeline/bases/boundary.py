"""Cut a base in two at its freeze boundary: frozen layers below, layers that learn above."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.bases.registry import Base
from pipeline.errors import UsageError
from pipeline.keras_backend import keras


class Boundary(NamedTuple):
    """Where a base is cut: behind ``layer``, the last frozen one, whose output is (H, W, C)."""

    layer: str
    unfrozen: tuple[str, ...]
    shape: tuple[int, int, int]


def find_boundary(base_model: Any, base: Base, first_unfrozen: str) -> Boundary:
    """Find the tensor that ``first_unfrozen`` and everything beside and behind it hangs on.

    VGG16's ``block5_conv1`` -> ``block4_pool``, (9, 9, 512) at 150 pixels. Of several branches that
    a block begins with, the first layer of any stands for all.

    Raises UsageError for an unknown layer, and for one before which several tensors cross.
    """
    names = [layer.name for layer in base_model.layers]
    if first_unfrozen not in names:
        raise UsageError(
            f"{base.name} has no layer {first_unfrozen!r}: --list-layers {base.name} shows them"
        )
    boundaries = _boundaries(base_model)
    if boundary := boundaries.get(first_unfrozen):
        return boundary
    place = names.index(first_unfrozen)
    before = [name for name in names[:place] if name in boundaries][-1:]
    after = [name for name in names[place:] if name in boundaries][:1]
    raise UsageError(
        f"{base.name} cannot be cut before {first_unfrozen}: expected a layer before which a "
        f"single feature map crosses, with frozen layers below and weights to train above; the "
        f"nearest: {' and '.join(before + after) or 'none'}"
    )


def upper_model(base_model: Any, boundary: Boundary) -> Any:
    """The base from its boundary on: (B, H, W, C) float32 -> what its last layer gives.

    It shares the base's layers, so what is trained here is trained there.
    """
    return keras.Model(base_model.get_layer(boundary.layer).output, base_model.output)


@contextlib.contextmanager
def unfrozen(base_model: Any, boundary: Boundary) -> Iterator[dict[str, Any]]:
    """Let the layers above the boundary learn; afterwards the base is as it was, and frozen.

    Yields their trainable variables by name, ``block5_conv1/kernel``. BatchNorm stays as it is,
    scale and offset included: to Keras, a frozen one is one in inference mode.
    """
    layers = [base_model.get_layer(name) for name in boundary.unfrozen]
    before = [layer.get_weights() for layer in layers]
    base_model.trainable = True  # a frozen model hides what its layers could train
    for layer in base_model.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name in boundary.unfrozen and not is_norm
    try:
        yield {weight.path: weight for layer in layers for weight in layer.trainable_variables}
    finally:
        base_model.trainable = False
        for layer, weights in zip(layers, before, strict=True):
            layer.set_weights(weights)


def _boundaries(base_model: Any) -> dict[str, Boundary]:
    """Every layer that a base can be unfrozen from, in its order.

    Sets of operations are integers, one bit for each: networks have up to a thousand.
    """
    operations = base_model.operations  # sorted: parents come first
    places = {id(operation.output): place for place, operation in enumerate(operations)}
    parents: list[list[int]] = []
    ancestors: list[int] = []  # of each operation, with itself
    for place, operation in enumerate(operations):
        is_input = isinstance(operation, keras.layers.InputLayer)
        tensors = [] if is_input else keras.tree.flatten(operation.input)
        parents.append([places[id(tensor)] for tensor in tensors])
        below = 1 << place
        for parent in parents[-1]:
            below |= ancestors[parent]
        ancestors.append(below)

    def cut_after(place: int) -> Boundary | None:
        layer, below = operations[place], ancestors[place]
        above = [each for each in range(len(operations)) if not below >> each & 1]
        crossing = {parent for each in above for parent in parents[each] if below >> parent & 1}
        # an operation that is no layer, such as ConvNeXt's sums, cannot be cached by name
        if not isinstance(layer, keras.Layer) or not parents[place] or crossing != {place}:
            return None
        layers = [operations[each] for each in above if isinstance(operations[each], keras.Layer)]
        norm = keras.layers.BatchNormalization
        learn = any(each.weights and not isinstance(each, norm) for each in layers)
        if len(layer.output.shape) != 4 or not learn:
            return None
        names = tuple(each.name for each in layers)
        return Boundary(layer.name, names, tuple(layer.output.shape[1:]))

    single = {place: above[0] for place, above in enumerate(parents) if len(above) == 1}
    cuts = {parent: cut_after(parent) for parent in set(single.values())}
    return {operations[at].name: cut for at, parent in single.items() if (cut := cuts[parent])}
