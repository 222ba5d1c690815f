"""Sets in object storage, through fsspec: in memory, and on a local S3 server."""

import contextlib
import io
import json
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_line, run_command, run_process
from image_layouts import LAYOUTS
from PIL import Image

from pipeline import extract_features
from pipeline.errors import NoInputError, UnreachableError, UsageError
from pipeline.images import hashes, object_storage
from pipeline.images.object_storage import as_url, without_secrets
from pipeline.images.sets import is_gone, open_set
from pipeline.report.thumbnails import read_thumbnails

fsspec = pytest.importorskip("fsspec", reason="needs the extra [storage]")

FOLDER = "memory://bucket/pets"


class Memory:
    """fsspec's memory as a storage that counts reads and can fail."""

    def __init__(self) -> None:
        self.files = fsspec.filesystem("memory")
        self.reads: list[str] = []
        self.before_read: Callable[[str], None] = lambda name: None

    def upload(self, root: Path, place: str = "/bucket/pets") -> None:
        for path in root.rglob("*"):
            if path.is_file():
                name = f"{place}/{path.relative_to(root).as_posix()}"
                self.files.pipe_file(name, path.read_bytes())


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    storage = Memory()
    kind = type(storage.files)
    cat_file = kind.cat_file

    def counted(self: Any, path: str, *arguments: Any, **options: Any) -> bytes:
        storage.reads.append(path)
        storage.before_read(path)
        content: bytes = cat_file(self, path, *arguments, **options)
        return content

    monkeypatch.setattr(kind, "cat_file", counted)
    monkeypatch.setattr(object_storage, "SECONDS_BEFORE_RETRY", 0.01)
    monkeypatch.setattr(object_storage, "MAX_SECONDS", 0.02)  # three requests in all
    yield storage
    if storage.files.exists("/bucket"):
        storage.files.rm("/bucket", recursive=True)


def extract(name: str = FOLDER, **options: Any) -> Any:
    return extract_features(name, **{"base": "pixels", "image_size": 8} | options)


def test_set_in_storage_is_read_once_and_only_changes_again(
    memory: Memory, synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "RACY_NS", 0)  # the test does not wait for two seconds
    expected = extract(str(synthetic_set), cache_dir=Path("other")).table
    memory.upload(synthetic_set)
    memory.files.touch("/bucket/pets/train/plain/.hidden")
    done = extract()
    assert (done.computed, done.images.name, done.images.classes) == (72, "pets", expected.classes)
    assert sorted(done.table.columns.paths) == sorted(expected.columns.paths)
    assert sorted(done.table.columns.splits) == sorted(expected.columns.splits)
    assert done.table.document["root"] == FOLDER
    fetched = len(memory.reads)
    assert fetched < 72 + 64 + 1  # the sample of `choose_range` again
    assert extract().computed == 0
    assert len(memory.reads) == fetched
    changed = "/bucket/pets/test/plain/000.png"
    memory.files.pipe_file(
        changed, memory.files.store["/bucket/pets/test/plain/001.png"].getvalue()
    )
    memory.reads.clear()
    assert extract().computed == 0  # the content of another image
    assert changed in memory.reads


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_several_images_are_read_in_storage(
    layout: Callable[[Path, Path], Path], memory: Memory, synthetic_set: Path, tmp_path: Path
) -> None:
    moved = layout(synthetic_set, tmp_path / "moved")
    assert extract(str(synthetic_set)).computed == 72
    memory.upload(moved.parent, "/bucket/sets")
    done = extract(f"memory://bucket/sets/{moved.name}")
    assert (done.computed, len(done.table), len(set(done.table.columns.splits))) == (0, 72, 3)


def test_cut_connection_is_repeated(memory: Memory, synthetic_set: Path) -> None:
    memory.upload(synthetic_set)
    failures = iter([ConnectionResetError("cut"), TimeoutError("slow")])

    def fail(name: str) -> None:
        for error in failures:
            raise error

    memory.before_read = fail
    done = extract()
    assert (done.computed, done.skipped) == (72, ())


