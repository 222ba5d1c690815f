"""Filling a cache: only what it lacks is computed, and nothing that was committed is lost."""

import csv
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from synthetic_images import draw, make_image_folder

from pipeline.cache import compute
from pipeline.cache.file import FeatureTable, RowKey, read_all_rows, read_table
from pipeline.cache.fill import FillResult, fill_cache
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.errors import BadDataError, BusyError, CannotCreateError, StorageError
from pipeline.images.decode import decode
from pipeline.images.hashes import hash_files
from pipeline.images.scan import scan_folder
from pipeline.spec import FeatureSpec

SPEC = FeatureSpec(
    base="tiny",
    weights="none",
    preprocessing="native",
    image_size=8,
    resize="squash",
    pixels="p",
    dtype="float32",
)


class CountingEngine:
    """The pixels themselves as maps; counts the images it sees and can die on the way."""

    name, version, weights = "counting", "1", "none"

    def __init__(self, *, die_after: int | None = None) -> None:
        self.error: dict[str, float] = {}
        self.images_seen = 0
        self.opened: list[tuple[str, ...]] = []
        self.die_after = die_after
        self.row_shapes: dict[str, tuple[int, ...]] = {}
        self.calls_at_once = 1

    def open(self, layers: Sequence[str], *_: Any) -> "CountingEngine":
        self.opened.append(tuple(layers))
        self.row_shapes = {key: (3,) if key.endswith(":avg") else (8, 8, 3) for key in layers}
        return self

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if self.die_after is not None and self.images_seen + len(images) > self.die_after:
            raise KeyboardInterrupt
        self.images_seen += len(images)
        maps = images.astype(np.float32)
        return {key: maps.mean((1, 2)) if key.endswith(":avg") else maps for key in self.row_shapes}


def fill(
    root: Path,
    path: Path,
    engine: CountingEngine,
    *,
    layers: Sequence[str] = ("maps",),
    spec: FeatureSpec = SPEC,
    limit: int | None = None,
    **options: Any,
) -> FillResult:
    images = scan_folder(root)
    if limit:
        images = images.limited(limit)
    digests, unreadable = hash_files(root, images.paths)
    return fill_cache(
        path,
        images=images,
        digests=digests,
        skipped=(*images.skipped, *unreadable),
        spec=spec,
        layers=layers,
        open_engine=engine.open,
        document={"format": 1, "spec": vars(spec), "set": root.name, "root": str(root)},
        batch_size=8,
        **options,
    )


def assert_rows_are_right(table: FeatureTable, root: Path, layer: str = "maps") -> None:
    """Every row holds the pixels of its path, and the label that its path says."""
    features = table.features(layer)
    for row, path in enumerate(table.columns.paths.tolist()):
        pixels = decode((root / os.fsdecode(path)).read_bytes(), image_size=8).astype("f4")
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
    done = fill(synthetic_set, path, CountingEngine())
    assert (done.computed, done.written) == (72, True)
    table = read_table(path)
    assert_rows_are_right(table, synthetic_set)
    assert table.columns.splits.tolist() == [1] * 24 + [2] * 24 + [3] * 24
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "synthetic.h5",
        "synthetic.lock",
    ]


def test_second_run_computes_and_writes_nothing(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, CountingEngine())
    before = path.stat()
    engine = CountingEngine()
    done = fill(synthetic_set, path, engine)
    assert (done.computed, done.written) == (0, False)
    assert engine.opened == []
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_new_images_alone_are_extracted(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, CountingEngine())
    for number in range(10):
        draw(900 + number, stripes=True).save(synthetic_set / "train/striped" / f"new{number}.png")
    engine = CountingEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 10
    assert len(read_table(path)) == 82
    assert_rows_are_right(read_table(path), synthetic_set)


def test_renamed_image_is_not_extracted_again(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, CountingEngine())
    (synthetic_set / "train/plain/003.png").rename(synthetic_set / "train/striped/moved.png")
    engine = CountingEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 0
    table = read_table(path)
    assert len(table) == 72
    assert b"train/striped/moved.png" in table.columns.paths
    assert_rows_are_right(table, synthetic_set)


def test_changed_content_is_extracted_again_and_only_that(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, CountingEngine())
    draw(12345, stripes=False).save(synthetic_set / "train/plain/003.png")
    engine = CountingEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 1
    assert_rows_are_right(read_table(path), synthetic_set)


def test_rows_of_gone_images_stay_and_serve_when_they_return(
    synthetic_set: Path, path: Path
) -> None:
    fill(synthetic_set, path, CountingEngine())
    fill(synthetic_set, path, CountingEngine(), limit=3)
    assert len(read_table(path)) == 18
    assert len(read_all_rows(path)) == 72
    engine = CountingEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 0
    assert_rows_are_right(read_table(path), synthetic_set)


