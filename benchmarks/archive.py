"""Download a file of known size and SHA-256; continue after a cut connection."""

import hashlib
import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from pipeline.errors import BadDataError, UnreachableError
from pipeline.text import file_size, printable

BYTES_PER_READ = 2**16  # a read returns the bytes that have arrived, at most four TLS records
MEGABYTE = 10**6  # the unit of progress

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file on the web, pinned by size in bytes and SHA-256; ``page`` links to it for browsers."""

    url: str
    page: str
    size: int
    sha256: str
    timeout: float = 10.0  # seconds to connect and between two bytes; then the connection is cut

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.name

    def missing_bytes(self, folder: Path) -> int:
        """Return the number of bytes still to download into a folder."""
        if (folder / self.name).exists():
            return 0
        return max(0, self.size - _length(self.partial(folder)))

    def partial(self, folder: Path) -> Path:
        """Return the path of an incomplete download."""
        return folder / f"{self.name}.part"


def download(archive: Archive, folder: Path, *, progress: Callable[[int, int], None]) -> Path:
    """Download the file into a folder, check size and digest, and return its path.

    An existing file, for instance from a browser, is checked and used. A partial file is continued:
    after a cut, the download reconnects as long as each connection brings new bytes; the bytes are
    kept for the next run. ``progress`` is called with (megabytes done, megabytes in total).

    Raises UnreachableError if the server does not serve a file of this size, BadDataError if its
    content differs.
    """
    target, partial = folder / archive.name, archive.partial(folder)
    if target.exists():
        log.info("checking %s", printable(target))
        if problem := _problem(archive, target):
            raise BadDataError(
                f"{printable(target)} {problem}; delete it and run this command again"
            )
        partial.unlink(missing_ok=True)
        return target
    while (before := _length(partial)) < archive.size:
        _receive(archive, partial, progress)
        if _length(partial) <= before:
            raise _unreachable(archive, folder, "the connection was cut without new bytes")
    log.info("checking %s", archive)
    if problem := _problem(archive, partial):
        partial.unlink()  # continuing from wrong bytes would never succeed
        raise BadDataError(
            f"the downloaded {archive} {problem}; it was deleted: run this command again, "
            f"or {_manual_download(archive, folder)}"
        )
    partial.replace(target)
    return target


def _receive(archive: Archive, partial: Path, progress: Callable[[int, int], None]) -> None:
    """Append the bytes of one connection to the partial file, until it ends or is cut."""
    with _connect(archive, partial) as response:
        position = _first_byte(archive, partial, response)
        with partial.open("ab") as file:
            if position < file.tell():
                log.info("the server cannot continue a download: starting from the beginning")
                file.truncate(position)
            for chunk in _chunks(response):
                position += file.write(chunk[: archive.size - position])
                progress(position // MEGABYTE, archive.size // MEGABYTE)
                if position == archive.size:
                    return


def _connect(archive: Archive, partial: Path) -> http.client.HTTPResponse:
    """Request the missing bytes."""
    request = urllib.request.Request(archive.url)
    if start := _length(partial):
        request.add_header("Range", f"bytes={start}-")
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            request, timeout=archive.timeout
        )
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
        raise _unreachable(archive, partial.parent, reason) from error
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise _unreachable(archive, partial.parent, reason) from error
    return response


def _first_byte(archive: Archive, partial: Path, response: http.client.HTTPResponse) -> int:
    """Return the position of the answer's first byte: 0 if the server ignores ranges."""
    start, total = 0, response.headers.get("Content-Length", str(archive.size))
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
        start, total = (int(match[1]), match[2]) if match else (archive.size, content_range)
    if total != str(archive.size) or start > _length(partial):
        reason = f"expected {archive.size} bytes, the server offers {total}: another file"
        raise _unreachable(archive, partial.parent, reason)
    return start


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the bytes as they arrive; end at an error, as at the end of the file."""
    while True:
        try:
            chunk = response.read1(BYTES_PER_READ)
        except (OSError, http.client.HTTPException):
            return
        if not chunk:
            return
        yield chunk


def _problem(archive: Archive, path: Path) -> str:
    """Return the difference from the expected file as the end of a sentence; empty if none."""
    if (length := _length(path)) != archive.size:
        return f"has {length:,} bytes, expected {archive.size:,}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        return f"has SHA-256 {digest}, expected {archive.sha256}"
    return ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(archive: Archive, folder: Path, reason: str) -> UnreachableError:
    kept = _length(archive.partial(folder))
    resume = f"{file_size(kept)} are kept: run this command again to continue, or " if kept else ""
    return UnreachableError(
        f"{archive.url} could not be reached ({printable(reason)}); "
        f"{resume}{_manual_download(archive, folder)}"
    )


def _manual_download(archive: Archive, folder: Path) -> str:
    return (
        f"download {archive} with a browser from {archive.page}, put it into the folder "
        f"{printable(folder)} under that name and run this command again"
    )
