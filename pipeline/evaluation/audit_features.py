"""The features that the audit compares: pooled, in memory or reduced to principal components."""

import math

import numpy as np

from pipeline.cache.file import FeatureTable
from pipeline.evaluation.groups import Rows
from pipeline.evaluation.lazy_features import LazyFeatures
from pipeline.evaluation.probe import (
    FeatureRows,
    Floats,
    OutlierLimit,
    fit_components,
    row_blocks,
    sample_rows,
)
from pipeline.evaluation.rows import input_of, read_input
from pipeline.heads.inputs import PIXELS_PER_SIDE, feature_count, shrink_images

MAX_BYTES = 512 << 20  # of features in memory
COMPONENTS = 256  # of more features: no step of the audit uses more


def read_small(table: FeatureTable, layer: str, memory: float = math.inf) -> Floats | None:
    """Return the features to compare (N, D) of a table; None if they are not small.

    At most they take a quarter of ``memory``, and 512 MiB.
    """
    fits = 4 * len(table) * _width(table, layer) <= min(memory / 4, MAX_BYTES)
    return audit_input(table, layer, np.arange(len(table))) if fits else None


def open_features(
    table: FeatureTable, layer: str, rows: Rows, memory: float = math.inf
) -> FeatureRows:
    """Read the features to audit (n, D) if they take a quarter of ``memory`` and 512 MiB at most.

    Otherwise write their 256 principal components to a temporary file, in blocks.
    """
    width = _width(table, layer)
    if 4 * len(rows) * width <= min(memory / 4, MAX_BYTES):
        return audit_input(table, layer, rows)
    sample = audit_input(table, layer, rows[sample_rows(len(rows))])
    limit = OutlierLimit(sample)
    components = fit_components(limit(sample), COMPONENTS)
    numbers = np.arange(len(rows))
    reduced = (
        (numbers[block], components.transform(limit(audit_input(table, layer, rows[block]))))
        for block in row_blocks(len(rows), width)
    )
    return LazyFeatures.write(reduced, (len(rows), components[-1].n_components_))


def _width(table: FeatureTable, layer: str) -> int:
    """Return the number of columns of `audit_input`."""
    shape = table.layers[layer]
    if table.spec.base == "pixels" and len(shape) == 3:
        return math.prod(min(side, PIXELS_PER_SIDE) for side in shape[:2]) * shape[2]
    return feature_count(shape, input_of(table, layer, requested=None, default="pooled"))


def audit_input(table: FeatureTable, layer: str, rows: Rows) -> Floats:
    """Return the features to audit (n, D): pooled maps, or 16 × 16 pixels."""
    input = input_of(table, layer, requested=None, default="pooled")
    features = read_input(table, layer, rows, input)
    shape = table.layers[layer]
    if table.spec.base != "pixels" or len(shape) != 3:
        return features
    return shrink_images(features.reshape(len(rows), *shape), PIXELS_PER_SIDE)