def test_identical_files_cost_one_forward_pass_and_have_a_row_each(
    synthetic_set: Path, path: Path
) -> None:
    copy = (synthetic_set / "train/plain/000.png").read_bytes()
    (synthetic_set / "train/plain/copy.png").write_bytes(copy)
    (synthetic_set / "test/striped/copy.png").write_bytes(copy)
    engine = CountingEngine()
    fill(synthetic_set, path, engine)
    assert engine.images_seen == 72
    table = read_table(path)
    assert len(table) == 74
    assert_rows_are_right(table, synthetic_set)


def test_second_layer_joins_the_same_file(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, CountingEngine())
    engine = CountingEngine()
    fill(synthetic_set, path, engine, layers=["maps:avg"])
    assert engine.opened == [("maps:avg",)]
    table = read_table(path)
    assert set(table.layers) == {"maps", "maps:avg"}
    assert_rows_are_right(table, synthetic_set)
    assert_rows_are_right(table, synthetic_set, "maps:avg")


def test_layer_added_while_images_were_gone_is_completed_later(
    synthetic_set: Path, path: Path
) -> None:
    fill(synthetic_set, path, CountingEngine())
    fill(synthetic_set, path, CountingEngine(), layers=["maps:avg"], limit=3)
    engine = CountingEngine()
    fill(synthetic_set, path, engine, layers=["maps"])
    assert engine.images_seen == 72 - 18
    assert engine.opened == [("maps:avg",)]
    assert_rows_are_right(read_table(path), synthetic_set, "maps:avg")


@pytest.mark.parametrize("die_after", [0, 8, 64, 70, 200])
def test_interrupted_run_goes_on_from_the_last_commit(
    tmp_path: Path, path: Path, die_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "SECONDS", 0.0)
    root = make_image_folder(tmp_path / "set", per_class=104)
    with pytest.raises(KeyboardInterrupt):
        fill(root, path, CountingEngine(die_after=die_after))
    assert not path.exists()
    engine = CountingEngine()
    fill(root, path, engine)
    assert engine.images_seen == 208 - die_after // 8 * 8  # all that was computed was committed
    other = path.with_name("uninterrupted.h5")
    fill(root, other, CountingEngine())
    np.testing.assert_array_equal(
        read_table(path).features("maps"), read_table(other).features("maps")
    )
    assert read_table(path).columns.equals(read_table(other).columns)


def test_broken_images_are_listed_with_their_reason(synthetic_set: Path, path: Path) -> None:
    (synthetic_set / "train/plain/empty.jpg").write_bytes(b"")
    (synthetic_set / "train/plain/line\nbreak.txt").write_bytes(b"text")
    fill(synthetic_set, path, CountingEngine())
    assert len(read_table(path)) == 72
    with path.with_suffix(".skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {
        "train/plain/empty.jpg",
        "train/plain/line\nbreak.txt",
    }
    assert {row["reason"].split(",")[0] for row in rows} == {"empty file", "not an image"}
    engine = CountingEngine()
    assert fill(synthetic_set, path, engine).written is False
    assert engine.opened == []


def test_skipped_list_goes_when_nothing_is_skipped_any_more(
    synthetic_set: Path, path: Path
) -> None:
    bad = synthetic_set / "train/plain/empty.jpg"
    bad.write_bytes(b"")
    fill(synthetic_set, path, CountingEngine())
    bad.unlink()
    fill(synthetic_set, path, CountingEngine())
    assert not path.with_suffix(".skipped.csv").exists()


def test_strict_stops_at_the_first_broken_image(synthetic_set: Path, path: Path) -> None:
    (synthetic_set / "train/plain/empty.jpg").write_bytes(b"")
    with pytest.raises(BadDataError, match=r"train/plain/empty\.jpg: empty file"):
        fill(synthetic_set, path, CountingEngine(), strict=True)
    assert not path.exists()


def test_set_that_is_mostly_broken_is_refused(synthetic_classes: Path, path: Path) -> None:
    for number in range(81):
        (synthetic_classes / "plain" / f"bad{number}.jpg").write_bytes(b"x")
    with pytest.raises(BadDataError, match="81 of 161 files"):
        fill(synthetic_classes, path, CountingEngine())
    assert not path.exists()
    assert path.with_suffix(".skipped.csv").exists()


def test_numbers_that_are_none_are_never_stored(synthetic_set: Path, path: Path) -> None:
    class BrokenEngine(CountingEngine):
        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return {key: rows * np.nan for key, rows in super().__call__(images).items()}

    with pytest.raises(BadDataError, match="not finite"):
        fill(synthetic_set, path, BrokenEngine())


def test_values_beyond_float16_are_refused_with_the_remedy(synthetic_set: Path, path: Path) -> None:
    class LargeEngine(CountingEngine):
        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return {key: rows + 1e6 for key, rows in super().__call__(images).items()}

    half = FeatureSpec(**{**vars(SPEC), "dtype": "float16"})
    with pytest.raises(BadDataError, match="use float32"):
        fill(synthetic_set, path, LargeEngine(), spec=half)


