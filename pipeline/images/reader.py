"""Decode images in threads ahead of whoever consumes them, in order, within bounded memory."""

import hashlib
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cores import usable_cores
from pipeline.images.decode import MAX_FILE, UnreadableImage, decode, register_heic
from pipeline.images.scan import Skipped
from pipeline.prefetch import prefetch
from pipeline.text import file_size

MOST_AHEAD = 128  # decoded images that may wait: two batches' worth and more
AHEAD_BYTES = 32 * 2**20  # of their pixels, all together

Pixels = npt.NDArray[np.uint8]


def read_images(
    root: Path,
    digests: Mapping[bytes, bytes],
    *,
    image_size: int,
    resize: str,
    make: Callable[[bytes, Pixels], Any] = lambda _, pixels: pixels,
    made_of_each: int = 1,
) -> Generator[tuple[bytes, Any]]:
    """Yield each path in order with its (image_size, image_size, 3) uint8 RGB pixels, or `Skipped`.

    ``make`` is called in the decoding thread, its result yielded instead: at most ``made_of_each``
    times as large. Whoever stops early closes the generator, see `pipeline.prefetch.prefetch`.
    """
    register_heic()

    def read(name: bytes) -> Any:
        path = root / os.fsdecode(name)
        try:
            if (size := path.stat().st_size) > MAX_FILE:
                return Skipped(name, f"{file_size(size)} are too large for an image file")
            data = path.read_bytes()
        except OSError as error:
            return Skipped(name, f"cannot be read: {error.strerror}")
        if hashlib.sha256(data).digest() != digests[name]:
            return Skipped(name, "changed while it was being read: run again")
        try:
            return make(name, decode(data, image_size=image_size, resize=resize))
        except UnreadableImage as error:
            return Skipped(name, str(error))

    threads = max(2, usable_cores())
    ahead = AHEAD_BYTES // (made_of_each * image_size * image_size * 3)
    waiting = min(MOST_AHEAD, max(2 * threads, ahead))
    with closing(prefetch(read, digests, threads=threads, waiting=waiting, name="decode")) as made:
        yield from made
