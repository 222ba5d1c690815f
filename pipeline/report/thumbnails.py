"""Make thumbnails of cached rows from their image files, unless these have changed."""

import base64
import hashlib
import io
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.cache.file import FeatureTable
from pipeline.cores import usable_cores
from pipeline.images.decode import MAX_FILE, UnreadableImage, decode, register_heic

LONGER_SIDE = 128  # pixels: sharp at 64 on a dense display, about 4 kB
JPEG_QUALITY = 72


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a ``data:`` address, or an empty address and the reason."""

    address: str = ""
    reason: str = ""


def read_thumbnails(table: FeatureTable, rows: Iterable[int]) -> dict[int, Thumbnail]:
    """Return the picture of each row, of at most `LONGER_SIDE` pixels; each row is read once."""
    register_heic()
    unique_rows = sorted(set(rows))
    root = Path(str(table.document["root"]))
    if not (root.is_absolute() and root.is_dir()):
        return dict.fromkeys(unique_rows, Thumbnail(reason="the image folder is gone"))
    root = root.resolve()

    def read(row: int) -> Thumbnail:
        columns = table.columns
        digest = columns.digests[row].tobytes()
        return _make_thumbnail(root, columns.paths[row], digest, table.spec.range)

    with ThreadPoolExecutor(max(2, usable_cores())) as pool:
        return dict(zip(unique_rows, pool.map(read, unique_rows), strict=True))


def _make_thumbnail(root: Path, relative: bytes, digest: bytes, range: str) -> Thumbnail:
    """Return the picture of a file in ``root`` if its SHA-256 is that digest."""
    try:
        data = _read_inside(root, relative)
    except (OSError, ValueError):
        return Thumbnail(reason="the file is gone")
    # A cache from elsewhere may name any file: show only the image that was extracted.
    if hashlib.sha256(data).digest() != digest:
        return Thumbnail(reason="the file has changed")
    try:
        pixels = _crop_bars(decode(data, image_size=LONGER_SIDE, resize="pad", range=range))
    except UnreadableImage:
        return Thumbnail(reason="the file cannot be read")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(address=f"data:image/jpeg;base64,{encoded}")


def _read_inside(root: Path, relative: bytes) -> bytes:
    """Read a regular file in ``root``, following links; raises OSError or ValueError."""
    posix = PurePosixPath(os.fsdecode(relative))
    path = (root / posix).resolve()
    if posix.is_absolute() or ".." in posix.parts or not path.is_relative_to(root):
        raise ValueError(f"{path} is outside {root}")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
        raise ValueError(f"{path} is not an image file")
    return path.read_bytes()


def _crop_bars(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Crop the black bars that make a picture square: (S, S, 3) -> (H, W, 3)."""
    is_lit = pixels.max(axis=2) > 0  # (S, S)
    rows, columns = np.flatnonzero(is_lit.any(axis=1)), np.flatnonzero(is_lit.any(axis=0))
    if not len(rows):  # all black
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
