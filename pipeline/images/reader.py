"""Decode images in threads ahead of whoever consumes them, in order, within bounded memory."""

import hashlib
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.images.decode import MAX_FILE, UnreadableImage, decode, register_heic
from pipeline.images.scan import ImageRef, Skipped
from pipeline.text import file_size

AHEAD = 128  # decoded images that may wait: 9 MB at 150 pixels, two batches' worth and more

Pixels = npt.NDArray[np.uint8]


def read_images(
    root: Path, refs: Sequence[ImageRef], *, image_size: int, resize: str
) -> Generator[tuple[ImageRef, Pixels | Skipped]]:
    """Yield each reference in order with its (image_size, image_size, 3) uint8 RGB pixels,
    or with the reason why there are none.

    Who may stop before the end closes it. Left to the garbage collector, its threads are joined
    wherever that happens to run, and inside `threading` itself that is a deadlock.
    """
    register_heic()

    def read(ref: ImageRef) -> Pixels | Skipped:
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
            return decode(data, image_size=image_size, resize=resize)
        except UnreadableImage as error:
            return Skipped(ref.path, str(error))

    threads = max(2, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[ImageRef, Future[Pixels | Skipped]]] = deque()
        try:
            for ref in refs:
                waiting.append((ref, pool.submit(read, ref)))
                if len(waiting) >= AHEAD:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
