"""Decode images in background threads, in order and within bounded memory."""

import hashlib
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cores import usable_cores
from pipeline.images.decode import UnreadableImage, decode, register_heic
from pipeline.images.scan import Skipped
from pipeline.images.source import MAX_FILE, ImageSource
from pipeline.prefetch import prefetch
from pipeline.spec import FULL_RANGE
from pipeline.text import file_size

MAX_WAITING = 128  # decoded images in memory: several batches
MAX_WAITING_BYTES = 32 * 2**20  # of their pixels

Pixels = npt.NDArray[np.uint8]


def read_images(
    source: ImageSource,
    digests: Mapping[bytes, bytes],
    *,
    image_size: int,
    resize: str,
    range: str = FULL_RANGE,
    process: Callable[[bytes, Pixels], Any] = lambda _, pixels: pixels,
    rows_per_image: int = 1,
) -> Generator[tuple[bytes, Any]]:
    """Yield each path in order with its (image_size, image_size, 3) uint8 RGB pixels, or `Skipped`.

    The result of ``process``, which runs in the decoding thread, replaces the pixels; it contains
    at most ``rows_per_image`` images. A caller that stops early closes the generator, see
    `pipeline.prefetch.prefetch`.
    """
    register_heic()

    def read(name: bytes) -> Any:
        try:
            if (size := source.stat(name).size) > MAX_FILE:
                return Skipped(name, f"too large for an image file: {file_size(size)}")
            data = source.read(name)
        except OSError as error:
            return Skipped(name, f"cannot be read: {error.strerror or error}")
        if hashlib.sha256(data).digest() != digests[name]:
            return Skipped(name, "changed while it was being read: run again")
        try:
            return process(name, decode(data, image_size=image_size, resize=resize, range=range))
        except UnreadableImage as error:
            return Skipped(name, str(error))

    threads = max(2, usable_cores())
    fitting = MAX_WAITING_BYTES // (rows_per_image * image_size * image_size * 3)
    waiting = min(MAX_WAITING, max(2 * threads, fitting))
    results = prefetch(read, digests, threads=threads, waiting=waiting, name="decode")
    with closing(results):
        yield from results
