"""Put a file in its place so that a crash leaves either the old one or the whole new one."""

import contextlib
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import CannotCreateError, StorageError
from pipeline.text import file_size

TEMPORARY_SUFFIX = ".tmp"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_durably(path: Path, write: Callable[[Path], object], *, needs: int = 0) -> None:
    """Let ``write`` fill a temporary file, then fsync it, rename it to ``path``, fsync the folder.

    When this returns, the file outlives a power cut. If anything fails, the temporary file is
    removed and ``path`` is as it was.

    Parameters
    ----------
    needs : bytes the file will take, for the message when the disk is full.

    Raises StorageError if the disk is full.
    """
    # A unique name: two processes that write the same file must not fill one temporary.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
    with explained(path, needs=needs):
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def explained(path: Path, *, needs: int = 0) -> Iterator[None]:
    """Turn what the system says about a full disk into a line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        wanted = f"{file_size(needs)} needed, " if needs else ""
        free = file_size(shutil.disk_usage(path.parent).free)
        raise StorageError(
            f"no space left for {path}: {wanted}{free} free; free some and run again "
            f"(what was committed is kept)"
        ) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; raises CannotCreateError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(
            f"cannot create the folder {folder}: {error.strerror}; choose another"
        ) from error


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that names in it outlive a power cut; a no-op where folders cannot be."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, prefix: str = "") -> None:
    """Delete what a killed process left half-written; for those who hold the folder's lock."""
    for leftover in folder.glob(f"{glob.escape(prefix)}*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
