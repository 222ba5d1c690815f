"""Digests are remembered while a file is certainly unchanged, as in git's index."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.images.hashes import hash_files
from pipeline.images.scan import scan_folder
from pipeline.images.source import FileStat, FolderSource, ImageSource


def test_digests_are_sha256_of_the_files(synthetic_set: Path) -> None:
    digests, skipped = hash_files(FolderSource(synthetic_set), scan_folder(synthetic_set).paths)
    assert not skipped
    for path, digest in list(digests.items())[::17]:
        content = (synthetic_set / os.fsdecode(path)).read_bytes()
        assert digest == hashlib.sha256(content).digest()


def test_file_that_vanishes_before_hashing_is_skipped(synthetic_set: Path) -> None:
    folder = scan_folder(synthetic_set)
    (synthetic_set / os.fsdecode(folder.files[3].path)).unlink()
    digests, skipped = hash_files(FolderSource(synthetic_set), folder.paths)
    assert len(digests) == 71
    assert [item.path for item in skipped] == [folder.files[3].path]


PLANTED = "00" * 32


def plant_digests(folder: Path, *, seconds: float = 10) -> None:
    """Write false digests into the index, as of files hashed so many seconds later.

    A file that gets its false digest was not read.
    """
    (path,) = folder.iterdir()
    entries = json.loads(path.read_text())
    for entry in entries.values():
        entry[4] += int(seconds * 1e9)
        entry[5] = PLANTED
    path.write_text(json.dumps(entries))


@pytest.mark.parametrize("name", ["unchanged", "recent", "rehash", "no change time"])
def test_only_unchanged_files_are_not_read_again(
    synthetic_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    paths, index = scan_folder(synthetic_set).paths, tmp_path / "index"
    digests, _ = hash_files(FolderSource(synthetic_set), paths, index_folder=index)
    plant_digests(index, seconds=0 if name == "recent" else 10)
    if name == "no change time":  # Windows
        monkeypatch.setattr("pipeline.images.source.HAS_CHANGE_TIME", False)
    again, _ = hash_files(
        FolderSource(synthetic_set), paths, index_folder=index, rehash=name == "rehash"
    )
    planted = dict.fromkeys(paths, bytes.fromhex(PLANTED))
    assert again == (planted if name == "unchanged" else digests)


def test_content_changed_under_the_same_size_and_mtime_is_seen(
    synthetic_set: Path, tmp_path: Path
) -> None:
    paths = scan_folder(synthetic_set).paths
    hash_files(FolderSource(synthetic_set), paths, index_folder=tmp_path / "index")
    plant_digests(tmp_path / "index")
    victim = synthetic_set / os.fsdecode(paths[5])
    stat = victim.stat()
    content = bytearray(victim.read_bytes())
    content[-20] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    digests, _ = hash_files(FolderSource(synthetic_set), paths, index_folder=tmp_path / "index")
    assert digests[paths[5]] == hashlib.sha256(content).digest()
    assert [path for path in paths if digests[path].hex() != PLANTED] == [paths[5]]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": [1,2,3,4,5,"zz"]}', "{"])
def test_damaged_index_is_ignored(synthetic_set: Path, tmp_path: Path, text: str) -> None:
    paths = scan_folder(synthetic_set).paths
    expected = hash_files(FolderSource(synthetic_set), paths, index_folder=tmp_path / "index")
    (index,) = (tmp_path / "index").iterdir()
    index.write_text(text)
    assert (
        hash_files(FolderSource(synthetic_set), paths, index_folder=tmp_path / "index") == expected
    )


class CountingSource(ImageSource):
    """Numbered files with exact versions, as in object storage; counts the reads."""

    root = "numbers"

    def __init__(self, count: int) -> None:
        self.files = {b"%d" % number: b"content %d" % number for number in range(count)}
        self.read_paths: list[bytes] = []

    def list(self) -> Iterator[bytes]:
        return iter(self.files)

    def stat(self, path: bytes) -> FileStat:
        content = self.files[path]
        return FileStat(len(content), (hashlib.md5(content).hexdigest(),))

    def read(self, path: bytes) -> bytes:
        self.read_paths.append(path)
        return self.files[path]


@pytest.mark.parametrize("count", [1, 31, 1000])
def test_of_many_files_only_the_changed_one_is_read_again(tmp_path: Path, count: int) -> None:
    source = CountingSource(count)
    hash_files(source, source.list(), index_folder=tmp_path)
    assert sorted(source.read_paths) == sorted(source.files)
    changed = b"%d" % (count // 2)
    source.files[changed] += b"!"
    source.read_paths.clear()
    digests, skipped = hash_files(source, source.list(), index_folder=tmp_path)
    assert source.read_paths == [changed]
    assert digests == {
        path: hashlib.sha256(content).digest() for path, content in source.files.items()
    }
    assert list(digests) == list(source.files)
    assert not skipped