def test_connection_lost_within_an_archive_or_table_is_one_line(
    memory: Memory, synthetic_set: Path, tmp_path: Path
) -> None:
    def fail_after(limit: int, name: str) -> None:
        if len(memory.reads) > limit:
            raise RuntimeError("lost")

    for layout in LAYOUTS:
        moved = layout(synthetic_set, tmp_path / "moved")
        memory.before_read = lambda name: None
        memory.upload(moved.parent, "/bucket/sets")
        for limit in (0, 1, 4):
            memory.reads.clear()
            memory.before_read = partial(fail_after, limit)
            with pytest.raises(UnreachableError, match="RuntimeError: lost"):
                extract(f"memory://bucket/sets/{moved.name}")


def test_lost_connection_ends_the_run_and_keeps_committed_rows(
    memory: Memory, synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "KEPT_BYTES", 0)
    memory.upload(synthetic_set)

    def fail(name: str) -> None:
        if len(memory.reads) > limit:
            raise RuntimeError("https://me:secret@host/x?token=secret is lost")  # of any type

    memory.before_read, limit = fail, 40  # while hashing
    with pytest.raises(UnreachableError, match="committed rows are kept") as lost:
        extract()
    assert "secret" not in str(lost.value)
    assert "\n" not in str(lost.value)
    assert len(memory.reads) < 60  # other threads do not go on
    memory.reads.clear()
    limit = 40 + 64 + 40  # hashes the rest, samples the range, and decodes 40
    with pytest.raises(UnreachableError):
        extract(batch_size=4)
    memory.before_read = lambda name: None
    assert 0 < extract(batch_size=4).computed < 72


def test_file_that_changes_or_goes_between_hash_and_read_is_skipped(
    memory: Memory, synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "KEPT_BYTES", 0)
    memory.upload(synthetic_set)
    changed, gone = (f"/bucket/pets/train/plain/00{i}.png" for i in range(2))

    def change(name: str) -> None:
        if len(memory.reads) == 73:  # all are hashed
            memory.files.pipe_file(changed, b"other")
            memory.files.rm(gone)

    memory.before_read = change
    done = extract()
    assert done.computed == 70
    assert sorted((item.path, item.reason.partition(":")[0]) for item in done.skipped) == [
        (b"train/plain/000.png", "changed while it was being read"),
        (b"train/plain/001.png", "cannot be read"),
    ]


@pytest.mark.slow
def test_commands_name_the_address(memory: Memory, synthetic_set: Path) -> None:
    memory.upload(synthetic_set)
    extracted = json.loads(
        run_command("extract", FOLDER, "--base", "pixels", "--image-size", "8", "--json").stdout
    )
    assert extracted["images"] == 72
    finished = run_command("classify", FOLDER, "--heads", "logistic", "--no-audit", "--check")
    assert "no decision of 24 changed" in finished.stdout
    assert "does not exist" in assert_one_line(run_command("extract", f"{FOLDER}s", check=66))
    assert f"extract {FOLDER}s first" in assert_one_line(
        run_command("classify", f"{FOLDER}s", check=66)
    )
    assert "download it" in assert_one_line(run_command("extract", f"{FOLDER}.csv", check=2))
    assert "download it" in assert_one_line(run_command("predict", FOLDER, check=66))
    assert "nothing to prune" in run_command("cache", "prune").stdout


def test_report_has_no_thumbnails_if_the_storage_is_unreachable(
    memory: Memory, synthetic_set: Path
) -> None:
    memory.upload(synthetic_set)
    table = extract().table
    assert all(each.address for each in read_thumbnails(table, range(3)).values())

    def fail(name: str) -> None:
        raise OSError("no network")

    memory.before_read = fail
    assert {each.reason for each in read_thumbnails(table, range(3)).values()} == {
        "the images cannot be reached"
    }
    assert not is_gone(table.document)


