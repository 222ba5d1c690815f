"""Measure the upper limit of this machine: matrix products, which convolutions consist of."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIDE = 2048  # three matrices: 48 MB, larger than caches; a product: 17 GFLOP, well below a second
MINIMUM_SECONDS = 1.0  # of a measurement


def open_matrix_product() -> Callable[[], dict[str, float]]:
    """Return a function that measures GFLOP/s of NumPy's float32 products on all cores."""
    random = np.random.default_rng(0)
    left, right = random.random((2, SIDE, SIDE), np.float32)
    product = left @ right  # the first product starts the threads

    def measure() -> dict[str, float]:
        count, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < MINIMUM_SECONDS:
            np.matmul(left, right, out=product)
            count += 1
        return {"gflops": 2 * SIDE**3 * count / seconds / 1e9}

    return measure


def operations_per_image(model: Any) -> int:
    """Return the floating-point operations of a Keras model per image.

    As in published counts, two for each multiplication of a convolution or dense layer; others are
    negligible. A kernel is applied once per position of its layer's output.
    """
    total = 0
    for layer in model.layers:
        if getattr(layer, "layers", None):  # ConvNeXt nests Sequential models
            total += operations_per_image(layer)
            continue
        positions = math.prod(layer.output.shape[1:-1]) if hasattr(layer.output, "shape") else 0
        kernels = (weight for weight in layer.weights if "kernel" in weight.name)
        total += 2 * positions * sum(math.prod(kernel.shape) for kernel in kernels)
    return total
