"""Digests are remembered while a file is certainly the same, as git's index does."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from pipeline.images import hashes
from pipeline.images.hashes import hash_files
from pipeline.images.scan import ImageFolder, scan_folder


def test_digests_are_sha256_of_the_files(synthetic_set: Path) -> None:
    digests, skipped = hash_files(synthetic_set, scan_folder(synthetic_set).paths)
    assert not skipped
    for path, digest in list(digests.items())[::17]:
        content = (synthetic_set / os.fsdecode(path)).read_bytes()
        assert digest == hashlib.sha256(content).digest()


def test_file_that_vanishes_before_hashing_is_skipped(synthetic_set: Path) -> None:
    found = scan_folder(synthetic_set)
    (synthetic_set / os.fsdecode(found.files[3].path)).unlink()
    digests, skipped = hash_files(synthetic_set, found.paths)
    assert len(digests) == 71
    assert [item.path for item in skipped] == [found.files[3].path]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was read."""
    seen: list[Path] = []
    real = hashes._hashed

    def counting(path: Path) -> hashes.Entry:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(hashes, "_hashed", counting)
    return seen


def make_old(root: Path, monkeypatch: pytest.MonkeyPatch) -> ImageFolder:
    """Let the files be older than what counts as recent."""
    later = time.time_ns() + 10 * hashes.RACY_NS
    monkeypatch.setattr(hashes.time, "time_ns", lambda: later)
    return scan_folder(root)


def test_unchanged_files_are_not_read_again(
    synthetic_set: Path, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make_old(synthetic_set, monkeypatch)
    first = hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index")
    assert len(reads) == 72
    assert hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index") == first
    assert len(reads) == 72


def test_files_that_changed_just_now_are_read_again(
    synthetic_set: Path, tmp_path: Path, reads: list[Path]
) -> None:
    found = scan_folder(synthetic_set)
    for _ in range(2):
        hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index")
    assert len(reads) == 144


def test_rehash_reads_every_file(
    synthetic_set: Path, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make_old(synthetic_set, monkeypatch)
    for _ in range(2):
        hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index", rehash=True)
    assert len(reads) == 144


def test_content_changed_under_the_same_size_and_mtime_is_seen(
    synthetic_set: Path, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make_old(synthetic_set, monkeypatch)
    before, _ = hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index")
    victim = synthetic_set / os.fsdecode(found.files[5].path)
    stat = victim.stat()
    content = bytearray(victim.read_bytes())
    content[-20] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    reads.clear()
    after, _ = hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index")
    assert [path.name for path in reads] == [victim.name]
    assert [path for path in found.paths if before[path] != after[path]] == [found.paths[5]]


def test_where_ctime_is_no_change_time_every_file_is_read(
    synthetic_set: Path, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "HAS_CHANGE_TIME", False)
    found = make_old(synthetic_set, monkeypatch)
    for _ in range(2):
        hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index")
    assert len(reads) == 144


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": [1,2,3,4,5,"zz"]}', "{"])
def test_damaged_index_is_as_good_as_none(
    synthetic_set: Path, tmp_path: Path, reads: list[Path], text: str
) -> None:
    found = scan_folder(synthetic_set)
    expected = hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index")
    (index,) = (tmp_path / "index").iterdir()
    index.write_text(text)
    assert hash_files(synthetic_set, found.paths, index_folder=tmp_path / "index") == expected
