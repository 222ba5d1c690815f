"""Object storage, such as ``s3://bucket/set``, through fsspec.

fsspec finds credentials and endpoints in the environment and its configuration; an address with a
password is refused.
"""

import contextlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, TypeVar

from pipeline.errors import UnreachableError, UsageError
from pipeline.images.source import FileStat, FileStore
from pipeline.text import printable

SECONDS_BEFORE_RETRY = 0.5  # doubled each time
MAX_SECONDS = 2.0  # the last one: four requests in all
READ_AHEAD = 4 * 2**20  # bytes of an archive or table in one request
KEPT_BYTES = 128 * 2**20
EXACT = ("ETag", "etag", "md5Hash", "blob_id", "content_md5")  # of the content, by storage
TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub",
            "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "http": "aiohttp", "https": "aiohttp",
            "sftp": "paramiko", "ssh": "paramiko"}  # fmt: skip
# Only this module repeats requests: the attempts of three layers would multiply to minutes
OPTIONS = {name: {"config_kwargs": {"retries": {"max_attempts": 0}}} for name in ("s3", "s3a")}
GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

Result = TypeVar("Result")


def as_url(name: str | os.PathLike[str]) -> str:
    """Return the address that a name is, or an empty string.

    pathlib has made ``s3:/bucket`` of ``s3://bucket``. Raises UsageError, without the address, for
    one with a password or a query, which are secrets.
    """
    text = os.fspath(name)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", text, re.DOTALL)
    if not found or os.path.exists(text):  # noqa: PTH110 - a folder s3: of this machine
        return ""
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    if scheme in ("file", "local"):
        raise UsageError(f"{printable(text)} is on this machine: name its path, /{printable(rest)}")
    if "@" in rest.partition("/")[0]:
        raise UsageError(
            f"an address with a user or password, {scheme}://…@…: it would be written into the "
            f"cache; set them in the environment or in fsspec's configuration"
        )
    if scheme.startswith("http") and "?" in rest:
        raise UsageError(f"an address with a query, {scheme}://…?…: download the file first")
    if "::" in text:
        raise UsageError(f"{scheme}://…::…: chained addresses are not read")
    return f"{scheme}://{rest}"


def without_secrets(text: str) -> str:
    """Remove queries and passwords from the addresses in a text."""
    text = re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)
    return re.sub(r"://[^/\s@]*@", "://…@", text)


