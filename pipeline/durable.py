"""Write files so that a crash leaves either the old file or the complete new one.

Stage one changes the disk only through this module, and this module only through `os`: tests
replace `os` with a simulated file system that crashes at every call.
"""

import contextlib
import errno
import glob
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from pipeline.errors import CannotCreateError, StorageError
from pipeline.text import file_size, printable

TEMPORARY_SUFFIX = ".tmp"
DISK_FULL = {  # error number -> cause, cure
    errno.ENOSPC: ("full", "free some"),
    errno.EDQUOT: ("your quota is used up", "delete files"),
    errno.EFBIG: ("too large for this file system or limit", "choose another or raise the limit"),
}
STALE_AFTER = 86_400  # seconds: an older scratch folder is from a killed process


def check_writable(results: Path) -> None:
    """Create the results folder before the work starts; raises CannotCreateError."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=results).cleanup()
    except OSError as error:
        raise CannotCreateError(
            f"cannot create the results folder {printable(results)} ({error.strerror}); "
            f"choose another --out"
        ) from error


def write_durably(path: Path, write: Callable[["DiskFile"], object], *, needs: int = 0) -> None:
    """Let ``write`` fill a temporary file, fsync it, rename it to ``path``, fsync the folder.

    When this returns, the file survives a power cut. If anything fails, the temporary file is
    deleted and ``path`` is unchanged. Raises StorageError, with the file's size, if the disk is
    full. A ``write`` that calls `DiskFile.check` ends before the size is known: it is ``needs``.
    """
    # A unique name: two processes that write the same file must not share a temporary file.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
    with storage_errors(path, needs=needs):
        try:
            with DiskFile(temporary) as file:
                write(file)
                with storage_errors(path, needs=file.seek(0, os.SEEK_END)):
                    file.sync()
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


class DiskFile:
    """A new file, usable by h5py, whose writes raise no error: `check` and `sync` raise it later.

    HDF5 can crash with SIGSEGV if a write fails, as on a full disk. After the first error, writes
    are stored in memory, and reads return everything as written. Call `check` between large writes.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._position = 0
        self._size = 0
        self._error: OSError | None = None
        self._lost: list[tuple[int, bytes]] = []  # offset and bytes not on the disk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)
        self._descriptor = -1  # the system reuses the number for another file

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        done = 0
        with self._keep_error():
            if self._error is None:
                os.lseek(self._descriptor, self._position, os.SEEK_SET)
                while done < len(view):
                    done += os.write(self._descriptor, view[done:])
        if done < len(view):
            self._lost.append((self._position + done, bytes(view[done:])))
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Truncate or extend the file to a size, by default to its position."""
        self._size = self._position if size is None else size
        with self._keep_error():
            if self._error is None:
                os.ftruncate(self._descriptor, self._size)
        return self._size

    def check(self) -> None:
        """Raise the file's first OSError, if any."""
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        """fsync the file; raises like `check`."""
        self.check()
        os.fsync(self._descriptor)

    def flush(self) -> None:
        """Do nothing: no data is buffered."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer from the file's position, with zeros after the file's end."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[:] = data.ljust(len(view), b"\0")
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Read ``size`` bytes from the file's position, fewer only at its end; by default all."""
        start = self._position
        left = max(0, self._size - start)
        data = bytearray(left if size < 0 else min(size, left))
        os.lseek(self._descriptor, start, os.SEEK_SET)
        filled = 0
        while filled < len(data) and (part := os.read(self._descriptor, len(data) - filled)):
            data[filled : filled + len(part)] = part
            filled += len(part)
        for offset, lost in self._lost:
            first, last = max(offset, start), min(offset + len(lost), start + len(data))
            if first < last:
                data[first - start : last - start] = lost[first - offset : last - offset]
        self._position += len(data)
        return bytes(data)

    @contextlib.contextmanager
    def _keep_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error


@contextlib.contextmanager
def storage_errors(path: Path, *, needs: int = 0) -> Iterator[None]:
    """Raise StorageError, with the bytes needed and free, for an OSError of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        needed = f"{file_size(needs)} needed, " if needs else ""
        free = file_size(shutil.disk_usage(path.parent).free)
        cause, cure = DISK_FULL[error.errno]
        raise StorageError(
            f"no space left for {printable(path)} ({cause}): {needed}{free} free; {cure} and run "
            f"again (committed data is kept)"
        ) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably; raises CannotCreateError if that is impossible."""
    if folder.is_dir():
        with contextlib.suppress(PermissionError):  # the parent may belong to another user
            sync_folder(folder.parent)  # a killed run may not have synced it
        return
    try:
        if not folder.parent.is_dir():
            make_folder(folder.parent)
        os.mkdir(folder)
    except OSError as error:
        if folder.is_dir():  # another process was faster
            return
        if error.errno in DISK_FULL:
            raise
        raise CannotCreateError(
            f"cannot create the folder {printable(folder)}: {error.strerror}; choose another"
        ) from error
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that its names survive a power cut; does nothing on Windows."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(folder: Path, *, prefix: str) -> Iterator[Path]:
    """Yield an empty folder to fill and pass to `publish_folder`; delete it if it was not passed.

    It is near ``folder``, on the same disk, in a folder whose name begins with ``prefix``. Such
    folders of killed processes are deleted by the first call after a day.
    """
    parents = folder.absolute().parents
    oldest = time.time() - STALE_AFTER
    for path in (path for parent in parents[:2] for path in parent.glob(f"{prefix}*")):
        is_ours = re.fullmatch(rf"{re.escape(prefix)}[a-z0-9_]{{8}}", path.name)
        with contextlib.suppress(OSError):  # its process may be deleting it
            is_folder = path.is_dir() and not path.is_symlink()
            if is_ours and is_folder and path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)
    near = next(parent for parent in parents if parent.is_dir())
    try:
        scratch = tempfile.TemporaryDirectory(prefix=prefix, dir=near)
    except PermissionError as error:
        raise CannotCreateError(f"{printable(near)} is not writable; choose another") from error
    with scratch as name:
        filled = Path(name) / folder.name
        filled.mkdir()
        yield filled


def publish_folder(filled: Path, folder: Path) -> None:
    """Sync a folder of files and rename it to ``folder``, which does not exist."""
    for path in filled.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(filled)
    make_folder(folder.parent)
    os.rename(filled, folder)
    sync_folder(folder.parent)


def remove_file(path: Path) -> None:
    """Delete a file if it exists."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_folder(folder: Path) -> None:
    """Delete a folder and its files, if it exists."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            remove_file(path)
        os.rmdir(folder)


def remove_empty_folder(folder: Path) -> None:
    """Delete a folder if it is empty: another process may have just written there."""
    with contextlib.suppress(FileNotFoundError):
        if not any(folder.iterdir()):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def remove_temporaries(path: Path) -> None:
    """Delete the temporary files of killed processes; the caller holds the file's lock."""
    for temporary in path.parent.glob(f"{glob.escape(path.name)}.{'?' * 8}{TEMPORARY_SUFFIX}"):
        remove_file(temporary)
