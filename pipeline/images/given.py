"""Images as a program hands them over: paths from anywhere, or arrays of pixels.

An array counts as the image file that it would be: a PNM, a short header before the pixels. So it
is hashed, decoded and resized by the very code that reads photographs.
"""

import hashlib
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.decode import UnreadableImage, decode
from pipeline.images.hashes import hash_files
from pipeline.images.reader import Pixels, read_images
from pipeline.images.scan import NO_SPLIT, FoundFile, ImageRef, Skipped
from pipeline.text import printable

EXPECTED = "paths of image files, or uint8 arrays (N, H, W, 3)"


class GivenImages(Protocol):
    """Images whose content is known, to be decoded when asked for.

    Attributes
    ----------
    refs : one for each image, in the order given; the digest is that of the content.
    """

    refs: Sequence[ImageRef]

    def read(
        self, refs: Sequence[ImageRef], *, image_size: int, resize: str
    ) -> Generator[tuple[ImageRef, Pixels]]:
        """Yield some of the images in order with their (image_size, image_size, 3) uint8 pixels.

        Raises BadDataError for the first that cannot be decoded.
        """
        ...


def given_images(images: Any) -> GivenImages:
    """Take a sequence of paths, a uint8 array (N, H, W, 3) or a sequence of (H, W, 3) arrays.

    Grey pixels, (N, H, W, 1) or (H, W), do as well.

    Raises UsageError if it is something else, BadDataError if a file cannot be read.
    """
    if isinstance(images, str | bytes | os.PathLike):
        raise UsageError(f"expected a list of images; received the one path {printable(images)}")
    if isinstance(images, np.ndarray) and images.dtype.kind in "biuf" and images.ndim != 4:
        raise UsageError(f"expected {EXPECTED}; received an array of shape {images.shape}")
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise UsageError(f"expected {EXPECTED}; received {type(images).__name__}")
    given = list(_column(images))
    if not given:
        raise NoInputError(f"expected {EXPECTED}; received none")
    return ArrayImages(given) if isinstance(given[0], np.ndarray) else FileImages(given)


def _column(images: Iterable[Any]) -> Iterable[Any]:
    """A table of one column, as scikit-learn's ColumnTransformer hands it over, as that column."""
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


class FileImages:
    """Image files by their paths, relative ones from the working folder."""

    def __init__(self, paths: Sequence[Any]) -> None:
        files = [FoundFile(_name(path), 0, NO_SPLIT) for path in paths]
        refs, unreadable = hash_files(Path(), files)
        for skipped in unreadable:
            raise _unusable(skipped.path, skipped.reason)
        self.refs: Sequence[ImageRef] = refs

    def read(
        self, refs: Sequence[ImageRef], *, image_size: int, resize: str
    ) -> Generator[tuple[ImageRef, Pixels]]:
        images = read_images(Path(), refs, image_size=image_size, resize=resize)
        with closing(images):
            for ref, pixels in images:
                if isinstance(pixels, Skipped):
                    raise _unusable(pixels.path, pixels.reason)
                yield ref, pixels


class ArrayImages:
    """Arrays (H, W, 3), (H, W, 1) or (H, W) of uint8, 0..255; colours are RGB."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        self.refs: Sequence[ImageRef] = [
            ImageRef(b"image %d" % number, 0, NO_SPLIT, hashlib.sha256(_as_file(array)).digest())
            for number, array in enumerate(arrays)
        ]
        digests = (ref.digest for ref in self.refs)
        self._arrays = dict(zip(digests, arrays, strict=True))

    def read(
        self, refs: Sequence[ImageRef], *, image_size: int, resize: str
    ) -> Generator[tuple[ImageRef, Pixels]]:
        for ref in refs:
            file = _as_file(self._arrays[ref.digest])
            try:
                yield ref, decode(file, image_size=image_size, resize=resize)
            except UnreadableImage as error:
                raise _unusable(ref.path, str(error)) from error


def _as_file(array: Any) -> bytes:
    """Pixels as a binary PNM file: P6 for colours, P5 for grey."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise UsageError(
            f"expected uint8 pixels, 0..255; received {getattr(array, 'dtype', array)}"
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3) or not array.size:
        raise UsageError(f"expected images of shape (H, W, 3); received {array.shape}")
    kind = b"P6" if channels == 3 else b"P5"
    return b"%s %d %d 255\n" % (kind, array.shape[1], array.shape[0]) + array.tobytes()


def _name(path: Any) -> bytes:
    if not isinstance(path, str | bytes | os.PathLike):
        raise UsageError(f"expected {EXPECTED}; received {type(path).__name__} among them")
    return os.fsencode(path)


def _unusable(name: bytes, reason: str) -> BadDataError:
    return BadDataError(f"{printable(name)}: {reason}; leave it out, or mend it")