class StorageSource(FileStore):
    """The files below an address, read in several threads.

    A failed request is repeated some times, then raises UnreachableError: the run ends, and goes
    on later. A missing file raises FileNotFoundError: the run goes on without it.
    ``is_unread`` until the first file is read: no file has changed since the last run.
    """

    def __init__(self, url: str) -> None:
        scheme = url.partition("://")[0]
        try:
            from fsspec import url_to_fs

            # No listing of an earlier run in this process
            self._files, self._folder = url_to_fs(
                url,
                use_listings_cache=False,
                skip_instance_cache=True,
                **OPTIONS.get(scheme, {}),
            )
            self._files.retries = 1  # of s3fs
        except ImportError as error:
            package = PACKAGES.get(scheme, "fsspec")
            raise UnreachableError(
                f"{printable(url)} needs fsspec and {package}: pip install fsspec {package}, or "
                f"pip install -e '.[storage]' for S3"
            ) from error
        except ValueError as error:
            raise UsageError(
                f"{printable(url)} is an address that fsspec cannot open "
                f"({printable(str(error))}): expected s3://, gs://, hf:// or another storage"
            ) from error
        except Exception as error:  # each storage has its own errors
            raise self.unreachable(url, error) from error
        self._root = url
        self._folder = self._folder.rstrip("/")
        self._infos: Mapping[bytes, Mapping[str, Any]] = {}
        self._failure: UnreachableError | None = None
        self.is_unread = True
        # Files are read to hash them and again to decode them: a small set is fetched once.
        self._kept: dict[bytes, bytes] = {}
        self._free = KEPT_BYTES

    @property
    def root(self) -> str:
        return self._root

    def list(self) -> Iterator[bytes]:
        if not self._infos:
            found = self._retry(lambda: self._files.find(self._folder, detail=True))
            below = {name[len(self._folder) :].lstrip("/"): info for name, info in found.items()}
            self._infos = {
                os.fsencode(name): info
                for name, info in below.items()
                if name and not name.endswith("/")  # markers of empty folders
            }
        yield from self._infos

    def stat(self, path: bytes) -> FileStat:
        info = self._infos.get(path) or self._retry(lambda: self._files.info(self._name(path)))
        return _stat(info)

    def read(self, path: bytes) -> bytes:
        if self._infos.get(path, {}).get("size") == 0:  # an invalid range
            return b""
        self.is_unread = False
        if (kept := self._kept.pop(path, None)) is not None:
            return kept
        # Without a start, s3fs requests the size first
        content: bytes = self._retry(lambda: self._files.cat_file(self._name(path), start=0))
        if len(content) < self._free:  # may be negative for a moment, between threads
            self._free -= len(content)
            self._kept[path] = content
        return content

    def read_range(self, path: bytes, start: int, size: int) -> bytes:
        if not size:
            return b""
        content: bytes = self._retry(
            lambda: self._files.cat_file(self._name(path), start=start, end=start + size)
        )
        return content

    def open(self, path: bytes, *, read_ahead: int = READ_AHEAD) -> BinaryIO:
        return io.BufferedReader(_StoredFile(self, path), read_ahead)

    def write(self, path: bytes, content: bytes) -> None:
        """Write a whole file; readers see all of it or none, except in a few storages."""
        try:
            self._retry(lambda: self._files.pipe_file(self._name(path), content))
        except OSError as error:
            raise self.unreachable(self._root, error, "written") from error

    def remove(self, path: bytes) -> None:
        """Delete a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(lambda: self._files.rm_file(self._name(path)))

    def _name(self, path: bytes) -> str:
        return f"{self._folder}/{os.fsdecode(path)}"

    def _retry(self, request: Callable[[], Result]) -> Result:
        wait = SECONDS_BEFORE_RETRY
        while True:
            if self._failure is not None:  # in another thread: do not wait again
                raise self._failure
            try:
                return request()
            except GONE:
                raise
            except Exception as error:  # each storage has its own errors
                if wait > MAX_SECONDS:
                    self._failure = self.unreachable(self._root, error)
                    raise self._failure from error
            time.sleep(wait)
            wait *= 2

    @staticmethod
    def unreachable(url: str, error: Exception, what: str = "read") -> UnreachableError:
        """Return the error of an address that a storage does not read or write."""
        text = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))
        return UnreachableError(
            f"{printable(url)} cannot be {what} ({printable(text[:200].rstrip(': '))}): check "
            f"address, credentials and network, and run the same command again; committed rows are "
            f"kept"
        )


class _StoredFile(io.RawIOBase):
    """A file in a storage; unlike fsspec's, it repeats failed requests as `StorageSource` does."""

    def __init__(self, source: StorageSource, path: bytes) -> None:
        self._source, self._path, self._position = source, path, 0
        self._size = source.stat(path).size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._position))
        content = self._source.read_range(self._path, self._position, size)[:size]
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _stat(info: Mapping[str, Any]) -> FileStat:
    size = int(info.get("size") or 0)
    for name in EXACT:
        if isinstance(info.get(name), str):
            return FileStat(size, (size, info[name]))
    for name in TIMES:
        value = info.get(name)
        if isinstance(value, datetime):
            return FileStat(size, (size, value.isoformat()), int(value.timestamp() * 1e9))
        if isinstance(value, int | float):
            return FileStat(size, (size, value), int(value * 1e9))
    return FileStat(size)
