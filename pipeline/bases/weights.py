"""Read and identify weights.

The digest covers the arrays, in any order: Keras' legacy .h5, its .weights.h5 and a copy of the
same numbers from the package index have the same digest. Nothing here needs TensorFlow.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.bases.config import IMAGENET, RANDOM, BaseConfig
from pipeline.bases.file_base import describe
from pipeline.bases.registry import PIXELS
from pipeline.durable import make_folder, write_durably
from pipeline.errors import BadDataError
from pipeline.text import printable

GZIP_LIMIT = 1032  # largest expansion of deflate: 258 bytes from two bits


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
