"""What this machine could do at best: matrix products, which is what convolutions are."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIDE = 2048  # 48 MB for three matrices, 17 GFLOP a product: beyond caches, well below a second
SHORTEST = 1.0  # seconds that are measured at least


def open_matrix_product() -> Callable[[], dict[str, float]]:
    """Products of square float32 matrices by NumPy on all cores; called, it gives GFLOP/s."""
    random = np.random.default_rng(0)
    left, right = random.random((2, SIDE, SIDE), np.float32)
    product = left @ right  # the first one starts the threads

    def measure() -> dict[str, float]:
        count, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < SHORTEST:
            np.matmul(left, right, out=product)
            count += 1
        return {"gflops": 2 * SIDE**3 * count / seconds / 1e9}

    return measure


def operations_per_image(model: Any) -> int:
    """Floating-point operations of one image in a Keras model: two for each multiplication of a
    convolution or dense layer, as in published counts; all else is small beside them.

    Every kernel is applied once at each place of its layer's output.
    """
    total = 0
    for layer in model.layers:
        if getattr(layer, "layers", None):  # ConvNeXt nests Sequential models
            total += operations_per_image(layer)
            continue
        places = math.prod(layer.output.shape[1:-1]) if hasattr(layer.output, "shape") else 0
        kernels = (weight for weight in layer.weights if "kernel" in weight.name)
        total += 2 * places * sum(math.prod(kernel.shape) for kernel in kernels)
    return total
