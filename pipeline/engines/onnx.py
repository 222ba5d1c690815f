"""Features computed by ONNX Runtime."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.cores import usable_cores
from pipeline.engines import Engine, pooled, pooled_shape
from pipeline.engines.network import Network
from pipeline.errors import BadDataError
from pipeline.spec import split_layer_key
from pipeline.text import printable

MODEL_FILE = "model.onnx"
WRONG_OPTIMIZERS = ["Pad_Fusion"]  # takes a max pooling's zeros for minus infinities
IMAGES_PER_RUN = 2  # 1 reads a base's weights from memory too often, 4 has maps outgrow the cache

Features = dict[str, npt.NDArray[np.float32]]


def convert(network: Network, folder: Path) -> None:
    """Write what `OnnxEngine` opens into a folder."""
    from pipeline.engines.onnx_writer import write_onnx

    write_onnx(network, folder / MODEL_FILE)


class OnnxEngine(Engine):
    """One thread a run, as many runs of a few images at a time as there are cores.

    Threads that share a run wait for each other at each layer. Memory does not grow with the batch.
    Every run has the same size: an image's features do not depend on how many stand beside it.
    """

    name = "onnx"
    calls_at_once = 2  # one core goes on with the next batch while another ends the last

    def __init__(self, folder: Path, *, layers: Sequence[str]) -> None:
        """Open what `convert` wrote; raises BadDataError for something else."""
        # From 1.31 on it would send usage data to Microsoft; this is read when it is imported.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # had the caller imported it before
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions
        path = folder / MODEL_FILE
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, ["CPUExecutionProvider"], disabled_optimizers=WRONG_OPTIMIZERS
            )
        except Exception as error:  # its exceptions have no common ancestor but this
            raise BadDataError(
                f"{printable(path)} cannot be opened by ONNX Runtime: delete it, and it is made "
                f"anew ({' '.join(str(error).split())[:200]})"
            ) from error
        maps = {output.name: tuple(output.shape[1:]) for output in self._session.get_outputs()}
        self._layers = list(dict.fromkeys(split_layer_key(key)[0] for key in layers))
        if missing := [layer for layer in self._layers if layer not in maps]:
            raise BadDataError(
                f"{printable(path)} holds {', '.join(maps)}; received {', '.join(missing)}: "
                f"delete it, and it is made anew"
            )
        self.row_shapes = {key: pooled_shape(maps[split_layer_key(key)[0]], key) for key in layers}
        self._threads = ThreadPoolExecutor(usable_cores())

    def __call__(self, images: npt.NDArray[np.uint8]) -> Features:
        missing = -len(images) % IMAGES_PER_RUN
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
        starts = range(0, len(padded), IMAGES_PER_RUN)
        runs = [padded[start : start + IMAGES_PER_RUN] for start in starts]
        rows = list(self._threads.map(self._run, runs))
        count, keys = len(images), self.row_shapes
        return {key: np.concatenate([each[key] for each in rows])[:count] for key in keys}

    def _run(self, images: npt.NDArray[np.uint8]) -> Features:
        found = self._session.run(self._layers, {"images": images})
        maps = dict(zip(self._layers, found, strict=True))
        split = {key: split_layer_key(key) for key in self.row_shapes}
        return {key: pooled(maps[layer], pooling) for key, (layer, pooling) in split.items()}
