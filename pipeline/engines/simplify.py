"""Fewer operations with the same results."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.engines.network import Activation, Affine, Conv, Operation, Pad, Pool

_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "hard_sigmoid")


def simplified(operations: Sequence[Operation], outputs: Sequence[str]) -> tuple[Operation, ...]:
    """The same results by fewer operations; those of ``outputs`` keep their names."""
    made = _with_pads_merged(_with_affines_folded(operations, outputs))
    wanted, needed = set(outputs), []
    for operation in reversed(made):
        if operation.name in wanted:
            needed.append(operation)
            wanted |= set(operation.inputs)
    return tuple(reversed(needed))


def _with_affines_folded(
    operations: Sequence[Operation], outputs: Sequence[str]
) -> list[Operation]:
    """An affine operation becomes part of the convolution, or affine operation, that it follows,
    where nobody else wants that one's result."""
    readers = Counter(name for operation in operations for name in operation.inputs)
    made: dict[str, Operation] = {}
    for operation in operations:
        if isinstance(operation, Affine):
            source = operation.inputs[0]
            before = made.get(source)
            if isinstance(before, Conv | Affine) and readers[source] == 1 and source not in outputs:
                del made[source]
                operation = _folded(before, operation)
        made[operation.name] = operation
    return list(made.values())


def _folded(before: Conv | Affine, affine: Affine) -> Operation:
    scale, offset, name = affine.scale, affine.offset, affine.name
    if isinstance(before, Affine):
        return replace(
            before,
            name=name,
            scale=before.scale * scale,
            offset=before.offset * scale + offset,
        )
    weight = before.weight * scale[:, None, None, None]
    return replace(before, name=name, weight=weight, bias=before.bias * scale + offset)


def _with_pads_merged(operations: Sequence[Operation]) -> list[Operation]:
    """Zeros around become part of what reads them, where that makes no difference."""
    made = {operation.name: operation for operation in operations}
    merged = []
    for operation in operations:
        pad = made.get(operation.inputs[0])
        if isinstance(pad, Pad) and isinstance(operation, Conv | Pool):
            top, left, bottom, right = np.add(operation.pads, pad.pads).tolist()
            wider = replace(operation, inputs=pad.inputs, pads=(top, left, bottom, right))
            if isinstance(wider, Conv) or _ignores_zeros(wider, made.get(pad.inputs[0])):
                operation = wider
        merged.append(operation)
    return merged


def _ignores_zeros(pool: Pool, padded: Operation | None) -> bool:
    """Whether zeros around have no say: where nothing is below zero, each window's largest value
    is the same without them, if it holds any other."""
    return (
        pool.function == "max"
        and isinstance(padded, Activation)
        and padded.function in _NEVER_NEGATIVE
        and max(pool.pads) < min(pool.size)
    )
