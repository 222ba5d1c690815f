"""Filling a cache computes only missing rows and loses no committed row."""

import csv
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import PIXEL_SPEC, SIZE, PixelEngine, fill
from synthetic_images import draw, make_image_folder

from pipeline.cache import compute
from pipeline.cache.file import FeatureTable, read_all_rows, read_table
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.errors import BadDataError, BusyError, CannotCreateError
from pipeline.images.decode import decode
from pipeline.images.scan import scan_folder


def assert_rows_are_right(table: FeatureTable, root: Path, layer: str = "maps") -> None:
    """Every row contains the pixels of its image and the label of its folder."""
    features = table.features(layer)
    for row, path in enumerate(table.columns.paths.tolist()):
        pixels = decode((root / os.fsdecode(path)).read_bytes(), image_size=SIZE).astype("f4")
        np.testing.assert_allclose(
            features[row], pixels if layer == "maps" else pixels.mean((0, 1))
        )
        folder = Path(os.fsdecode(path)).parent.name
        assert table.classes[table.columns.labels[row]] == folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache" / "synthetic.h5"


def test_every_row_belongs_to_its_path_and_label(synthetic_set: Path, path: Path) -> None:
    assert fill(synthetic_set, path, PixelEngine()).computed == 72
    table = read_table(path)
    assert_rows_are_right(table, synthetic_set)
    assert table.columns.splits.tolist() == [1] * 24 + [2] * 24 + [3] * 24
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "synthetic.h5",
        "synthetic.lock",
    ]


def test_second_run_computes_and_writes_nothing(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, PixelEngine())
    before = path.stat()
    engine = PixelEngine()
    assert fill(synthetic_set, path, engine).computed == 0
    assert engine.opened == []
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_only_new_and_changed_images_are_extracted(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, PixelEngine())
    for number in range(10):
        draw(900 + number, stripes=True).save(synthetic_set / "train/striped" / f"new{number}.png")
    draw(12345, stripes=False).save(synthetic_set / "train/plain/003.png")
    engine = PixelEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 11
    assert len(read_table(path)) == 82
    assert_rows_are_right(read_table(path), synthetic_set)


def test_renamed_image_is_not_extracted_again(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, PixelEngine())
    (synthetic_set / "train/plain/003.png").rename(synthetic_set / "train/striped/moved.png")
    engine = PixelEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 0
    table = read_table(path)
    assert len(table) == 72
    assert b"train/striped/moved.png" in table.columns.paths
    assert_rows_are_right(table, synthetic_set)


def test_rows_of_gone_images_stay_and_serve_when_they_return(
    synthetic_set: Path, path: Path
) -> None:
    fill(synthetic_set, path, PixelEngine())
    fill(synthetic_set, path, PixelEngine(), limit=3)
    assert len(read_table(path)) == 18
    assert len(read_all_rows(path)) == 72
    engine = PixelEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 0
    assert_rows_are_right(read_table(path), synthetic_set)


def test_identical_files_cost_one_forward_pass_and_have_a_row_each(
    synthetic_set: Path, path: Path
) -> None:
    copy = (synthetic_set / "train/plain/000.png").read_bytes()
    (synthetic_set / "train/plain/copy.png").write_bytes(copy)
    (synthetic_set / "test/striped/copy.png").write_bytes(copy)
    engine = PixelEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 72
    table = read_table(path)
    assert len(table) == 74
    assert_rows_are_right(table, synthetic_set)


def test_second_layer_joins_the_same_file(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, PixelEngine())
    engine = PixelEngine()
    fill(synthetic_set, path, engine, layers=["maps:avg"])
    assert engine.opened == [("maps:avg",)]
    table = read_table(path)
    assert set(table.layers) == {"maps", "maps:avg"}
    assert_rows_are_right(table, synthetic_set)
    assert_rows_are_right(table, synthetic_set, "maps:avg")


def test_layer_added_while_images_were_gone_is_completed_later(
    synthetic_set: Path, path: Path
) -> None:
    fill(synthetic_set, path, PixelEngine())
    fill(synthetic_set, path, PixelEngine(), layers=["maps:avg"], limit=3)
    engine = PixelEngine()
    fill(synthetic_set, path, engine, layers=["maps"])
    assert engine.images_seen == 72 - 18
    assert engine.opened == [("maps:avg",)]
    assert_rows_are_right(read_table(path), synthetic_set, "maps:avg")


