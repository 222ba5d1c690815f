"""Downloads from a local server that fails on request."""

import contextlib
import hashlib
import random
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.archive import Archive, download
from pipeline.errors import BadDataError, UnreachableError

CONTENT = random.Random(0).randbytes(2_500_000)


@dataclass
class Server:
    """Behaviour of the server, and the requests that it received."""

    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    supports_ranges: bool = True
    sends_length: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes of each of the next answers
    stalls: bool = False  # stays silent instead of closing the connection
    ranges: list[str | None] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server() -> Iterator[Server]:
    behaviour = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested = self.headers["Range"]
            behaviour.ranges.append(requested)
            content = behaviour.content
            start = 0
            if requested and behaviour.supports_ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1])
                self.send_response(206)
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            else:
                self.send_response(behaviour.status)
            if behaviour.sends_length:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            with contextlib.suppress(ConnectionError):  # a client may close early
                self.wfile.write(body[: behaviour.cuts.pop(0)] if behaviour.cuts else body)
            if behaviour.stalls:
                self.wfile.flush()
                behaviour.release.wait()

        def log_message(self, *args: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    behaviour.url = f"http://127.0.0.1:{http_server.server_port}/images.zip"
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield behaviour
    behaviour.release.set()
    http_server.shutdown()
    http_server.server_close()
    thread.join()


@pytest.fixture
def archive(server: Server) -> Archive:
    return Archive(
        url=server.url,
        page="https://example.org/for-people",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


@pytest.fixture
def closed_port() -> str:
    """A URL with a port that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/images.zip"


def fetch(archive: Archive, folder: Path) -> Path:
    return download(archive, folder, progress=lambda done, total: None)


def test_downloads_the_file_and_shows_megabytes(archive: Archive, tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    path = download(archive, tmp_path, progress=lambda done, total: shown.append((done, total)))
    assert path == tmp_path / "images.zip"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["images.zip"]
    assert shown == sorted(shown)
    assert shown[-1] == (2, 2)


def test_cut_connection_is_continued(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.cuts = [100_000, 900_000]
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=1000000-"]


def test_partial_file_of_an_earlier_run_is_continued(
    server: Server, archive: Archive, tmp_path: Path
) -> None:
    (tmp_path / "images.zip.part").write_bytes(CONTENT[:2_000_000])
    assert archive.missing_bytes(tmp_path) == 500_000
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=2000000-"]


def test_complete_partial_file_needs_no_server(
    archive: Archive, closed_port: str, tmp_path: Path
) -> None:
    (tmp_path / "images.zip.part").write_bytes(CONTENT)
    assert fetch(replace(archive, url=closed_port), tmp_path).read_bytes() == CONTENT


def test_download_starts_again_if_the_server_ignores_ranges(
    server: Server, archive: Archive, tmp_path: Path
) -> None:
    server.supports_ranges = False
    server.cuts = [100_000]
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_connection_without_new_bytes_ends_the_download_and_keeps_the_bytes(
    server: Server, archive: Archive, tmp_path: Path
) -> None:
    server.cuts = [100_000, 0]
    with pytest.raises(UnreachableError, match=r"100\.0 kB are kept"):
        fetch(archive, tmp_path)
    assert (tmp_path / "images.zip.part").read_bytes() == CONTENT[:100_000]
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


def test_server_that_restarts_and_cuts_is_not_retried_forever(
    server: Server, archive: Archive, tmp_path: Path
) -> None:
    server.supports_ranges = False
    server.cuts = [5_000] * 10
    with pytest.raises(UnreachableError):
        fetch(archive, tmp_path)
    assert len(server.ranges) == 2


@pytest.mark.parametrize("silent_after", [0, 70_000])
def test_silent_server_counts_as_cut(
    server: Server, archive: Archive, tmp_path: Path, silent_after: int
) -> None:
    server.stalls = True
    server.cuts = [silent_after, 0]
    with pytest.raises(UnreachableError):
        fetch(replace(archive, timeout=0.2), tmp_path)
    assert (tmp_path / "images.zip.part").stat().st_size == silent_after


def test_server_that_never_answers_is_unreachable(archive: Archive, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/images.zip"
        with pytest.raises(UnreachableError, match="timed out"):
            fetch(replace(archive, url=url, timeout=0.2), tmp_path)


def test_wrong_content_is_deleted_and_the_next_run_succeeds(
    server: Server, archive: Archive, tmp_path: Path
) -> None:
    (tmp_path / "images.zip.part").write_bytes(b"other bytes")
    with pytest.raises(BadDataError, match=rf"has SHA-256 \w+, expected {archive.sha256}"):
        fetch(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


def test_partial_file_that_is_too_long_is_deleted(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(CONTENT + b"more")
    with pytest.raises(BadDataError, match=r"has 2,500,004 bytes, expected 2,500,000"):
        fetch(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing_bytes", [0, 100])
def test_file_of_another_size_is_refused_before_it_is_downloaded(
    server: Server, archive: Archive, tmp_path: Path, existing_bytes: int
) -> None:
    server.content = b"<html>Please log in to this network</html>" * 10
    if existing_bytes:
        (tmp_path / "images.zip.part").write_bytes(CONTENT[:existing_bytes])
    with pytest.raises(UnreachableError, match="expected 2500000 bytes, the server offers 420"):
        fetch(archive, tmp_path)
    assert archive.missing_bytes(tmp_path) == len(CONTENT) - existing_bytes


def test_download_never_exceeds_the_expected_size(
    server: Server, archive: Archive, tmp_path: Path
) -> None:
    server.sends_length = False
    server.content = CONTENT + b"x" * 1_000_000
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


def test_error_status_is_named(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UnreachableError, match="404 Not Found"):
        fetch(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_message_explains_the_manual_download(
    archive: Archive, closed_port: str, tmp_path: Path
) -> None:
    offline = replace(archive, url=closed_port)
    with pytest.raises(UnreachableError) as caught:
        fetch(offline, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (closed_port, "images.zip", offline.page, str(tmp_path)):
        assert part in message
    (tmp_path / "images.zip").write_bytes(CONTENT)
    assert offline.missing_bytes(tmp_path) == 0
    assert fetch(offline, tmp_path) == tmp_path / "images.zip"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(CONTENT[:-1], "has 2,499,999 bytes"), (b"x" + CONTENT[1:], "has SHA-256")],
)
def test_wrong_file_placed_by_hand_is_refused_and_kept(
    server: Server, archive: Archive, tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(BadDataError, match=problem):
        fetch(archive, tmp_path)
    assert (tmp_path / "images.zip").read_bytes() == content
    assert server.ranges == []
