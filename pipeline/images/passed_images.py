"""Images passed as Python objects: paths from any folder, or arrays of pixels."""

import hashlib
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.decode import UnreadableImage, to_pixels
from pipeline.images.hashes import hash_files
from pipeline.images.reader import Pixels, read_images
from pipeline.images.scan import Skipped
from pipeline.images.source import FolderSource
from pipeline.spec import FULL_RANGE
from pipeline.text import printable

EXPECTED = "paths of image files, or uint8 arrays (N, H, W, 3)"


@dataclass(frozen=True)
class PassedImages:
    """Images identified by content: their digests in order, and the path or array of each."""

    digests: tuple[bytes, ...]
    contents: Mapping[bytes, bytes | npt.NDArray[np.uint8]]

    def read(
        self, digests: Iterable[bytes], *, image_size: int, resize: str, range: str = FULL_RANGE
    ) -> Generator[tuple[bytes, Pixels]]:
        """Yield digests with (image_size, image_size, 3) uint8 RGB; raises BadDataError."""
        requested = {digest: self.contents[digest] for digest in digests}
        files = {path: digest for digest, path in requested.items() if isinstance(path, bytes)}
        decoded = read_images(
            FolderSource(Path()), files, image_size=image_size, resize=resize, range=range
        )
        with closing(decoded) as read:
            for path, pixels in read:
                if isinstance(pixels, Skipped):
                    raise _unusable_error(path, pixels.reason)
                yield files[path], pixels
        for digest, array in requested.items():
            if not isinstance(array, bytes):
                image = Image.fromarray(array)
                try:
                    yield digest, to_pixels(image, image_size=image_size, resize=resize)
                except UnreadableImage as error:
                    number = self.digests.index(digest)
                    raise _unusable_error(b"image %d" % number, str(error)) from error


def passed_images(images: Any) -> PassedImages:
    """Accept paths, a uint8 array (N, H, W, 3) or arrays (H, W, 3); grey is (H, W, 1) or (H, W).

    Raises UsageError for other types, BadDataError if a file cannot be read.
    """
    if isinstance(images, str | bytes | os.PathLike):
        raise UsageError(f"expected a list of images; received the one path {printable(images)}")
    if isinstance(images, np.ndarray) and images.dtype.kind in "biuf" and images.ndim != 4:
        raise UsageError(f"expected {EXPECTED}; received an array of shape {images.shape}")
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise UsageError(f"expected {EXPECTED}; received {type(images).__name__}")
    items = list(_single_column(images))
    if not items:
        raise NoInputError(f"expected {EXPECTED}; received none")
    if isinstance(items[0], np.ndarray):
        return passed_arrays(items)
    names = []
    for path in items:
        if not isinstance(path, str | bytes | os.PathLike):
            raise UsageError(f"expected {EXPECTED}; received {type(path).__name__} among them")
        names.append(os.fsencode(path))
    digests, unreadable = hash_files(FolderSource(Path()), names)
    for skipped in unreadable:
        raise _unusable_error(skipped.path, skipped.reason)
    return PassedImages(
        tuple(digests[name] for name in names),
        {digest: name for name, digest in reversed(digests.items())},
    )


def _single_column(images: Iterable[Any]) -> Iterable[Any]:
    """Return the column of a one-column table, as scikit-learn's ColumnTransformer passes it."""
    table: Any = images
    if hasattr(table, "columns") and hasattr(table, "to_numpy"):  # a pandas or polars data frame
        table = table.to_numpy()
    if isinstance(table, np.ndarray) and table.dtype.kind in "OUST" and table.ndim == 2:
        if table.shape[1] != 1:
            raise UsageError(
                f"expected one column of paths; received {table.shape[1]}: choose one, as in "
                f"make_column_transformer((FeatureExtractor(), ['path']))"
            )
        return list(table[:, 0])
    return images


def passed_arrays(arrays: Iterable[Any]) -> PassedImages:
    """Accept arrays (H, W, 3), (H, W, 1) or (H, W) of uint8, 0..255; colours are RGB."""
    digests, contents = [], {}
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            raise UsageError(
                f"expected uint8 pixels, 0..255; received {getattr(array, 'dtype', array)}"
            )
        channels = array.shape[2] if array.ndim == 3 else 1
        if array.ndim not in (2, 3) or channels not in (1, 3) or not array.size:
            raise UsageError(f"expected images of shape (H, W, 3); received {array.shape}")
        # the digest of a PNM file: existing caches have such digests
        kind = b"P6" if channels == 3 else b"P5"
        header = b"%s %d %d 255\n" % (kind, array.shape[1], array.shape[0])
        digests.append(hashlib.sha256(header + array.tobytes()).digest())
        # Pillow does not accept (H, W, 1)
        contents[digests[-1]] = array if channels == 3 else array.reshape(array.shape[:2])
    return PassedImages(tuple(digests), contents)


def _unusable_error(name: bytes, reason: str) -> BadDataError:
    return BadDataError(f"{printable(name)}: {reason}; leave it out or repair it")
