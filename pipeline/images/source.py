"""`ImageSource`: where the bytes of images come from: `FolderSource`, or several merged."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

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


class FileStore(ImageSource, Protocol):
    """A source whose files can be read in part: archives and tables are in one."""

    def open(self, path: bytes) -> BinaryIO:
        """Open a file for reading; it can seek."""
        ...

    def read_range(self, path: bytes, start: int, size: int) -> bytes:
        """Return ``size`` bytes from ``start``, fewer at the end of the file."""
        ...


@dataclass(frozen=True)
class FolderSource(FileStore):
    """A folder of files; with ``Path()``, any paths as they are.

    With ``confined``, for paths that a file from elsewhere names, links must not lead out of it.
    ``manifest`` is the file that names the images, if one does.
    """

    folder: Path
    confined: bool = False
    manifest: str = ""

    @property
    def root(self) -> str:
        return self.manifest or os.fspath(self.folder)

    def list(self) -> Iterator[bytes]:
        for parent, _, names in os.walk(self.folder):
            for name in names:
                yield os.fsencode((Path(parent) / name).relative_to(self.folder).as_posix())

    def stat(self, path: bytes) -> FileStat:
        # A Path takes ten times as long as the call of the system.
        name = self.file(path) if self.confined else os.path.join(self.folder, os.fsdecode(path))  # noqa: PTH118
        status = os.stat(name)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        # A program can set mtime back, but not ctime.
        times = (status.st_mtime_ns, status.st_ctime_ns)
        version = (status.st_size, *times, status.st_ino) if HAS_CHANGE_TIME else ()
        return FileStat(status.st_size, version, max(times))

    def read(self, path: bytes) -> bytes:
        if self.confined:
            self.stat(path)  # a pipe would block
        return self.file(path).read_bytes()

    def open(self, path: bytes) -> BinaryIO:
        return self.file(path).open("rb")

    def read_range(self, path: bytes, start: int, size: int) -> bytes:
        with self.open(path) as file:
            file.seek(start)
            return file.read(size)

    def file(self, path: bytes) -> Path:
        """Return where a file is."""
        file = self.folder / os.fsdecode(path)
        if self.confined and not file.resolve().is_relative_to(self.folder.resolve()):
            raise OSError("outside the image folder")
        return file


@dataclass(frozen=True)
class MergedSource(ImageSource):
    """Several folders by name: the paths of each begin with its name and a slash."""

    sources: Mapping[str, FolderSource]

    @property
    def root(self) -> str:
        return os.pathsep.join(source.root for source in self.sources.values())

    def list(self) -> Iterator[bytes]:
        for name, source in self.sources.items():
            yield from (os.fsencode(name) + b"/" + path for path in source.list())

    def stat(self, path: bytes) -> FileStat:
        source, below = self._split(path)
        return source.stat(below)

    def read(self, path: bytes) -> bytes:
        source, below = self._split(path)
        return source.read(below)

    def file(self, path: bytes) -> Path:
        """Return where a file is."""
        source, below = self._split(path)
        return source.file(below)

    def _split(self, path: bytes) -> tuple[FolderSource, bytes]:
        name, _, below = path.partition(b"/")
        if (source := self.sources.get(os.fsdecode(name))) is None:
            raise FileNotFoundError("its folder is not part of the set")
        return source, below
