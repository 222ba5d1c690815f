"""``python -m pipeline.cache``: ls, show, verify, repair, prune."""

import io
import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import flip
from command import assert_one_line, modules_loaded_by, run_command
from synthetic_images import make_image_folder
from target_sets import write_targets

from pipeline import extract_features, load_features
from pipeline.cache.checksums import find_damage, read_checksums
from pipeline.cache.shards import writer_lock
from pipeline.spec import MULTILABEL, REGRESSION


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 132 synthetic images: three chunks of the layer pixels, one skipped file."""
    folder = tmp_path_factory.mktemp("template")
    root = make_image_folder(
        folder / "synthetic", per_class=22, splits=("train", "validation", "test")
    )
    (root / "train/plain/empty.png").write_bytes(b"")
    return extract_features(root, base="pixels", cache_dir=folder / "cache").table.path


@pytest.fixture
def cached(template: Path, tmp_path: Path) -> Path:
    """A copy of the template in ``cache/``; its images must not change."""
    shutil.copytree(template.parent, tmp_path / "cache")
    return Path("cache") / template.name


@pytest.fixture
def own_images(tmp_path: Path) -> tuple[Path, Path]:
    """A cache of 12 images, and their folder, which a test may change."""
    root = make_image_folder(tmp_path / "own", per_class=6)
    return extract_features(root, base="pixels").table.path, root


def chunk_position(path: Path, number: int) -> int:
    with h5py.File(path) as file:
        return int(file["features/pixels"].id.get_chunk_info(number).byte_offset) + 10


def row_count(path: Path) -> int:
    with h5py.File(path) as file:
        return len(file["labels"])


def test_ls_lists_every_cache(cached: Path) -> None:
    Path("cache/notes.h5").write_text("mine")
    listed = run_command("cache", "ls").stdout
    assert "synthetic  pixels at 32: pixels  132 rows" in listed
    assert "notes.h5" in listed
    entries = json.loads(run_command("cache", "ls", "--json").stdout)
    assert {entry.get("rows") for entry in entries} == {132, None}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (MULTILABEL, "none         sea                        45"),
        (REGRESSION, "none         year                      150, from 19"),
    ],
)
def test_show_counts_labels_and_gives_the_range_of_numbers(task: str, expected: str) -> None:
    write_targets(Path("a.h5"), task)
    shown = run_command("cache", "show", "a.h5").stdout
    assert f"task           {task}" in shown
    assert expected in shown
    counts = json.loads(run_command("cache", "show", "a.h5", "--json").stdout)["counts"]
    assert counts[0]["images"] == (45 if task == MULTILABEL else 150)


def test_show_prints_spec_counts_and_skipped_files(cached: Path) -> None:
    shown = run_command("cache", "show", cached).stdout
    assert "fingerprint" in shown
    assert "skipped train/plain/empty.png: empty file" in shown
    document = json.loads(run_command("cache", "show", cached, "--json").stdout)
    expected = {"split": "train", "class": "plain", "rows": 22, "images": 22, "views": 0}
    assert expected in document["counts"]


def test_verify_names_damaged_rows_and_repair_computes_only_these(cached: Path) -> None:
    assert "is undamaged" in run_command("cache", "verify", cached).stdout
    before = load_features(cached).features("pixels")
    flip(cached, chunk_position(cached, 1))
    flip(cached, chunk_position(cached, 2))
    finished = run_command("cache", "verify", cached, check=65)
    assert finished.stdout == (
        "damaged: features/pixels, rows 64 to 127\ndamaged: features/pixels, rows 128 to 131\n"
    )
    assert "pipeline.cache repair" in finished.stderr
    assert "68 images computed again" in run_command("cache", "repair", cached).stdout
    assert find_damage(cached) == []
    np.testing.assert_array_equal(load_features(cached).features("pixels"), before)
    content = cached.read_bytes()
    assert "nothing to repair" in run_command("cache", "repair", cached).stdout
    assert cached.read_bytes() == content


def test_file_that_is_not_a_cache_is_one_line() -> None:
    Path("notes.h5").write_text("mine")
    for command in ("verify", "repair"):
        message = assert_one_line(run_command("cache", command, "x.h5", check=66))
        assert "does not exist" in message
        assert_one_line(run_command("cache", command, "notes.h5", check=65))
    assert sorted(path.name for path in Path().iterdir()) == ["notes.h5"]
    assert run_command("cache", check=2).stdout == ""


def test_set_or_file_name_stands_for_its_cache(cached: Path) -> None:
    content = cached.read_bytes()
    for name in ("synthetic", cached.name):
        assert run_command("cache", "show", name).stdout.startswith("set synthetic of ")
        assert f"{cached} is undamaged" in run_command("cache", "verify", name).stdout
        flip(cached, 0)  # the set in it cannot be read
        message = run_command("cache", "verify", name, check=65).stderr
        assert f"pipeline.cache repair {cached}" in message
        run_command("cache", "repair", name)
        assert cached.read_bytes() == content
    moved = Path("cache").rename("caches")
    assert str(moved) in run_command("cache", "verify", "synthetic", "--cache-dir", moved).stdout
    for command in ("show", "verify", "repair"):
        message = assert_one_line(
            run_command("cache", command, "sinthetic", "--cache-dir", moved, check=66)
        )
        assert "did you mean synthetic?" in message


def test_verify_checks_all_named_caches_also_after_a_damaged_one(
    cached: Path, own_images: tuple[Path, Path]
) -> None:
    own, _ = own_images
    flip(own, chunk_position(own, 0))
    Path("cache/notes.h5").write_text("mine")
    finished = run_command("cache", "verify", *sorted(Path("cache").iterdir()), check=65)
    assert finished.stdout == (
        f"{own} damaged: features/pixels, rows 0 to 11\n{cached} is undamaged: every byte is "
        "correct\n"
    )
    assert "notes.h5" in finished.stderr
    assert f"pipeline.cache repair {own}" in finished.stderr
    entries = json.loads(run_command("cache", "verify", "own", cached, "--json", check=65).stdout)
    assert [entry["whole"] for entry in entries] == [False, True]


def test_verify_never_loads_tensorflow(cached: Path) -> None:
    assert not modules_loaded_by("cache", "verify", cached) & {"tensorflow", "keras", "sklearn"}


def test_repair_restores_damaged_metadata_without_any_image(
    own_images: tuple[Path, Path],
) -> None:
    path, root = own_images
    content = path.read_bytes()
    with h5py.File(path) as file:
        position = file["labels"].id.get_offset()
    flip(path, position)
    flip(path, 0)
    shutil.rmtree(root)
    root.mkdir()
    finished = run_command("cache", "repair", path, check=None)
    assert path.read_bytes() == content, finished.stderr


def test_repair_writes_damaged_checksums_again(cached: Path) -> None:
    before = load_features(cached).features("pixels")
    flip(cached, read_checksums(cached).end + 5)
    assert "checksums" in run_command("cache", "verify", cached, check=65).stdout
    run_command("cache", "repair", cached)
    assert "is undamaged" in run_command("cache", "verify", cached).stdout
    np.testing.assert_array_equal(load_features(cached).features("pixels"), before)


def test_damaged_rows_without_their_images_are_an_error(own_images: tuple[Path, Path]) -> None:
    path, root = own_images
    flip(path, chunk_position(path, 0))
    (root / "plain/000.png").unlink()
    message = assert_one_line(run_command("extract", root, "--base", "pixels", check=65))
    assert "pipeline.cache repair" in message  # never merged into a new file
    shutil.rmtree(root)
    assert "is missing" in assert_one_line(run_command("cache", "repair", path, check=66))


def test_repair_deletes_damaged_shards_of_an_unfinished_run(cached: Path) -> None:
    parts = cached.with_suffix(".parts")
    parts.mkdir()
    (parts / "000000.h5").write_bytes(b"garbage")
    run_command("cache", "verify", cached, check=65)
    assert "000000.h5" in run_command("cache", "repair", cached).stdout
    assert "is undamaged" in run_command("cache", "verify", cached).stdout
    cached.unlink()  # as before the first publication
    (parts / "000000.h5").write_bytes(b"garbage")
    run_command("cache", "verify", cached, check=65)
    assert "000000.h5" in run_command("cache", "repair", cached).stdout
    assert not list(parts.iterdir())


def test_prune_asks_first(own_images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, root = own_images
    shutil.rmtree(root)
    for answer in ("", "n\n", "what\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert "nothing was deleted" in run_command("cache", "prune").stdout
    assert path.exists()
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert "freed" in run_command("cache", "prune").stdout
    assert not list(Path("cache").glob("own*"))


def test_prune_deletes_rows_of_deleted_images_and_temporary_files_alone(
    own_images: tuple[Path, Path],
) -> None:
    path, root = own_images
    foreign = [Path("cache/notes.h5"), Path("cache/notes.tmp")]
    for file in foreign:
        file.write_text("mine")
    extract_features(root, base="pixels", limit_per_class=2)
    assert "nothing to prune" in run_command("cache", "prune", "--yes").stdout
    assert row_count(path) == 12  # rows outside the limit stay
    (root / "plain/000.png").unlink()
    extract_features(root, base="pixels")
    leftover = path.with_name(f"{path.name}.1234abcd.tmp")
    leftover.write_bytes(b"half")
    with writer_lock(path):
        stderr = run_command("cache", "prune", "--yes", check=75).stderr
        assert "is writing" in stderr
        assert "--wait" not in stderr  # prune has no such option
    assert leftover.exists()
    run_command("cache", "prune", "--yes")
    assert row_count(path) == 11
    assert not leftover.exists()
    assert "nothing to prune" in run_command("cache", "prune").stdout
    assert "is undamaged" in run_command("cache", "verify", path).stdout
    assert [file.read_text() for file in foreign] == ["mine", "mine"]


def test_same_bytes_under_two_labels_or_splits_are_a_warning(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "set", per_class=3, splits=("train", "test"))
    content = (root / "train/plain/000.png").read_bytes()
    (root / "train/striped/copy.png").write_bytes(content)
    (root / "test/plain/copy.png").write_bytes(content)
    stderr = run_command("extract", root, "--base", "pixels").stderr
    assert "warning: 1 image has several labels: " in stderr
    assert "warning: 1 image has several splits: " in stderr
    assert "train/striped/copy.png" in stderr
