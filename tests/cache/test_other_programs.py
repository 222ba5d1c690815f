"""What another program does to a cache is named, never called damage, and mended."""

import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import another_program, flip
from command import assert_one_line, run_command
from synthetic_images import make_image_folder

from pipeline import extract_features, load_features
from pipeline.cache.checksums import read_checksums


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 40 synthetic images."""
    folder = tmp_path_factory.mktemp("template")
    root = make_image_folder(folder / "synthetic", per_class=20)
    return extract_features(root, base="pixels", cache_dir=folder / "cache").table.path


@pytest.fixture
def cached(template: Path, tmp_path: Path) -> Path:
    """A copy of the template in ``cache/``; its images must not change."""
    shutil.copytree(template.parent, tmp_path / "cache")
    return Path("cache") / template.name


def make_older(path: Path) -> None:
    """Move a cache's checksums behind the HDF5 data, as in files of earlier versions."""
    content = path.read_bytes()
    with h5py.File(path, "a") as file:
        del file["checksums"]
    assert path.stat().st_size < len(content)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_opening_for_writing_and_closing_changes_nothing(cached: Path, libver: str) -> None:
    content = cached.read_bytes()
    for mode in ("a", "r+"):
        with h5py.File(cached, mode, libver=libver) as file:
            assert len(file["features/pixels"][3]) == 32
    assert cached.read_bytes() == content
    assert "every byte is correct" in run_command("cache", "verify", cached).stdout


def test_cache_that_is_open_for_writing_is_busy_in_every_command(cached: Path) -> None:
    root = load_features(cached).document["root"]
    content = cached.read_bytes()
    with another_program(cached):
        for command in (
            ("classify", "--heads", "logistic"),
            ("classify", cached),
            ("classify", "synthetic"),
            ("classify", root),
            ("extract", root, "--base", "pixels"),
            ("extract", root, "--base", "pixels", "--layer", "pixels", "--pooling", "avg"),
            ("cache", "verify", cached),
            ("cache", "repair", cached),
            ("cache", "show", cached),
        ):
            stderr = run_command(*command, check=75).stderr
            assert "is open for writing in another program: close it there" in stderr
            assert "damaged" not in stderr
        assert "is open for writing" in run_command("cache", "ls").stdout
        assert "nothing to prune" in run_command("cache", "prune").stdout
    assert len(cached.read_bytes()) == len(content)


def test_cache_that_is_open_for_reading_can_be_extended(cached: Path) -> None:
    root = load_features(cached).document["root"]
    with h5py.File(cached) as file:
        run_command("extract", root, "--base", "pixels", "--pooling", "avg")
        assert list(file["features"]) == ["pixels"]  # the file as it was opened
    assert set(load_features(cached).layers) == {"pixels", "pixels:avg"}


def test_killed_writer_leaves_a_mark_that_readers_ignore(cached: Path) -> None:
    content = cached.read_bytes()
    with another_program(cached):
        pass
    assert cached.read_bytes() != content
    assert len(load_features(cached)) == 40
    finished = run_command("cache", "verify", cached, check=65)
    assert finished.stdout.startswith("changed: it is marked as open for writing")
    assert "shows no damage, but was changed" in finished.stderr
    assert "0 images computed" in run_command("cache", "repair", cached).stdout
    assert cached.read_bytes() == content


def test_set_is_looked_for_in_other_caches_than_those_that_cannot_be_read(cached: Path) -> None:
    other = extract_features(make_image_folder(Path("other"), per_class=6), base="pixels").table
    classify = ("classify", "other", "--heads", "majority", "--no-audit")
    with another_program(cached):
        stderr = run_command(*classify).stderr
        assert f"warning: passed over: {cached} is open for writing" in stderr
        assert f"using the newest cache of other: {other.path}\n" in stderr
    flip(cached, 0)
    message = assert_one_line(run_command("classify", "synthetic", check=65))
    assert "no other cache in cache/ is of synthetic" in message
    assert f"pipeline.cache repair {cached}" in message


Change = Callable[[h5py.File], None]


def replace_features(file: h5py.File) -> None:
    before = file["features/pixels"]
    values = np.random.default_rng(0).random(before.shape, np.float32)
    options = {"chunks": before.chunks, "compression": "gzip", "fletcher32": True}
    del file["features/pixels"]
    file.create_dataset("features/pixels", data=values, **options)


def replace_labels(file: h5py.File) -> None:
    labels = file["labels"][()]
    del file["labels"]
    file["labels"] = 1 - labels


def change_a_label(file: h5py.File) -> None:
    file["labels"][7] = 1 - file["labels"][7]


def swap_classes(file: h5py.File) -> None:
    file["classes"][...] = file["classes"][()][::-1]