def test_other_features_are_refused_with_both_fingerprints(synthetic_set: Path, path: Path) -> None:
    fill(synthetic_set, path, CountingEngine())
    content = path.read_bytes()
    other = FeatureSpec(**{**vars(SPEC), "image_size": 16})
    with pytest.raises(CannotCreateError) as caught:
        fill(synthetic_set, path, CountingEngine(), spec=other)
    assert SPEC.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert path.read_bytes() == content


def test_foreign_file_in_the_way_is_left_alone(synthetic_set: Path, path: Path) -> None:
    path.write_text("my notes")
    with pytest.raises(CannotCreateError, match="choose another --out"):
        fill(synthetic_set, path, CountingEngine())
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
    fill(synthetic_set, path, CountingEngine())
    assert not any(leftover.exists() for leftover in ours)
    assert all(leftover.exists() for leftover in others)


def test_second_writer_is_told_that_the_cache_is_busy(synthetic_set: Path, path: Path) -> None:
    with writer_lock(path), pytest.raises(BusyError):
        fill(synthetic_set, path, CountingEngine())


@pytest.mark.parametrize("calls", [1, 2])
def test_what_was_computed_before_a_broken_image_stops_the_run_is_kept(
    synthetic_set: Path, path: Path, calls: int
) -> None:
    files = [synthetic_set / os.fsdecode(file.path) for file in scan_folder(synthetic_set).files]
    files[23].write_bytes(b"no image")
    engine = CountingEngine()
    engine.calls_at_once = calls
    with pytest.raises(BadDataError, match="--strict stops here"):
        fill(synthetic_set, path, engine, strict=True)
    files[23].unlink()
    again = CountingEngine()
    fill(synthetic_set, path, again, strict=True)
    assert engine.images_seen == 16  # of 23 before it, in batches of 8
    assert again.images_seen == len(files) - 1 - 16
    assert_rows_are_right(read_table(path), synthetic_set)


def test_a_run_that_dies_leaves_no_thread_behind(synthetic_set: Path, tmp_path: Path) -> None:
    """Even while its traceback is kept: threads that the garbage collector joins can deadlock."""
    with pytest.raises(KeyboardInterrupt) as died:
        fill(synthetic_set, tmp_path / "c.h5", CountingEngine(die_after=16))
    assert died.traceback
    ours = ("decode", "engine", "commit")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(ours)]


def test_fast_engine_makes_no_shard_a_blink(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_image_folder(tmp_path / "set", per_class=104)
    shards: list[int] = []
    commit = ShardFolder.commit

    def counted(self: ShardFolder, keys: Sequence[RowKey], *rest: Any, **options: Any) -> None:
        shards.append(len(keys))
        commit(self, keys, *rest, **options)

    monkeypatch.setattr(ShardFolder, "commit", counted)
    fill(root, path, CountingEngine())
    assert shards == [208]
    monkeypatch.setattr(compute, "SECONDS", 0.0)
    fill(root, path.with_name("slow.h5"), CountingEngine())
    assert shards == [208, 64, 64, 64, 16]


def test_failed_commit_ends_the_run_with_its_error(
    synthetic_set: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(ShardFolder, "commit", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        fill(synthetic_set, path, CountingEngine())
    assert not path.exists()


def test_engine_of_a_cache_is_recorded_and_given_to_who_opens_the_next(
    synthetic_set: Path, path: Path
) -> None:
    class Other(CountingEngine):
        name = "other"

    fill(synthetic_set, path, CountingEngine())
    made_by = {"name": "counting", "version": "1", "error": {}}
    assert read_table(path).document["engine"] == made_by
    draw(99, stripes=True, size=(20, 20)).save(synthetic_set / "train/striped/new.png")
    received: list[Any] = []
    other = Other()

    def open_other(layers: Sequence[str], images: np.ndarray, recorded: Any) -> CountingEngine:
        received.append((images.shape, recorded))
        return other.open(layers)

    other_engine = SimpleNamespace(open=open_other)
    fill(synthetic_set, path, other_engine)
    assert received == [((1, 8, 8, 3), made_by)]
    also = {"name": "other", "version": "1", "error": {}}
    assert read_table(path).document["engine"] == {**made_by, "also": [also]}


def test_interruption_within_a_commit_gives_no_row_another_images_features(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_image_folder(tmp_path / "set", per_class=60)
    monkeypatch.setattr(compute, "SECONDS", 0.0)
    concatenate, calls = np.concatenate, []

    def interrupted(parts: Any) -> np.ndarray:
        calls.append(parts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return concatenate(parts)

    monkeypatch.setattr(compute.np, "concatenate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(root, path, CountingEngine(), layers=("maps", "maps:avg"))
    assert len(calls) > 2  # what was computed was committed all the same
    monkeypatch.undo()
    engine = CountingEngine()
    fill(root, path, engine, layers=("maps", "maps:avg"))
    assert engine.images_seen < 120
    assert_rows_are_right(read_table(path), root)
    assert_rows_are_right(read_table(path), root, "maps:avg")
