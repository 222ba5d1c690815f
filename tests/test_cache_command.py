"""``python -m pipeline.cache`` as a user meets it: ls, show, verify, repair, prune."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from command import assert_one_line, modules_loaded_by, run_command
from synthetic_images import make_image_folder

from pipeline import extract_features, load_features
from pipeline.cache.checksums import find_damage, read_checksums
from pipeline.cache.shards import writer_lock


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A cache of 300 synthetic images: five chunks of the layer pixels."""
    root = make_image_folder(
        tmp_path / "data" / "synthetic", per_class=50, splits=("train", "val", "test")
    )
    return extract_features(root, base="pixels").table.path


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def chunk_position(path: Path, number: int) -> int:
    with h5py.File(path) as file:
        info = file["features/pixels"].id.get_chunk_info(number)
        return int(info.byte_offset) + 10


def test_ls_lists_every_cache(cached: Path) -> None:
    Path("cache/notes.h5").write_text("mine")
    listed = run_command("cache", "ls").stdout
    assert "synthetic  pixels at 32: pixels  300 rows" in listed
    assert "notes.h5" in listed
    entries = json.loads(run_command("cache", "ls", "--json").stdout)
    assert {entry.get("rows") for entry in entries} == {300, None}


def test_show_tells_spec_counts_and_skipped(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "data/synthetic/train/plain/empty.png").write_bytes(b"")
    run_command("extract", tmp_path / "data/synthetic", "--base", "pixels")
    shown = run_command("cache", "show", cached).stdout
    assert "fingerprint" in shown
    assert "skipped train/plain/empty.png: empty file" in shown
    document = json.loads(run_command("cache", "show", cached, "--json").stdout)
    expected = {"split": "train", "class": "plain", "rows": 50, "images": 50, "views": 0}
    assert expected in document["counts"]


def test_verify_says_that_a_whole_file_is_whole(cached: Path) -> None:
    assert "is whole" in run_command("cache", "verify", cached).stdout


def test_verify_names_rows_and_ends_with_65(cached: Path) -> None:
    flip(cached, chunk_position(cached, 2))
    finished = run_command("cache", "verify", cached, check=65)
    assert finished.stdout == "damaged: features/pixels, rows 128 to 191\n"
    assert "pipeline.cache repair" in finished.stderr


def test_verify_of_what_is_no_cache_is_one_line() -> None:
    Path("notes.h5").write_text("mine")
    run_command("cache", "verify", "notes.h5", check=65)
    assert "does not exist" in assert_one_line(run_command("cache", "verify", "x.h5", check=66))


def test_verify_and_a_warm_look_never_load_tensorflow(cached: Path) -> None:
    assert not modules_loaded_by("cache", "verify", cached) & {"tensorflow", "keras", "sklearn"}


def test_repair_computes_only_the_bad_rows_again(cached: Path) -> None:
    before = load_features(cached).features("pixels")
    flip(cached, chunk_position(cached, 1))
    flip(cached, chunk_position(cached, 3))
    done = run_command("cache", "repair", cached)
    assert "128 images computed again" in done.stdout
    assert find_damage(cached) == []
    np.testing.assert_array_equal(load_features(cached).features("pixels"), before)


def test_repair_restores_damaged_metadata_without_any_image(cached: Path, tmp_path: Path) -> None:
    content = cached.read_bytes()
    with h5py.File(cached) as file:
        position = file["labels"].id.get_offset()
    flip(cached, position)
    flip(cached, 0)
    shutil.rmtree(tmp_path / "data" / "synthetic")
    (tmp_path / "data" / "synthetic").mkdir()
    finished = run_command("cache", "repair", cached, check=None)
    assert cached.read_bytes() == content, finished.stderr


def test_repair_of_a_damaged_seal_seals_anew(cached: Path) -> None:
    before = load_features(cached).features("pixels")
    flip(cached, read_checksums(cached).end + 5)
    assert "the seal itself is damaged" in run_command("cache", "verify", cached, check=65).stdout
    run_command("cache", "repair", cached)
    assert "is whole" in run_command("cache", "verify", cached).stdout
    np.testing.assert_array_equal(load_features(cached).features("pixels"), before)


