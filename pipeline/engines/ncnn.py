"""The ncnn engine, which computes one image per core."""

import importlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cores import usable_cores
from pipeline.engines import Engine, pool_maps, pooled_shape
from pipeline.engines.ncnn_writer import PARAM_FILE, PIXELS, WEIGHTS_FILE, write_ncnn
from pipeline.engines.network import Network
from pipeline.errors import BadDataError
from pipeline.silence import silenced_stderr
from pipeline.spec import split_layer_key
from pipeline.text import printable

_DESCRIPTION_FILE = "network.json"  # what the files of ncnn do not contain
_NOT_FLOAT32 = ("use_fp16", "use_bf16", "use_int8", "use_vulkan")  # prefixes of ncnn options


def convert(network: Network, folder: Path) -> None:
    """Write a network into a folder for `NcnnEngine`.

    Raises CannotConvert for an unsupported operation.
    """
    blobs = write_ncnn(network, folder)
    description = {
        "bgr": network.preprocessing.bgr,
        "outputs": {
            name: {"blob": blobs[name], "shape": shape} for name, shape in network.outputs.items()
        },
    }
    (folder / _DESCRIPTION_FILE).write_text(json.dumps(description, indent=2))


class NcnnEngine(Engine):
    """Run a network that `convert` wrote.

    Raises BadDataError for other contents of the folder or a layer that is not in it.
    """

    name = "ncnn"
    calls_at_once = 2  # a free core starts the next batch while others finish the last

    def __init__(self, folder: Path, *, layers: Sequence[str]) -> None:
        self._folder = folder
        try:
            description = json.loads((folder / _DESCRIPTION_FILE).read_text())
            outputs = {
                layer: (str(output["blob"]), tuple(map(int, output["shape"])))
                for layer, output in description["outputs"].items()
            }
            self._outputs = {key: outputs[split_layer_key(key)[0]] for key in layers}
            bgr = bool(description["bgr"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unusable_error(f"{_DESCRIPTION_FILE} does not describe {layers}") from error
        self.row_shapes = {key: pooled_shape(self._outputs[key][1], key) for key in layers}
        self._ncnn = importlib.import_module("ncnn")
        kinds = self._ncnn.Mat.PixelType
        self._pixel_order = kinds.PIXEL_RGB2BGR if bgr else kinds.PIXEL_RGB
        self._net = self._load_net()
        self._threads = ThreadPoolExecutor(usable_cores())

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        count, shapes = len(images), self.row_shapes
        features = {key: np.empty((count, *shape), np.float32) for key, shape in shapes.items()}

        def compute(row: int) -> None:
            for key, maps in self._compute_maps(images[row]).items():
                features[key][row] = pool_maps(maps[np.newaxis], split_layer_key(key)[1])[0]

        list(self._threads.map(compute, range(count)))  # raises the errors of the threads
        return features

    def _compute_maps(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Compute the maps (H, W, C) of each layer key, views of ncnn's memory, from (S, S, 3)."""
        height, width, _ = image.shape
        pixels = np.ascontiguousarray(image)
        extractor = self._net.create_extractor()
        mat = self._ncnn.Mat.from_pixels(pixels, self._pixel_order, width, height)
        code = extractor.input(PIXELS, mat)
        maps: dict[str, npt.NDArray[np.float32]] = {}  # by blob: two keys may pool the same maps
        for blob, shape in dict.fromkeys(self._outputs.values()):
            if code == 0:
                code, mat = extractor.extract(blob)  # other threads run at the same time
            if code != 0:
                raise self._unusable_error(f"ncnn returned {code} for an image")
            maps[blob] = np.asarray(mat).transpose(1, 2, 0)  # (H, W, C)
            if maps[blob].shape != shape:
                raise self._unusable_error(f"expected maps of {shape}, received {maps[blob].shape}")
        return {key: maps[blob] for key, (blob, _) in self._outputs.items()}

    def _load_net(self) -> Any:
        net = self._ncnn.Net()
        net.opt.num_threads = 1  # one thread per image: two are slower
        for option in dir(net.opt):
            if option.startswith(_NOT_FLOAT32):
                setattr(net.opt, option, False)
        for load, file in ((net.load_param, PARAM_FILE), (net.load_model, WEIGHTS_FILE)):
            with silenced_stderr():  # the return code reports the same
                code = load(str(self._folder / file))
            if code != 0:
                raise self._unusable_error(f"ncnn returned {code} for {file}")
        return net

    def _unusable_error(self, reason: str) -> BadDataError:
        return BadDataError(
            f"{printable(self._folder)} is not a base that ncnn {version('ncnn')} computes: "
            f"{reason}. Delete the folder, and the base is converted again."
        )
