"""One writer a cache file. The kernel frees the lock when its holder dies."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import BusyError


@contextlib.contextmanager
def writer_lock(cache_path: Path) -> Iterator[None]:
    """Hold ``<name>.lock`` beside ``<name>.h5``; raises BusyError if another process does."""
    lock = FileLock(cache_path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(
            f"another process is writing {cache_path}; run again when it has ended"
        ) from error
    try:
        yield
    finally:
        lock.release()