def test_repair_without_the_images_says_that_they_are_gone(cached: Path, tmp_path: Path) -> None:
    flip(cached, chunk_position(cached, 1))
    shutil.rmtree(tmp_path / "data")
    finished = run_command("cache", "repair", cached, check=66)
    assert "is missing" in assert_one_line(finished)


def test_repair_of_a_whole_file_changes_nothing(cached: Path) -> None:
    content = cached.read_bytes()
    assert "nothing to repair" in run_command("cache", "repair", cached).stdout
    assert cached.read_bytes() == content


def test_damaged_file_is_never_merged_into_a_new_one(cached: Path, tmp_path: Path) -> None:
    flip(cached, chunk_position(cached, 0))
    (tmp_path / "data/synthetic/train/plain/000.png").unlink()
    message = assert_one_line(
        run_command("extract", tmp_path / "data/synthetic", "--base", "pixels", check=65)
    )
    assert "pipeline.cache repair" in message


def prune(answer: str = "", *options: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "pipeline.cache", "prune", *options],
        input=answer,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout


def test_prune_asks_first(cached: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    for answer in ("", "n\n", "what\n"):
        assert "nothing was deleted" in prune(answer)
    assert cached.exists()
    assert "freed" in prune("y\n")
    assert sorted(path.name for path in Path("cache").glob("synthetic*")) == []


def test_prune_drops_rows_of_deleted_images_and_leftovers(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "data/synthetic/train/plain/000.png").unlink()
    run_command("extract", tmp_path / "data/synthetic", "--base", "pixels")
    leftover = Path("cache/synthetic.h5.1234abcd.tmp")
    leftover.write_bytes(b"half")
    with h5py.File(cached) as file:
        assert len(file["labels"]) == 300
    prune("", "--yes")
    with h5py.File(cached) as file:
        assert len(file["labels"]) == 299
    assert not leftover.exists()
    assert "nothing to prune" in prune()
    assert "is whole" in run_command("cache", "verify", cached).stdout


def test_prune_keeps_rows_outside_a_limit_and_files_of_others(cached: Path, tmp_path: Path) -> None:
    extract_features(tmp_path / "data/synthetic", base="pixels", limit_per_class=5)
    Path("cache/notes.tmp").write_text("mine")
    assert "nothing to prune" in prune("", "--yes")
    with h5py.File(cached) as file:
        assert len(file["labels"]) == 300
    assert Path("cache/notes.tmp").exists()


def test_repair_drops_damaged_batches_of_an_unfinished_run(cached: Path) -> None:
    parts = cached.with_suffix(".parts")
    parts.mkdir()
    (parts / "000000.h5").write_bytes(b"garbage")
    run_command("cache", "verify", cached, check=65)
    assert "000000.h5" in run_command("cache", "repair", cached).stdout
    assert "is whole" in run_command("cache", "verify", cached).stdout


def test_repair_of_what_is_no_cache_is_one_line() -> None:
    Path("notes.txt").write_text("mine")
    assert "does not exist" in assert_one_line(run_command("cache", "repair", "x.h5", check=66))
    assert_one_line(run_command("cache", "repair", "notes.txt", check=65))
    assert sorted(path.name for path in Path().iterdir()) == ["notes.txt"]


def test_prune_touches_nothing_that_a_run_is_writing(cached: Path) -> None:
    half = cached.with_name(f"{cached.name}.1234abcd.tmp")
    half.write_bytes(b"half")
    with writer_lock(cached):
        finished = run_command("cache", "prune", "--yes", check=75)
    assert "is writing" in finished.stderr
    assert half.exists()


def test_prune_leaves_what_is_not_ours(cached: Path) -> None:
    Path("cache/notes.h5").write_text("mine")
    prune("", "--yes")
    assert Path("cache/notes.h5").read_text() == "mine"


def test_same_bytes_under_two_labels_or_splits_are_warned_of(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "set", per_class=3, splits=("train", "test"))
    content = (root / "train/plain/000.png").read_bytes()
    (root / "train/striped/copy.png").write_bytes(content)
    (root / "test/plain/copy.png").write_bytes(content)
    stderr = run_command("extract", root, "--base", "pixels").stderr
    assert "warning: 1 image has several labels: " in stderr
    assert "warning: 1 image has several splits: " in stderr
    assert "train/striped/copy.png" in stderr


def test_command_is_needed() -> None:
    assert run_command("cache", check=2).stdout == ""
