"""`ImageSource`: where the bytes of images come from; `FolderSource` for a folder."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

MAX_FILE = 100_000_000  # bytes of an image file; larger files are films or archives
HAS_CHANGE_TIME = os.name != "nt"  # there, ctime is the time of creation


class FileStat(NamedTuple):
    """Size in bytes, and what changes with the content: JSON values, or none if nothing does.

    ``changed_ns`` is the latest time in ``version``, which hides a change within the granularity of
    the clock; 0 if ``version`` is exact, such as an ETag.
    """

    size: int
    version: tuple[int | float | str, ...] = ()
    changed_ns: int = 0


class ImageSource(Protocol):
    """A place with image files. Methods are called from several threads at once.

    ``root`` names it in messages and in caches; it contains no password. Paths are bytes with
    slashes, relative to it. Raises OSError for a file that is gone or cannot be read.
    """

    @property
    def root(self) -> str: ...

    def list(self) -> Iterator[bytes]:
        """Yield the paths of all files, hidden ones included, in any order."""
        ...

    def stat(self, path: bytes) -> FileStat:
        """Return size and version of a file without reading it."""
        ...

    def read(self, path: bytes) -> bytes:
        """Return the bytes of a file."""
        ...


@dataclass(frozen=True)
class FolderSource(ImageSource):
    """A folder of files; with ``Path()``, any paths as they are.

    With ``confined``, for paths that a file from elsewhere names, links must not lead out of it.
    """

    folder: Path
    confined: bool = False

    @property
    def root(self) -> str:
        return os.fspath(self.folder)

    def list(self) -> Iterator[bytes]:
        for parent, _, names in os.walk(self.folder):
            for name in names:
                yield os.fsencode((Path(parent) / name).relative_to(self.folder).as_posix())

    def stat(self, path: bytes) -> FileStat:
        status = self._file(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        # A program can set mtime back, but not ctime.
        times = (status.st_mtime_ns, status.st_ctime_ns)
        version = (status.st_size, *times, status.st_ino) if HAS_CHANGE_TIME else ()
        return FileStat(status.st_size, version, max(times))

    def read(self, path: bytes) -> bytes:
        if self.confined:
            self.stat(path)  # a pipe would block
        return self._file(path).read_bytes()

    def _file(self, path: bytes) -> Path:
        file = self.folder / os.fsdecode(path)
        if self.confined and not file.resolve().is_relative_to(self.folder.resolve()):
            raise OSError("outside the image folder")
        return file