@pytest.mark.parametrize(
    ("seconds", "rows_per_shard"),
    [(compute.SECONDS_PER_COMMIT, [136]), (0.0, [8, 64, 64])],  # 64 rows are a chunk
)
def test_interrupted_run_loses_no_row_and_commits_whole_chunks(
    tmp_path: Path,
    path: Path,
    seconds: float,
    rows_per_shard: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compute, "SECONDS_PER_COMMIT", seconds)
    root = make_image_folder(tmp_path / "set", per_class=70)
    with pytest.raises(KeyboardInterrupt):
        fill(root, path, PixelEngine(die_after=136))
    assert not path.exists()
    shards = ShardFolder(path, PIXEL_SPEC)
    shards.recover()
    assert sorted(len(shard.keys) for shard in shards.shards) == rows_per_shard
    engine = PixelEngine()
    fill(root, path, engine)
    assert engine.images_seen == 4
    uninterrupted = path.with_name("uninterrupted.h5")
    fill(root, uninterrupted, PixelEngine())
    np.testing.assert_array_equal(
        read_table(path).features("maps"), read_table(uninterrupted).features("maps")
    )
    assert read_table(path).columns.equals(read_table(uninterrupted).columns)


def test_broken_images_are_listed_with_their_reason_until_they_are_gone(
    synthetic_set: Path, path: Path
) -> None:
    broken = {
        synthetic_set / "train/plain/empty.jpg": b"",
        synthetic_set / "train/plain/line\nbreak.txt": b"text",
    }
    for image, content in broken.items():
        image.write_bytes(content)
    fill(synthetic_set, path, PixelEngine())
    assert len(read_table(path)) == 72
    with path.with_suffix(".skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {
        "train/plain/empty.jpg",
        "train/plain/line\nbreak.txt",
    }
    assert {row["reason"].split(",")[0] for row in rows} == {"empty file", "not an image"}
    engine = PixelEngine()
    published = path.stat().st_ino
    fill(synthetic_set, path, engine)
    assert path.stat().st_ino == published  # not written again
    assert engine.opened == []
    for image in broken:
        image.unlink()
    fill(synthetic_set, path, PixelEngine())
    assert not path.with_suffix(".skipped.csv").exists()


def test_strict_stops_at_the_first_broken_image(synthetic_set: Path, path: Path) -> None:
    (synthetic_set / "train/plain/empty.jpg").write_bytes(b"")
    with pytest.raises(BadDataError, match=r"train/plain/empty\.jpg: empty file"):
        fill(synthetic_set, path, PixelEngine(), strict=True)
    assert not path.exists()


def test_set_that_is_mostly_broken_is_refused(synthetic_classes: Path, path: Path) -> None:
    for number in range(81):
        (synthetic_classes / "plain" / f"bad{number}.jpg").write_bytes(b"x")
    with pytest.raises(BadDataError, match="81 of 161 files"):
        fill(synthetic_classes, path, PixelEngine())
    assert not path.exists()
    assert path.with_suffix(".skipped.csv").exists()


@pytest.mark.parametrize(
    ("added", "dtype", "message"),
    [(np.nan, "float32", "not finite"), (1e6, "float16", "use float32")],
)
def test_numbers_that_are_not_finite_are_never_stored(
    synthetic_set: Path, path: Path, added: float, dtype: str, message: str
) -> None:
    class BrokenEngine(PixelEngine):
        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return {key: rows + added for key, rows in super().__call__(images).items()}

    with pytest.raises(BadDataError, match=message):
        fill(synthetic_set, path, BrokenEngine(), spec=replace(PIXEL_SPEC, dtype=dtype))


def test_other_features_are_refused_with_both_fingerprints(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, PixelEngine())
    content = path.read_bytes()
    other = replace(PIXEL_SPEC, image_size=16)
    with pytest.raises(CannotCreateError) as caught:
        fill(synthetic_set, path, PixelEngine(), spec=other)
    assert PIXEL_SPEC.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert path.read_bytes() == content