@pytest.mark.parametrize(
    "name",
    ["s3://key:secret@bucket/set", "sftp://me:secret@host/set", "https://host/x.tar?token=secret",
     "zip://*.jpg::s3://secret"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["extract", "classify", "finetune"])
def test_address_with_a_secret_is_refused_without_it(name: str, command: str) -> None:
    for written in (name, Path(name)):
        with pytest.raises(UsageError) as refused:
            as_url(written)
        assert "secret" not in str(refused.value)
    assert "secret" not in assert_one_line(run_command(command, name, check=2))


def test_secrets_are_removed_from_messages() -> None:
    text = "GET https://me:pass@host/a.png?X-Amz-Signature=abc: denied"
    assert without_secrets(text) == "GET https://…@host/a.png?… denied"


def test_names_of_this_machine_are_no_addresses(tmp_path: Path) -> None:
    (tmp_path / "s3:" / "set").mkdir(parents=True)
    names = ("data/pets", "C:/data", "c:\\data", "labels.csv", "a:b", "s3:/set", "/x://y")
    assert [as_url(name) for name in names] == [""] * len(names)
    with pytest.raises(UsageError, match="name its path, /data/pets"):
        as_url("file:///data/pets")
    assert as_url(Path("s3://bucket/set/")) == as_url("S3://bucket/set/") == "s3://bucket/set"


def test_storage_without_its_package_or_of_no_kind_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open"):
        open_set("nothing://bucket")
    with pytest.raises(NoInputError, match="does not exist"):
        open_set("memory://nothing/x.tar")


class CutProxy:
    """A TCP proxy that cuts connections after ``left`` bytes of answers, once or for good."""

    def __init__(self, target: str) -> None:
        url = urllib.parse.urlsplit(target)
        self._target = (url.hostname, url.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.left, self.is_dead_after, self.cuts = 10**12, False, 0
        threading.Thread(target=self._serve, daemon=True).start()

    def cut_after(self, count: int, *, is_dead_after: bool) -> None:
        self.is_dead_after, self.left = is_dead_after, count

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self.left <= 0:
                client.close()
                continue
            server = socket.create_connection(self._target)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pipe, args=ends, daemon=True).start()

    def _pipe(self, source: socket.socket, target: socket.socket) -> None:
        is_answer = source.getpeername() == self._target
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if is_answer and 0 < self.left <= len(data):
                    self.cuts += 1
                    self.left = 0 if self.is_dead_after else 10**12
                    target.sendall(data[: len(data) // 2])
                    break
                self.left -= len(data) * is_answer
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_2000_images_on_a_server_whose_connection_is_cut(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = CutProxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    storage = fsspec.filesystem("s3", endpoint_url=s3_server)
    rng = np.random.default_rng(0)
    files = {}
    for number in range(2000):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
        files[f"bucket/set/{('cat', 'dog')[number % 2]}/{number:04d}.png"] = file.getvalue()
    storage.pipe(files)
    command = ("extract", "s3://bucket/set", "--base", "pixels", "--image-size", "8", "--json")
    proxy.cut_after(900_000, is_dead_after=True)
    error = assert_one_line(run_process(*command, check=69))
    assert "committed rows are kept" in error
    proxy.cut_after(300_000, is_dead_after=False)
    done = json.loads(run_process(*command).stdout)
    assert proxy.cuts == 2
    assert (done["images"], done["skipped"]) == (2000, [])
    contents = b"".join(path.read_bytes() for path in Path("cache").rglob("*") if path.is_file())
    assert b"very-secret" not in contents
    storage.pipe_file("bucket/set/cat/0000.png", files["bucket/set/dog/0001.png"])
    before = proxy.left
    done = json.loads(run_process(*command).stdout)
    assert (done["images"], done["computed"]) == (2000, 0)
    assert before - proxy.left < 1_000_000  # the listing, not the images
