"""The ONNX Runtime engine, which computes two images per core at a time."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.cores import usable_cores
from pipeline.engines import Engine, pool_maps, pooled_shape
from pipeline.engines.network import Network
from pipeline.errors import BadDataError
from pipeline.spec import split_layer_key
from pipeline.text import printable

MODEL_FILE = "model.onnx"
WRONG_OPTIMIZERS = ["Pad_Fusion"]  # turns the zeros before a max pooling into minus infinity
IMAGES_PER_RUN = 2  # 1 reads the weights from memory too often; the maps of 4 outgrow the CPU cache

Features = dict[str, npt.NDArray[np.float32]]


def convert(network: Network, folder: Path) -> None:
    """Write a network into a folder for `OnnxEngine`."""
    from pipeline.engines.onnx_writer import write_onnx

    write_onnx(network, folder / MODEL_FILE)


class OnnxEngine(Engine):
    """Compute a few images per run, one run per core at a time, each in one thread.

    Threads that share a run wait for each other at each layer. Memory does not grow with the batch.
    All runs have the same size: the features of an image do not depend on the rest of the batch.
    A file with a fixed batch decides that size.
    """

    name = "onnx"
    calls_at_once = 2  # a free core starts the next batch while others finish the last

    def __init__(self, folder: Path, *, layers: Sequence[str], optimize: bool = True) -> None:
        """Open a folder that `convert` wrote; raises BadDataError for other contents."""
        # ONNX Runtime >= 1.31 sends usage data to Microsoft unless this is set before its import.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # in case the caller imported it earlier
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if not optimize:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        options.log_severity_level = 4  # errors are raised as exceptions
        path = folder / MODEL_FILE
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, ["CPUExecutionProvider"], disabled_optimizers=WRONG_OPTIMIZERS
            )
        except Exception as error:  # its exceptions share no other base class
            raise BadDataError(
                f"{printable(path)} cannot be opened by ONNX Runtime: delete it, and it is "
                f"converted again ({' '.join(str(error).split())[:200]})"
            ) from error
        maps = {output.name: tuple(output.shape[1:]) for output in self._session.get_outputs()}
        self._layers = list(dict.fromkeys(split_layer_key(key)[0] for key in layers))
        if missing := [layer for layer in self._layers if layer not in maps]:
            raise BadDataError(
                f"{printable(path)} contains {', '.join(maps)}; received {', '.join(missing)}: "
                f"delete it, and it is converted again"
            )
        self.row_shapes = {key: pooled_shape(maps[split_layer_key(key)[0]], key) for key in layers}
        (images,) = self._session.get_inputs()
        is_fixed = isinstance(images.shape[0], int)
        self._images_per_run = images.shape[0] if is_fixed else IMAGES_PER_RUN
        self._threads = ThreadPoolExecutor(usable_cores())

    def __call__(self, images: npt.NDArray[np.uint8]) -> Features:
        count = self._images_per_run
        missing = -len(images) % count
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
        runs = [padded[start : start + count] for start in range(0, len(padded), count)]
        results = list(self._threads.map(self._run, runs))
        return {
            key: np.concatenate([rows[key] for rows in results])[: len(images)]
            for key in self.row_shapes
        }

    def _run(self, images: npt.NDArray[np.uint8]) -> Features:
        outputs = self._session.run(self._layers, {"images": images})
        maps = dict(zip(self._layers, outputs, strict=True))
        split = {key: split_layer_key(key) for key in self.row_shapes}
        return {key: pool_maps(maps[layer], pooling) for key, (layer, pooling) in split.items()}