def test_foreign_file_at_the_path_is_left_alone(synthetic_set: Path, path: Path) -> None:
    path.write_text("my notes")
    with pytest.raises(CannotCreateError, match="choose another --out"):
        fill(synthetic_set, path, PixelEngine())
    assert path.read_text() == "my notes"


def test_leftovers_of_this_cache_go_and_those_of_others_stay(
    synthetic_set: Path, path: Path
) -> None:
    ours = [
        path.with_name(name)
        for name in ("synthetic.h5.01234567.tmp", "synthetic.skipped.csv.01234567.tmp")
    ]
    others = [
        path.with_name(name)
        for name in ("synthetic2.h5.01234567.tmp", "synthetic.x.h5.01234567.tmp")
    ]
    for leftover in (*ours, *others):
        leftover.write_bytes(b"half")
    fill(synthetic_set, path, PixelEngine())
    assert not any(leftover.exists() for leftover in ours)
    assert all(leftover.exists() for leftover in others)


def test_second_writer_is_refused(synthetic_set: Path, path: Path) -> None:
    with writer_lock(path), pytest.raises(BusyError):
        fill(synthetic_set, path, PixelEngine())


@pytest.mark.parametrize("calls", [1, 2])
def test_rows_computed_before_a_broken_image_stops_the_run_are_kept(
    synthetic_set: Path, path: Path, calls: int
) -> None:
    files = [synthetic_set / os.fsdecode(file.path) for file in scan_folder(synthetic_set).files]
    files[23].write_bytes(b"no image")
    engine = PixelEngine()
    engine.calls_at_once = calls
    with pytest.raises(BadDataError, match="--strict stops here"):
        fill(synthetic_set, path, engine, strict=True)
    files[23].unlink()
    again = PixelEngine()
    fill(synthetic_set, path, again, strict=True)
    assert engine.images_seen == 16  # of 23 before it, in batches of 8
    assert again.images_seen == len(files) - 1 - 16
    assert_rows_are_right(read_table(path), synthetic_set)


def test_a_run_that_dies_leaves_no_thread_behind(synthetic_set: Path, tmp_path: Path) -> None:
    """Even while its traceback exists: threads joined by the garbage collector can deadlock."""
    with pytest.raises(KeyboardInterrupt) as died:
        fill(synthetic_set, tmp_path / "c.h5", PixelEngine(die_after=16))
    assert died.traceback
    ours = ("decode", "engine", "commit")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(ours)]


def test_engine_of_a_cache_is_recorded_and_passed_to_the_next_run(
    synthetic_set: Path, path: Path
) -> None:
    fill(synthetic_set, path, PixelEngine())
    recorded = {"name": "pixels", "version": "1", "error": {}}
    assert read_table(path).document["engine"] == recorded
    draw(99, stripes=True, size=(20, 20)).save(synthetic_set / "train/striped/new.png")
    received: list[Any] = []

    class OtherEngine(PixelEngine):
        def open(self, layers: Sequence[str], *arguments: Any) -> PixelEngine:
            images, engine = arguments
            received.append((images.shape, engine))
            return super().open(layers)

    fill(synthetic_set, path, OtherEngine(name="other"))
    assert received == [((1, SIZE, SIZE, 3), recorded)]
    also = {"name": "other", "version": "1", "error": {}}
    assert read_table(path).document["engine"] == {**recorded, "also": [also]}


def test_interruption_within_a_commit_gives_no_row_another_images_features(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_image_folder(tmp_path / "set", per_class=60)
    monkeypatch.setattr(compute, "SECONDS_PER_COMMIT", 0.0)
    concatenate, calls = np.concatenate, []

    def interrupted(parts: Any) -> np.ndarray:
        calls.append(parts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return concatenate(parts)

    monkeypatch.setattr(compute.np, "concatenate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(root, path, PixelEngine(), layers=("maps", "maps:avg"))
    assert len(calls) > 2  # the computed rows were committed all the same
    monkeypatch.undo()
    engine = PixelEngine()
    fill(root, path, engine, layers=("maps", "maps:avg"))
    assert engine.images_seen < 120
    assert_rows_are_right(read_table(path), root)
    assert_rows_are_right(read_table(path), root, "maps:avg")
