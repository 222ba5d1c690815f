"""One writer a cache file. The kernel frees the lock when its holder dies."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.durable import DISK_FULL
from pipeline.errors import BusyError, CannotCreateError
from pipeline.text import printable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2


@contextlib.contextmanager
def writer_lock(cache_path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold ``<name>.lock`` beside ``<name>.h5``.

    Raises BusyError, naming the process that holds it; under ``wait`` waits for it instead.
    """
    lock = FileLock(cache_path.with_suffix(".lock"))
    holder = cache_path.with_suffix(".holder")  # apart: whoever tries the lock truncates its file
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = f"{_read(holder)} is writing {printable(cache_path)}"
        if not wait:
            raise BusyError(f"{who}; run again when it has ended, or with --wait") from error
        log.info("waiting: %s", who)
        lock.acquire(poll_interval=POLL_SECONDS)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise CannotCreateError(
            f"cannot write in {printable(cache_path.parent)}: {error.strerror}; choose another "
            f"folder"
        ) from error
    try:
        with contextlib.suppress(OSError):  # a courtesy to others; a full disk is told of later
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> str:
    try:
        return printable(holder.read_text()) or "another process"
    except OSError:  # it is just beginning, or just ending
        return "another process"
