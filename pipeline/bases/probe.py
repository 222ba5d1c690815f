"""The probe in the sidecar of a base file: an image beside it, and the features it must have."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.file_base import read_sidecar, rescale_of
from pipeline.errors import BadDataError
from pipeline.images.decode import UnreadableImage, decode

PROBE_TOLERANCE = 1e-3  # relative, L2: other runtimes differ by 1e-5, other preprocessing by 1e-1


def probe_values(path: Path, image_size: int) -> npt.NDArray[np.float32]:
    """Return the preprocessed image of the probe of a file: (1, S, S, 3), in the file's channels.

    Raises BadDataError if it is missing, unreadable, or its preprocessing is not in the sidecar.
    """
    sidecar, where = read_sidecar(path), probe_name(path)
    if "mean-std" not in sidecar:
        raise BadDataError(f"{where} needs mean-std")
    name = sidecar["probe"]["image"]
    file = path.parent / name
    if file.is_symlink() or not file.is_file():
        raise BadDataError(f"{where}: {name} is missing or a link")
    try:
        policy = sidecar.get("resize", "squash")
        pixels = decode(file.read_bytes(), image_size=image_size, resize=policy)
    except UnreadableImage as error:
        raise BadDataError(f"{where}: {name}: {error}") from error
    rescale = rescale_of(sidecar["mean-std"], sidecar.get("channels", "rgb"))
    ordered = pixels[..., ::-1] if rescale.bgr else pixels
    scale, offset = (np.asarray(each, np.float32) for each in (rescale.scale, rescale.offset))
    return np.asarray(ordered * scale + offset, np.float32)[np.newaxis]


def check_probe(path: Path, layer: str, received: npt.NDArray[Any]) -> None:
    """Raise BadDataError unless features (C,) of a layer are those of the probe of a file."""
    where, expected = probe_name(path), np.asarray(read_sidecar(path)["probe"]["expected"])
    if received.shape != expected.shape:
        raise BadDataError(
            f"{where} expects {len(expected):,} features; {layer} has {len(received):,}"
        )
    distance = np.linalg.norm(received - expected) / np.linalg.norm(expected)
    if not distance <= PROBE_TOLERANCE:
        raise BadDataError(
            f"{where} has other features than expected, by {distance:.1e} of their length: "
            f"the file, or a key such as mean-std, is another than that of the probe"
        )


def probe_name(path: Path) -> str:
    return f"the probe of {path.with_suffix('.base.toml').name}"
