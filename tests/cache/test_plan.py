"""Any number of processes compute the units of a plan; the published file does not depend on it."""

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from caches import PIXEL_SPEC, PixelEngine, cache_fill, fill
from command import assert_one_line, run_command
from synthetic_images import draw, make_image_folder

from pipeline import extract_features
from pipeline.cache.checksums import read_checksums
from pipeline.cache.config import ExtractConfig, ViewPlan
from pipeline.cache.file import RowKey, read_table
from pipeline.cache.fill import write_plan
from pipeline.cache.plan import ExtractionPlan, compute_units
from pipeline.cache.row_index import RowIndex
from pipeline.cache.shards import PLAN, ShardFolder, writer_lock
from pipeline.distributed.parts import PartWorker, compute_part, plan_extraction
from pipeline.errors import BadDataError, NoInputError, UnreachableError, UsageError
from pipeline.images.hashes import hash_files
from pipeline.images.scan import scan_folder
from pipeline.images.source import FolderSource

BATCH = 8


class BatchEngine(PixelEngine):
    """An engine whose last bits depend on the other images of a batch, as TensorFlow's may."""

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        rows = super().__call__(images)
        return {key: each + np.float32(images.mean()) for key, each in rows.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = make_image_folder(tmp_path / "set", per_class=100)
    (folder / "plain" / "042.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache" / "set.h5"


def make_plan(root: Path, path: Path) -> ExtractionPlan:
    images = scan_folder(root)
    digests, _ = hash_files(images.source, images.paths)
    plan, _ = write_plan(
        cache_fill(root, path, BatchEngine()),
        images=images,
        digests=digests,
        batch_size=BATCH,
        plan=ViewPlan(),
    )
    return plan


def compute(plan: ExtractionPlan, numbers: Any, root: Path, path: Path) -> BatchEngine:
    shards = ShardFolder(path, PIXEL_SPEC)
    index = RowIndex(None, shards.read(verify=False))
    engine = BatchEngine()
    compute_units(plan, numbers, shards, FolderSource(root), engine.open, index=index)
    return engine


def test_rows_of_two_writers_are_both_kept(path: Path) -> None:
    """Both have listed the folder before either commits."""
    writers = [ShardFolder(path, PIXEL_SPEC) for _ in range(2)]
    keys = [[RowKey(bytes([number, row]) * 16) for row in range(8)] for number in range(2)]
    features = np.zeros((8, 3), np.float32)
    for _ in range(3):
        for number, (writer, of_writer) in enumerate(zip(writers, keys, strict=True)):
            writer.commit(of_writer, {"maps:avg": features + number}, engine={"name": "x"})
    shards = ShardFolder(path, PIXEL_SPEC).read()
    assert sorted(key for shard in shards for key in shard.keys) == sorted(keys[0] + keys[1])


@pytest.mark.parametrize("seed", range(3))
def test_file_does_not_depend_on_who_computes_what(root: Path, path: Path, seed: int) -> None:
    alone = path.with_name("alone.h5")
    fill(root, alone, BatchEngine(), batch_size=BATCH)
    plan = make_plan(root, path)
    assert len(plan.units) == 4  # of 64 rows
    rng = random.Random(seed)
    shares = [rng.sample(range(4), rng.randint(1, 3)) for _ in range(4)]
    computed = sum(compute(plan, share, root, path).images_seen for share in shares)
    absent = set(range(4)) - {number for share in shares for number in share}
    assert computed == 199 - sum(
        len(batch) for number in absent for batch in plan.units[number].batches
    ) + (0 in absent)
    publisher = BatchEngine()
    fill(root, path, publisher, batch_size=1)  # the plan's batch size counts
    assert publisher.images_seen == 199 - computed
    assert path.read_bytes() == alone.read_bytes()
    assert not path.with_suffix(".parts").exists()


def test_interrupted_run_continues_with_the_same_batches(root: Path, path: Path) -> None:
    alone = path.with_name("alone.h5")
    fill(root, alone, BatchEngine(), batch_size=BATCH)
    for die_after in (50, 90):
        with pytest.raises(KeyboardInterrupt):
            fill(root, path, BatchEngine(die_after=die_after), batch_size=BATCH)
    fill(root, path, BatchEngine(), batch_size=BATCH)
    assert path.read_bytes() == alone.read_bytes()


def test_worker_that_wakes_after_publishing_changes_nothing(root: Path, path: Path) -> None:
    plan = make_plan(root, path)
    fill(root, path, BatchEngine(), batch_size=BATCH)
    published = path.read_bytes()
    compute(plan, [0, 1], root, path)
    assert path.with_suffix(".parts").exists()
    engine = BatchEngine()
    fill(root, path, engine, batch_size=BATCH)
    assert engine.images_seen == 0
    assert path.read_bytes() == published
    assert not path.with_suffix(".parts").exists()


def test_shard_committed_while_another_process_publishes_is_kept(root: Path, path: Path) -> None:
    plan = make_plan(root, path)
    later = RowKey(bytes(32))

    class Publisher(BatchEngine):
        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            shards = ShardFolder(path, PIXEL_SPEC)
            maps = np.zeros((1, 8, 8, 3), np.float32)
            shards.commit([later], {"maps": maps}, engine={"name": "pixels", "version": "1"})
            return super().__call__(images)

    fill(root, path, Publisher(), batch_size=BATCH)
    (shard,) = ShardFolder(path, PIXEL_SPEC).read()
    assert shard.keys == (later,)
    assert (
        len(read_table(path))
        == len([row for b in plan.batches.values() for x in b for row in x]) - 1
    )


def test_workers_need_no_lock_and_delete_no_temporary_file_of_others(
    root: Path, path: Path
) -> None:
    plan = make_plan(root, path)
    temporary = path.with_suffix(".parts") / "0.h5.12345678.tmp"
    temporary.write_bytes(b"")
    with writer_lock(path):
        compute(plan, [0], root, path)
    fill(root, path, BatchEngine(), batch_size=BATCH)
    assert temporary.exists()
    two_days_ago = time.time() - 2 * 86_400
    os.utime(temporary, (two_days_ago, two_days_ago))
    fill(root, path, BatchEngine(), batch_size=BATCH)
    assert not path.with_suffix(".parts").exists()


def test_another_engine_version_is_refused(root: Path, path: Path) -> None:
    plan = make_plan(root, path)
    engine = BatchEngine()
    engine.version = "2"
    with pytest.raises(UnreachableError, match=r"pixels 1; this machine has pixels 2: install"):
        compute_units(plan, [0], ShardFolder(path, PIXEL_SPEC), FolderSource(root), engine.open)


def test_image_that_changed_since_the_plan_is_skipped(root: Path, path: Path) -> None:
    plan = make_plan(root, path)
    draw(4711, stripes=True).save(root / "plain" / "001.png")
    shards = ShardFolder(path, PIXEL_SPEC)
    done = compute_units(plan, [0], shards, FolderSource(root), BatchEngine().open)
    assert [(file.path, file.reason.partition(":")[0]) for file in done.skipped] == [
        (b"plain/001.png", "changed while it was being read"),
        (b"plain/042.png", "not an image, or in a format that Pillow does not read"),
    ]
    assert done.rows == 62


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_file_that_is_no_plan_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / PLAN
    if content is None:
        with h5py.File(path, "w") as file:
            file["plan"] = '{"format": 99}'
    else:
        path.write_bytes(content)
    with pytest.raises(BadDataError, match=r"extraction\.plan is not a plan of this version"):
        ExtractionPlan.read(path)


# ---- the functions of the command


@pytest.fixture
def epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


OPTIONS: dict[str, Any] = {"base": "pixels", "image_size": 16, "batch_size": BATCH}


@pytest.mark.usefixtures("epoch")
@pytest.mark.parametrize("views", [0, 2])
def test_parts_on_machines_with_other_roots_make_the_same_file(root: Path, views: int) -> None:
    alone = extract_features(root, **OPTIONS, views=views, cache_dir="alone").table.path
    plan_extraction(root, **OPTIONS, views=views)
    elsewhere = shutil.copytree(root, "other machine/set")
    for number in (2, 1):
        compute_part(elsewhere, **OPTIONS, views=views, part=f"{number}/2")
    done = extract_features(root, **OPTIONS, views=views)
    assert done.computed == 0
    assert [file.path for file in done.skipped] == [b"plain/042.png"]
    assert done.table.document == read_table(alone).document
    assert read_checksums(done.table.path) == read_checksums(alone)  # says which chunks differ
    assert done.table.path.read_bytes() == alone.read_bytes()


def test_part_without_a_plan_or_with_other_options_is_one_line(root: Path) -> None:
    def part(**options: Any) -> Callable[[], object]:
        return lambda: compute_part(root, **{**OPTIONS, "part": "1/2", **options})

    with pytest.raises(NoInputError, match=r"no plan of pixels: run .* --plan first"):
        part()()
    plan_extraction(root, **OPTIONS)
    with pytest.raises(BadDataError, match=r"image_size 16 \(here 32\)"):
        part(image_size=32)()
    for wrong in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(UsageError, match=r"--part is I/N"):
            part(part=wrong)()
    plan_extraction(root, **{**OPTIONS, "image_size": 8})
    with pytest.raises(UsageError, match=r"several plans of pixels: select one with --out"):
        part()()


def test_second_plan_keeps_batches_only_if_there_are_shards(root: Path) -> None:
    sizes = [
        plan_extraction(root, **{**OPTIONS, "batch_size": size}).plan.batch_size for size in (8, 4)
    ]
    compute_part(root, **OPTIONS, part="1/3")
    sizes.append(plan_extraction(root, **OPTIONS).plan.batch_size)
    assert sizes == [8, 4, 4]


def test_plan_of_a_complete_cache_is_empty(root: Path) -> None:
    extract_features(root, **OPTIONS)
    planned = plan_extraction(root, **OPTIONS)
    assert planned.rows == 1  # the broken image
    assert compute_part(root, **OPTIONS, part="1/1").rows == 0
    assert extract_features(root, **OPTIONS).computed == 0
    assert not planned.path.exists()


def test_command_finds_the_plan_of_its_set_among_others(root: Path) -> None:
    flags = ("--base", "pixels", "--image-size", "16", "--batch-size", "8")
    other = make_image_folder(root.with_name("other"), per_class=4)
    for folder in (root, other):
        run_command("extract", folder, *flags, "--plan")
    part = ("extract", other, *flags, "--part", "1/1")
    assert "part 1/1: 8 rows computed, 0 files skipped" in run_command(*part).stdout
    (plan,) = Path("cache").glob("set-*.parts/extraction.plan")
    plan.write_bytes(b"damaged")
    assert "0 files skipped" in run_command(*part).stdout
    assert "set-pixels" in assert_one_line(run_command("extract", root, *part[2:], check=65))


def test_machine_without_the_images_is_one_line(root: Path) -> None:
    plan_extraction(root, **OPTIONS)
    for file in root.glob("*/*"):
        file.unlink()
    flags = ("--base", "pixels", "--image-size", "16", "--part", "1/2")
    line = assert_one_line(run_command("extract", root, *flags, check=66))
    assert "set does not contain the images of the plan, such as plain/000.png: name" in line


def test_damaged_byte_of_a_plan_is_found(root: Path, path: Path) -> None:
    """HDF5 has no checksum here: a bit of the batch size would change the batches."""
    data = make_plan(root, path).to_bytes()
    for place in range(0, len(data), len(data) // 20):
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(ValueError, match="its checksum does not match"):
            ExtractionPlan.from_bytes(damaged)
    assert ExtractionPlan.from_bytes(data).batch_size == BATCH


def test_shard_with_damaged_keys_is_not_opened_by_parts(root: Path, path: Path) -> None:
    """HDF5 does not end on some files with a damaged byte outside the features."""
    compute(make_plan(root, path), [0], root, path)
    shards = ShardFolder(path, PIXEL_SPEC)
    (shard,) = shards.read(verify=False)
    data = shard.path.read_bytes()
    place = data.index(shard.keys[0].digest)
    shard.path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert shards.read(verify=False) == []


def test_plan_with_the_features_of_another_version_is_one_line(root: Path, path: Path) -> None:
    plan = make_plan(root, path)
    other = replace(plan, document={**plan.document, "spec": {**plan.document["spec"], "new": 1}})
    other.write(path.with_suffix(".parts"))
    with pytest.raises(BadDataError, match="is not a plan of this version"):
        ExtractionPlan.read(path.with_suffix(".parts") / PLAN)


def test_node_without_the_folder_of_the_plan_computes_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its parts would be on its own disk, where nobody looks for them."""
    planned = plan_extraction(root, **OPTIONS)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(NoInputError, match="does not exist on this machine: share the folder"):
        PartWorker(planned, None, ExtractConfig(**OPTIONS))
