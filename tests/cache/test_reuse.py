"""Rows of any cache in the folder count: a renamed or smaller set computes nothing again."""

import contextlib
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from caches import PIXEL_SPEC, PixelEngine, another_program, fill, flip
from command import run_command
from synthetic_images import make_image_folder

from pipeline import extract_features, load_features
from pipeline.api import Extraction
from pipeline.bases.config import BaseConfig
from pipeline.cache.find import latest_caches
from pipeline.cache.maintenance import find_prunable
from pipeline.cache.provenance import continues_engine
from pipeline.cache.reuse import find_other_rows
from pipeline.cache.shards import PLAN, writer_lock
from pipeline.engines import is_installed


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """An image folder of 140 images, more than two chunks of rows."""
    return make_image_folder(tmp_path / "data/pets", per_class=35, splits=("train", "test"))


def extract(root: Path, **options: Any) -> Extraction:
    return extract_features(root, **{"base": "pixels", "pooling": "avg"} | options)


def assert_same_features(one: Extraction, other: Extraction) -> None:
    """The rows of the second are in the first, with the same features."""
    rows = {key: row for row, key in enumerate(one.table.columns.row_keys())}
    numbers = np.array([rows[key] for key in other.table.columns.row_keys()])
    for layer in other.table.layers:
        expected, features = one.table.features(layer, numbers), other.table.features(layer)
        np.testing.assert_array_equal(features, expected)


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"pooling": "none"}, {"views": 2}])
def test_renamed_folder_computes_nothing(pets: Path, options: dict[str, Any]) -> None:
    before = extract(pets, **options)
    pets.rename(pets.with_name("animals"))
    after = extract(pets.with_name("animals"), **options)
    assert after.computed == 0
    assert after.table.path != before.table.path
    assert after.table.document["engine"] == before.table.document["engine"]
    assert_same_features(before, after)
    assert "every byte is correct" in run_command("cache", "verify", after.table.path).stdout
    assert not list(Path("cache").glob("*.parts"))


def test_renamed_folder_opens_no_engine(pets: Path) -> None:
    first = PixelEngine()
    fill(pets, Path("cache/pets.h5"), first)
    assert first.images_seen == 140
    engine, path = PixelEngine(), Path("cache/animals.h5")
    fill(pets, path, engine, others=find_other_rows(spec=PIXEL_SPEC, besides=path))
    assert engine.opened == []


