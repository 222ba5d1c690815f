"""Decode images in threads ahead of whoever consumes them, in order, within bounded memory."""

import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.ahead import in_order
from pipeline.cores import usable_cores
from pipeline.images.decode import MAX_FILE, UnreadableImage, decode, register_heic
from pipeline.images.scan import ImageRef, Skipped
from pipeline.text import file_size

MOST_AHEAD = 128  # decoded images that may wait: two batches' worth and more
AHEAD_BYTES = 32 * 2**20  # of their pixels, all together

Pixels = npt.NDArray[np.uint8]
Made = TypeVar("Made")


def read_images(
    root: Path, refs: Sequence[ImageRef], *, image_size: int, resize: str
) -> Generator[tuple[ImageRef, Pixels | Skipped]]:
    """Yield each reference in order with its (image_size, image_size, 3) uint8 RGB pixels,
    or with the reason why there are none.

    Who may stop before the end closes it, see `read_and_make`.
    """
    yield from read_and_make(
        root, refs, lambda _, pixels: pixels, image_size=image_size, resize=resize
    )


def read_and_make(
    root: Path,
    refs: Sequence[ImageRef],
    make: Callable[[ImageRef, Pixels], Made],
    *,
    image_size: int,
    resize: str,
    made_of_each: int = 1,
) -> Generator[tuple[ImageRef, Made | Skipped]]:
    """Like `read_images`, with what ``make`` makes of the pixels, in the decoding thread.

    Parameters
    ----------
    made_of_each : how many times its pixels an image becomes, at most; bounds what may wait.

    Who may stop before the end closes it, see `pipeline.ahead.in_order`.
    """
    register_heic()

    def read(ref: ImageRef) -> Made | Skipped:
        path = root / os.fsdecode(ref.path)
        try:
            if (size := path.stat().st_size) > MAX_FILE:
                return Skipped(ref.path, f"{file_size(size)} are too large for an image file")
            data = path.read_bytes()
        except OSError as error:
            return Skipped(ref.path, f"cannot be read: {error.strerror}")
        if hashlib.sha256(data).digest() != ref.digest:
            return Skipped(ref.path, "changed while it was being read: run again")
        try:
            return make(ref, decode(data, image_size=image_size, resize=resize))
        except UnreadableImage as error:
            return Skipped(ref.path, str(error))

    threads = max(2, usable_cores())
    ahead = AHEAD_BYTES // (made_of_each * image_size * image_size * 3)
    waiting = min(MOST_AHEAD, max(2 * threads, ahead))
    with closing(in_order(read, refs, threads=threads, waiting=waiting, name="decode")) as made:
        yield from made
