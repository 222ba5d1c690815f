"""Plan and parts at an address, and the options of a cluster, without one."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from command import assert_one_line, run_command
from synthetic_images import make_image_folder

from pipeline import extract_features
from pipeline.cache.file import read_table
from pipeline.distributed.parts import compute_part, plan_extraction

fsspec = pytest.importorskip("fsspec", reason="needs the extra [storage]")

OPTIONS: dict[str, Any] = {"base": "pixels", "image_size": 16, "batch_size": 8}
FLAGS = ("--base", "pixels", "--image-size", "16", "--batch-size", "8")
ADDRESS = "memory://bucket/set"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    return make_image_folder(tmp_path / "set", per_class=100)  # 4 units of 64 rows


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def files_at(address: str) -> list[str]:
    files, folder = fsspec.url_to_fs(address)
    return sorted(name.rpartition("/")[2] for name in files.find(folder))


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("address", [ADDRESS, "file://{tmp}/shared", "{tmp}/shared"])
def test_parts_at_an_address_make_the_same_file(root: Path, tmp_path: Path, address: str) -> None:
    address = address.format(tmp=tmp_path)
    alone = extract_features(root, **OPTIONS, cache_dir="alone").table.path
    run_command("extract", root, *FLAGS, "--cache-dir", "m1", "--plan", "--shared", address)
    assert len(files_at(address)) == 1
    for part, rows in (("1/4", 64), ("2/4", 64), ("1/4", 0), ("4/4", 8)):
        finished = run_command(
            "extract", root, *FLAGS, "--cache-dir", "m2", "--part", part, "--shared", address
        )
        assert f"part {part}: {rows} rows computed" in finished.stdout
    assert not any(path.is_file() for path in Path("m2").rglob("*.h5"))
    assert len(files_at(address)) == 4
    finished = run_command("extract", root, *FLAGS, "--cache-dir", "m3", "--shared", address)
    assert "(64 computed)" in finished.stdout
    assert Path(finished.stdout.splitlines()[-1]).read_bytes() == alone.read_bytes()
    assert files_at(address) == []
    assert not any(Path("m3").glob("*.parts"))


def test_part_that_ends_after_publishing_leaves_nothing_and_changes_nothing(
    root: Path, memory: Any
) -> None:
    plan_extraction(root, **OPTIONS, shared=ADDRESS)
    plan = memory.cat_file("/bucket/set/extraction.plan")
    publish = ("extract", root, *FLAGS, "--shared", ADDRESS)
    path = Path(run_command(*publish).stdout.splitlines()[-1])
    published = path.read_bytes()
    memory.pipe_file("/bucket/set/extraction.plan", plan)
    assert compute_part(root, **OPTIONS, part="1/2", shared=ADDRESS).rows == 128
    assert len(files_at(ADDRESS)) > 1
    assert "(all from the cache)" in run_command(*publish).stdout
    assert files_at(ADDRESS) == []
    assert path.read_bytes() == published


def test_files_of_another_cache_are_neither_used_nor_deleted(root: Path, memory: Any) -> None:
    plan_extraction(root, **OPTIONS, shared=ADDRESS)
    compute_part(root, **OPTIONS, part="1/1", shared=ADDRESS)
    memory.pipe_file("/bucket/set/other.h5", b"no shard")
    earlier = files_at(ADDRESS)
    for flags in (("--plan",), ()):
        finished = run_command(
            "extract", root, "--base", "pixels", *flags, "--shared", ADDRESS, check=73
        )
        line = assert_one_line(finished)
        assert "contains the plan of another cache, of set with pixels: choose another" in line
    memory.rm_file("/bucket/set/extraction.plan")
    run_command("extract", root, "--base", "pixels", "--shared", ADDRESS)
    assert files_at(ADDRESS) == [name for name in earlier if name != "extraction.plan"]
    finished = run_command("extract", root, *FLAGS, "--shared", ADDRESS)
    assert "(all from the cache)" in finished.stdout
    assert len(read_table(Path(finished.stdout.splitlines()[-1]))) == 200
    assert files_at(ADDRESS) == ["other.h5"]


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--part", "1/2", "--shared", ADDRESS], 66, "extraction.plan does not exist: run"),
        (["--plan", "--shared", "s3://me:secret@host/x"], 2, "a user or password"),
        (["--plan", "--shared", "nonsense://x/y"], 2, "fsspec cannot open"),
        (["--plan", "--on", "ray"], 2, "--plan and --on are separate steps"),
        (["--part", ""], 2, "--part is empty: is a variable unset?"),
        (["--plan", "--shared", ""], 2, "--shared is empty: is a variable unset?"),
        (["--on", "dask"], 2, "--on: expected ray or ray://HOST:10001; received dask"),
        (["--on", "ray://host"], 2, "--on: expected ray or ray://HOST:10001"),
        (["--on", "ray"], 69, "ray is missing: pip install -e '.[ray]'"),
        (["--on", "ray", "--base", "pixels,pixels"], 2, "--on is for one base"),
    ],
)
def test_wrong_use_is_one_line(
    root: Path, flags: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # also where it is installed
    line = assert_one_line(run_command("extract", root, *FLAGS, *flags, check=code))
    assert message in line
    assert "secret" not in line


def test_caches_in_the_shared_folder_are_not_deleted(root: Path) -> None:
    """A cache has the datasets of a shard, and all its rows are published."""
    path = extract_features(root, **OPTIONS).table.path
    published = path.read_bytes()
    for flags in (["--plan"], ["--part", "1/1"], []):
        run_command("extract", root, *FLAGS, *flags, "--shared", "cache")
    assert path.read_bytes() == published
    assert not list(Path("cache").glob("*.plan"))


def test_storage_that_refuses_writes_is_one_line(
    root: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    plan_extraction(root, **OPTIONS, shared=ADDRESS)
    monkeypatch.setattr(type(memory), "pipe_file", refuse)
    for flags in (["--plan"], ["--part", "1/2"]):
        finished = run_command("extract", root, *FLAGS, *flags, "--shared", ADDRESS, check=69)
        assert "cannot be written (PermissionError: Access Denied)" in assert_one_line(finished)


def test_storage_that_refuses_reads_or_has_no_bucket_is_one_line(
    root: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_extraction(root, **OPTIONS, shared=ADDRESS)
    for method, error, steps in (
        ("find", FileNotFoundError("no such bucket"), (["--plan"], [], ["--part", "1/2"])),
        ("cat_file", PermissionError("Access Denied"), (["--plan"], [], ["--part", "1/2"])),
        ("rm_file", PermissionError("Access Denied"), ([],)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), method, mock.Mock(side_effect=error))
            for flags in steps:
                command = ("extract", root, *FLAGS, *flags, "--shared", ADDRESS)
                line = assert_one_line(run_command(*command, check=69))
                assert f"{ADDRESS} cannot be read ({type(error).__name__}: {error})" in line


def test_part_that_another_process_has_just_published_and_deleted_is_passed_over(
    root: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_extraction(root, **OPTIONS, shared=ADDRESS)
    find = type(memory).find

    def with_deleted_shard(*arguments: Any, **options: Any) -> dict[str, Any]:
        return {**find(*arguments, **options), f"/bucket/set/{32 * '0'}.h5": {"size": 100}}

    monkeypatch.setattr(type(memory), "find", with_deleted_shard)
    assert compute_part(root, **OPTIONS, part="1/1", shared=ADDRESS).rows == 200
    finished = run_command("extract", root, *FLAGS, "--shared", ADDRESS)
    assert "(all from the cache)" in finished.stdout


def test_cluster_that_refuses_is_not_replaced_and_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes the options of a new cluster only if it finds none."""
    failures = [ConnectionError("authentication failed"), ValueError("connecting to an existing")]
    monkeypatch.setitem(sys.modules, "ray", mock.Mock(init=mock.Mock(side_effect=failures)))
    finished = run_command("extract", root, *FLAGS, "--on", "ray", check=69)
    assert "(ConnectionError: authentication failed)" in assert_one_line(finished)


@pytest.mark.slow
def test_parts_in_a_bucket_make_the_same_file(root: Path, s3_server: str) -> None:
    alone = extract_features(root, **OPTIONS, cache_dir="alone").table.path.read_bytes()
    address = "s3://bucket/set-pixels"
    plan_extraction(root, **OPTIONS, shared=address)
    for part, rows in (("1/2", 128), ("2/2", 72), ("2/2", 0)):
        done = compute_part(root, **OPTIONS, part=part, shared=address, cache_dir="m2")
        assert done.rows == rows
    finished = run_command("extract", root, *FLAGS, "--cache-dir", "m3", "--shared", address)
    assert Path(finished.stdout.splitlines()[-1]).read_bytes() == alone
    assert files_at(address) == []