def change_spec(file: h5py.File) -> None:
    file["spec"][()] = file["spec"].asstr()[()].replace('"set": "synthetic"', '"set": "synthesis"')


def rename_features(file: h5py.File) -> None:
    file.move("features/pixels", "features/mine")


@pytest.mark.parametrize(
    ("change", "damage"),
    [
        (replace_features, "features/pixels, rows 0 to 39"),
        (rename_features, "features/pixels, rows 0 to 39"),
        (replace_labels, "labels"),
        (change_a_label, "labels"),
        (swap_classes, "classes"),
        (change_spec, "spec"),
    ],
)
def test_content_that_another_program_replaced_beside_additions_is_refused_and_restored(
    cached: Path, change: Change, damage: str
) -> None:
    before = load_features(cached)
    expected, content = before.features("pixels"), cached.read_bytes()
    with h5py.File(cached, "a") as file:
        file["notes"] = np.arange(100_000)  # so that new datasets take no freed bytes
        change(file)
    assert f"damaged: {damage}\n" in run_command("cache", "verify", cached, check=65).stdout
    for command in (("classify", cached), ("extract", before.document["root"], "--base", "pixels")):
        assert f"({damage})" in run_command(*command, check=65).stderr
    copied = shutil.copytree(before.document["root"], "copied")
    stderr = run_command("extract", copied, "--base", "pixels").stderr
    assert f"passed over: {cached} is damaged, or another program changed it" in stderr
    np.testing.assert_array_equal(load_features(copied_cache()).features("pixels"), expected)
    run_command("cache", "repair", cached)
    assert cached.read_bytes() == content


def copied_cache() -> Path:
    (path,) = Path("cache").glob("copied-*.h5")
    return path


def test_additions_of_another_program_are_named_and_removed_by_repair(cached: Path) -> None:
    content = cached.read_bytes()
    with h5py.File(cached, "a") as file:
        file.attrs["note"] = "mine"
        file["notes"] = np.arange(10_000)
    finished = run_command("cache", "verify", cached, check=65)
    assert finished.stdout.startswith("changed: another program has added 8")
    assert "shows no damage, but was changed" in finished.stderr
    stderr = run_command("classify", cached, "--heads", "prototype", "--no-audit").stderr
    assert stderr.count("another program has added 8") == 1
    shutil.move("cache", "moved")  # neither images nor weights are needed
    moved = Path("moved", cached.name)
    assert "0 images computed" in run_command("cache", "repair", moved).stdout
    assert moved.read_bytes() == content


def test_file_of_an_earlier_version_is_whole_until_another_program_opens_it(cached: Path) -> None:
    chunks = read_checksums(cached).chunks
    make_older(cached)
    content = cached.read_bytes()
    ends = [0, *(chunk.offset + chunk.length for chunk in chunks)]
    starts = [*(chunk.offset for chunk in chunks), len(content)]
    backup = b"".join(content[end:start] for end, start in zip(ends, starts, strict=True))
    packed = zlib.compress(backup)
    index = json.dumps({"end": len(content), "chunks": chunks, "columns": []}).encode()
    digest = hashlib.sha256(index + packed).digest()
    tail = struct.pack("<QQ32s16s", len(index), len(packed), digest, b"feature cache 1\n")
    cached.write_bytes(content + index + packed + tail)
    assert "every byte is correct" in run_command("cache", "verify", cached).stdout
    with another_program(cached):
        assert "is open for writing" in run_command("cache", "verify", cached, check=75).stderr
    h5py.File(cached, "a").close()
    assert "cannot be compared" in run_command("cache", "verify", cached, check=65).stdout
    assert "0 images computed" in run_command("cache", "repair", cached).stdout
    run_command("cache", "verify", cached)


@pytest.mark.parametrize("value", [1.0, np.pi])
def test_values_that_another_program_changed_are_found_and_restored(
    cached: Path, value: float
) -> None:
    before = load_features(cached).features("pixels")
    with h5py.File(cached, "a") as file:
        file["features/pixels"][:5] = value
    stdout = run_command("cache", "verify", cached, check=65).stdout
    assert "damaged: features/pixels, rows 0 to 39" in stdout
    run_command("cache", "repair", cached)
    np.testing.assert_array_equal(load_features(cached).features("pixels"), before)
    run_command("cache", "verify", cached)


def test_labels_that_another_program_changed_are_found_and_restored(cached: Path) -> None:
    content = cached.read_bytes()
    with h5py.File(cached, "a") as file:
        file["labels"][7] = 1 - file["labels"][7]
    assert "labels, row 7" in assert_one_line(run_command("classify", cached, check=65))
    assert "0 images computed" in run_command("cache", "repair", cached).stdout
    assert cached.read_bytes() == content


