"""Download a pinned file from the web, continued after a cut connection."""

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

TIMEOUT_SECONDS = 10  # to connect, and between two bytes: then the connection counts as cut
BYTES_PER_READ = 2**16  # a read returns what has arrived, at most this; four TLS records
MEGABYTE = 10**6  # the unit of progress

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file on the web, pinned by size in bytes and SHA-256; people find it on its ``page``."""

    url: str
    page: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.name

    def missing_bytes(self, folder: Path) -> int:
        """How many bytes are still to be downloaded into a folder."""
        if (folder / self.name).exists():
            return 0
        return max(0, self.size - _length(self.partial(folder)))

    def partial(self, folder: Path) -> Path:
        """Where the bytes stand until the file is whole."""
        return folder / f"{self.name}.part"


def download(archive: Archive, folder: Path, *, progress: Callable[[int, int], None]) -> Path:
    """Put the file into a folder, check size and digest, and return its path.

    A whole file that is there already, placed by hand for instance, is checked and used. A partial
    one is continued: as long as every connection brings something, a cut one is followed by
    another, and what has arrived is kept for the next run. ``progress`` is called with the
    megabytes that are there and the megabytes in all.

    Raises UnreachableError if the server does not serve a file of this size, BadDataError for
    another content.
    """
    target, partial = folder / archive.name, archive.partial(folder)
    if target.exists():
        log.info("checking %s", printable(target))
        if problem := _problem(archive, target):
            raise BadDataError(f"{printable(target)} {problem}; delete it and run this again")
        partial.unlink(missing_ok=True)
        return target
    while (before := _length(partial)) < archive.size:
        _receive(archive, partial, progress)
        if _length(partial) <= before:
            raise _unreachable(archive, folder, "the connection was cut again and again")
    log.info("checking %s", archive)
    if problem := _problem(archive, partial):
        partial.unlink()  # going on from wrong bytes would never end well
        raise BadDataError(
            f"the downloaded {archive} {problem}; it was deleted: run this again, "
            f"or {_by_hand(archive, folder)}"
        )
    partial.replace(target)
    return target


def _receive(archive: Archive, partial: Path, progress: Callable[[int, int], None]) -> None:
    """Append what one connection brings; a cut one just ends early."""
    with _connect(archive, partial) as response:
        have = _first_byte(archive, partial, response)
        with partial.open("ab") as file:
            if have < file.tell():
                log.info("the server cannot continue a download: starting again")
                file.truncate(have)
            for chunk in _chunks(response):
                have += file.write(chunk[: archive.size - have])
                progress(have // MEGABYTE, archive.size // MEGABYTE)
                if have == archive.size:
                    return


def _connect(archive: Archive, partial: Path) -> http.client.HTTPResponse:
    """Ask for the bytes that are missing."""
    have = _length(partial)
    request = urllib.request.Request(archive.url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            request, timeout=TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
        raise _unreachable(archive, partial.parent, reason) from error
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise _unreachable(archive, partial.parent, reason) from error
    return response


def _first_byte(archive: Archive, partial: Path, response: http.client.HTTPResponse) -> int:
    """Where in the file the server's answer begins: 0 if it does not know ranges."""
    start, total = 0, response.headers.get("Content-Length", str(archive.size))
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
        start, total = (int(match[1]), match[2]) if match else (archive.size, content_range)
    if total != str(archive.size) or start > _length(partial):
        reason = f"the server offers {total} bytes, not {archive.size}: another file"
        raise _unreachable(archive, partial.parent, reason)
    return start


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The bytes as they arrive; an error ends them as a cut connection does."""
    while True:
        try:
            chunk = response.read1(BYTES_PER_READ)
        except (OSError, http.client.HTTPException):
            return
        if not chunk:
            return
        yield chunk


def _problem(archive: Archive, path: Path) -> str:
    """What is wrong with a file, as the rest of a sentence; empty if it is the expected one."""
    if (length := _length(path)) != archive.size:
        return f"holds {length:,} bytes, expected {archive.size:,}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        return f"has SHA-256 {digest}, expected {archive.sha256}"
    return ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(archive: Archive, folder: Path, reason: str) -> UnreachableError:
    kept = _length(archive.partial(folder))
    go_on = f"{file_size(kept)} are kept: run this again to go on, or " if kept else ""
    return UnreachableError(
        f"{archive.url} could not be reached ({printable(reason)}); "
        f"{go_on}{_by_hand(archive, folder)}"
    )


def _by_hand(archive: Archive, folder: Path) -> str:
    return (
        f"fetch {archive} with a browser from {archive.page}, put it into the folder "
        f"{printable(folder)} under that name and run this again"
    )