def test_rows_of_an_interrupted_run_count_after_a_rename(pets: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(pets, Path("cache/pets.h5"), PixelEngine(die_after=100), batch_size=4)
    animals = pets.rename(pets.with_name("animals"))
    engine, path = PixelEngine(), Path("cache/animals.h5")
    others = find_other_rows(spec=PIXEL_SPEC, besides=path)
    fill(animals, path, engine, others=others)
    assert engine.images_seen == 40
    assert list(Path("cache/pets.parts").iterdir())  # another run may continue


def test_a_cache_keeps_its_engine(pets: Path) -> None:
    few, all_images = Path("cache/few.h5"), Path("cache/all.h5")
    fill(pets, few, PixelEngine(name="one"), limit=3)
    fill(pets, all_images, PixelEngine(name="two"))
    engine = PixelEngine(name="one")
    fill(pets, few, engine, others=find_other_rows(spec=PIXEL_SPEC, besides=few))
    assert engine.images_seen == 140 - 12
    assert "also" not in load_features(few).document["engine"]


def test_file_in_another_folder_shares_nothing(pets: Path) -> None:
    extract(pets)
    assert extract(pets, out=Path("elsewhere/copy.h5")).computed == 140


def test_engine_that_is_requested_or_missing_decides_which_caches_count(pets: Path) -> None:
    fill(pets, Path("cache/pets.h5"), PixelEngine(name="ncnn"))
    base = BaseConfig(base="mobilenet_v2")
    for config, counts in (
        (replace(base, engine="ncnn"), True),
        (replace(base, engine="onnx"), False),
        (base, is_installed("ncnn")),
    ):
        accepts = partial(continues_engine, config)
        path = Path("cache/other.h5")
        found = find_other_rows(spec=PIXEL_SPEC, besides=path, accepts_engine=accepts)
        assert len(list(found)) == counts
    assert not continues_engine(base, "of another version")


def test_subset_and_union_of_cached_sets_compute_only_new_images(pets: Path) -> None:
    extract(pets)
    subset = pets.with_name("subset")
    shutil.copytree(pets / "train", subset)
    assert extract(subset).computed == 0
    others = make_image_folder(pets.with_name("others"), per_class=4)
    union = pets.with_name("union")
    shutil.copytree(subset, union)
    for file in others.glob("*/*.png"):
        content = file.read_bytes() + b"another image"
        (union / file.parent.name / f"new {file.name}").write_bytes(content)
    done = extract(union)
    assert done.computed == 8
    assert len(done.table) == 78


def test_second_layer_is_found_in_another_cache(pets: Path) -> None:
    extract(pets, pooling="none")
    copy = pets.with_name("copy")
    shutil.copytree(pets, copy)
    extract(copy, pooling="avg", out=Path("cache/any name.h5"))
    assert extract(copy, pooling="none", out=Path("cache/any name.h5")).computed == 0
    assert extract(pets, pooling="avg").computed == 0


def test_rows_of_several_caches_are_joined_layer_by_layer(pets: Path) -> None:
    train, test = pets.with_name("one"), pets.with_name("two")
    shutil.copytree(pets / "train", train)
    shutil.copytree(pets / "test", test)
    for pooling in ("none", "avg"):
        extract(train, pooling=pooling)
    whole = Path("cache/whole.h5")
    extract(pets, limit_per_class=1, pooling="none", out=whole)
    assert extract(test, pooling="avg").computed == 70
    done = extract(pets, pooling="avg", out=whole)
    assert done.computed == 68  # maps of the test images; all their averages are cached
    assert set(done.table.layers) == {"pixels", "pixels:avg"}


def test_views_count_only_if_they_are_drawn_alike(pets: Path) -> None:
    extract(pets, views=2)
    copy = pets.with_name("copy")
    shutil.copytree(pets, copy)
    assert extract(copy, views=1).computed == 0
    assert extract(copy, views=3).computed == 70  # the third view of the training images
    assert extract(copy, views=2, seed=1).computed == 140  # not the images themselves
    assert extract(copy).computed == 0


def test_other_features_do_not_count(pets: Path) -> None:
    extract(pets)
    copy = pets.with_name("copy")
    shutil.copytree(pets, copy)
    assert extract(copy, image_size=16).computed == 140
    assert extract(copy, dtype="float16").computed == 140


@pytest.mark.parametrize("damage", ["chunk", "metadata", "cut off", "no cache", "busy"])
def test_damaged_and_busy_caches_are_passed_over_with_a_warning(
    pets: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = extract(pets)
    path, content = before.table.path, before.table.path.read_bytes()
    copy = pets.with_name("copy")
    shutil.copytree(pets, copy)
    if damage == "chunk":
        with h5py.File(path) as file:
            flip(path, file["features/pixels:avg"].id.get_chunk_info(0).byte_offset + 9)
    elif damage == "metadata":
        flip(path, 100)
    elif damage == "cut off":
        path.write_bytes(content[:3000])
    elif damage == "no cache":
        path.write_bytes(b"text")
    damaged = path.read_bytes()
    with another_program(path) if damage == "busy" else contextlib.nullcontext():
        assert extract(copy).computed == (64 if damage == "chunk" else 140)
    if damage != "busy":
        assert path.read_bytes() == damaged
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (damage != "no cache")
    assert all(text.startswith(f"passed over: {path} is ") for text in warnings)


def test_prune_says_what_other_caches_have(pets: Path) -> None:
    path = extract(pets).table.path
    moved = pets.with_name("moved")
    pets.rename(moved)
    (item,) = find_prunable(Path("cache"))
    assert item.path == path
    assert "140 rows are in no other cache" in item.reason
    assert "if the folder was moved, extract it there first" in item.reason
    shutil.copytree(moved / "train", pets.with_name("half"))
    extract(pets.with_name("half"))
    (item,) = find_prunable(Path("cache"))
    assert "70 rows are in no other cache" in item.reason
    extract(moved)
    (item,) = find_prunable(Path("cache"))
    assert item.reason.endswith("other caches have all its rows")


def test_prune_lists_shards_without_a_cache_file(pets: Path) -> None:
    path = extract(pets).table.path
    parts = path.with_suffix(".parts")
    parts.mkdir()
    path.rename(parts / "000000.h5")
    (item,) = find_prunable(Path("cache"))
    assert (item.path, item.reason[:18]) == (parts, "an interrupted run")
    with writer_lock(path):
        assert not find_prunable(Path("cache"))  # it is running
    (parts / PLAN).touch()
    (item,) = find_prunable(Path("cache"))
    assert "a plan whose parts may still run" in item.reason
    run_command("cache", "prune", "--yes")
    assert not parts.exists()
    assert "nothing to prune" in run_command("cache", "prune").stdout


def test_classify_takes_the_cache_that_the_last_extract_answered_from(pets: Path) -> None:
    first = extract(pets).table.path
    other = make_image_folder(pets.with_name("other"), per_class=6)
    second = extract(other).table.path
    assert latest_caches(Path("cache")) == [second]
    assert extract(pets).computed == 0
    assert latest_caches(Path("cache")) == [first]
    os.utime(second)
    shutil.copytree("cache", "copied")
    assert latest_caches(Path("copied")) == [Path("copied", first.name)]
    stderr = run_command("classify", "--heads", "majority", "--no-audit").stderr
    assert f"using the newest cache: {first}\n" in stderr
    outside = extract(other, out=Path("elsewhere.h5")).table.path
    assert latest_caches(Path("cache")) == [outside.resolve()]
    outside.unlink()
    assert latest_caches(Path("cache")) == [first]  # of the extract before
    Path("cache/latest").unlink()
    assert latest_caches(Path("cache")) == [second]  # written last
    Path("cache/latest").write_bytes(b"\xff\0")
    assert latest_caches(Path("cache")) == [second]