def test_file_without_checksums_is_used_and_gets_new_ones_without_computing(cached: Path) -> None:
    make_older(cached)
    root = load_features(cached).document["root"]
    run_command("classify", cached, "--heads", "prototype", "--no-audit")
    assert "all from the cache" in run_command("extract", root, "--base", "pixels").stdout
    finished = run_command("cache", "verify", cached, check=65)
    assert "another program opened the file for writing" in finished.stdout
    assert "cannot be compared" in finished.stdout
    assert "shows no damage, but was changed" in finished.stderr
    document = json.loads(run_command("cache", "verify", cached, "--json", check=65).stdout)
    assert [damage["is_lost"] for damage in document["damages"]] == [False]
    shutil.move("cache", "moved")
    moved = Path("moved", cached.name)
    assert "0 images computed" in run_command("cache", "repair", moved).stdout
    assert "every byte is correct" in run_command("cache", "verify", moved).stdout


def test_damage_in_a_file_without_checksums_is_found_by_hdf5s(cached: Path) -> None:
    before = load_features(cached).features("pixels")
    make_older(cached)
    with h5py.File(cached) as file:
        position = file["features/pixels"].id.get_chunk_info(0).byte_offset + 99
    content = bytearray(cached.read_bytes())
    content[position] ^= 1
    cached.write_bytes(content)
    finished = run_command("cache", "verify", cached, check=65)
    assert "damaged: features/pixels, rows 0 to 39: unreadable" in finished.stdout
    assert "40 images computed again" in run_command("cache", "repair", cached).stdout
    np.testing.assert_array_equal(load_features(cached).features("pixels"), before)
    run_command("cache", "verify", cached)


def test_copy_by_another_program_is_used_and_gets_checksums_of_its_own(cached: Path) -> None:
    before = load_features(cached).features("pixels")
    with h5py.File(cached) as file, h5py.File("copy.h5", "w", libver="latest") as copy:
        for name in reversed(list(file)):
            file.copy(name, copy)
    np.testing.assert_array_equal(load_features("copy.h5").features("pixels"), before)
    assert "cannot be compared" in run_command("cache", "verify", "copy.h5", check=65).stdout
    assert "0 images computed" in run_command("cache", "repair", "copy.h5").stdout
    assert "every byte is correct" in run_command("cache", "verify", "copy.h5").stdout


def test_mark_of_a_newer_format_names_the_tool_that_removes_it() -> None:
    path = Path("new.h5")
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = 1
    with another_program(path):
        pass
    assert "h5clear -s new.h5" in assert_one_line(run_command("cache", "show", path, check=75))


def test_cut_off_checksums_are_written_again(cached: Path) -> None:
    before = load_features(cached)
    expected = before.features("pixels")
    content = cached.read_bytes()
    for left in (len(content) - 1, read_checksums(cached).end):
        cached.write_bytes(content[:left])
        found = f"is cut off, or still being copied: {left:,} of {len(content):,} bytes exist"
        for command in (("classify", cached), ("extract", before.document["root"])):
            options = ("--base", "pixels") if command[0] == "extract" else ()
            stderr = run_command(*command, *options, check=65).stderr
            assert found in stderr
            assert "pipeline.cache repair" in stderr
        assert f"damaged: it {found}" in run_command("cache", "verify", cached, check=65).stdout
        assert "0 images computed again" in run_command("cache", "repair", cached).stdout
        after = load_features(cached)
        np.testing.assert_array_equal(after.features("pixels"), expected)
        assert after.columns.equals(before.columns)
        assert "every byte is correct" in run_command("cache", "verify", cached).stdout


def test_file_that_lost_more_than_features_is_refused_unchanged(cached: Path) -> None:
    root = load_features(cached).document["root"]
    with h5py.File(cached) as file:
        end_of_labels = file["labels"].id.get_offset() + file["labels"].nbytes
        middle = file["features/pixels"].id.get_chunk_info(0).byte_offset + 100
    for left in (middle, end_of_labels - 1, 1000, 100):
        content = cached.read_bytes()[:left]
        cached.write_bytes(content)
        for command in ("verify", "repair"):
            message = assert_one_line(run_command("cache", command, cached, check=65))
            assert f"cut off, or still being copied: {left:,} of" in message
            assert "lost too much to be repaired: move it away and run extract again" in message
            assert "pipeline.cache repair" not in message
        assert cached.read_bytes() == content
    cached.write_bytes(b"")
    message = run_command("extract", root, "--base", "pixels", check=73).stderr
    assert "move it away and run extract again, or choose another --out" in message
