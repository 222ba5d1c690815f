"""Cached features as the rows that heads take: flattened or pooled."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable
from pipeline.errors import BadDataError
from pipeline.models.bundle import rows_of

if TYPE_CHECKING:
    from pipeline.heads.head import Input

ROWS_PER_BLOCK = 1024  # 32 MiB of (4, 4, 512) maps at a time when only their means are kept


def input_of(
    table: FeatureTable, layer: str, *, wanted: "Input | None", default: "Input"
) -> "Input":
    """Which input a head gets: the one asked for, else its default.

    A layer that is one vector per image counts as pooled; pixels are flat unless asked otherwise,
    for their mean colour says little.
    """
    if len(table.layers[layer]) == 1:
        return "pooled"
    if wanted is None and table.spec.base == "pixels":
        return "flat"
    return wanted or default


def read_input(
    table: FeatureTable, layer: str, rows: npt.NDArray[np.int64], kind: "Input"
) -> npt.NDArray[np.float32]:
    """Features of the rows, in their order: (n, H·W·C) flat or (n, C), the mean of each map.

    Raises BadDataError if one of them is not finite.
    """
    shape = table.layers[layer]
    if kind == "flat" or len(shape) == 1:
        features = rows_of(table.features(layer, rows), kind)
    else:
        features = np.empty((len(rows), shape[-1]), np.float32)
        order = np.argsort(rows)
        for start in range(0, len(rows), ROWS_PER_BLOCK):
            places = order[start : start + ROWS_PER_BLOCK]
            features[places] = rows_of(table.features(layer, rows[places]), kind)
    if not np.isfinite(features).all():
        raise BadDataError(
            f"{table.path} holds values in {layer} that are not finite; "
            f"extract again with --dtype float32"
        )
    return features
