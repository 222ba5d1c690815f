"""Views in a cache are drawn from content, computed once, and have their own file."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_line, run_command
from synthetic_images import draw

from pipeline import api
from pipeline.api import extract_features
from pipeline.cache.config import ViewPlan
from pipeline.cache.file import FeatureTable, RowKey, read_all_rows, read_table
from pipeline.errors import CannotCreateError, StorageError, UsageError
from pipeline.images.decode import decode
from pipeline.images.views import POLICIES, Augmentation, draw_view

SIZE = 16
SPLITS = {"none": 0, "train": 1, "validation": 2, "test": 3}


def extract(root: Path, views: int, **options: Any) -> api.Extraction:
    return extract_features(root, base="pixels", image_size=SIZE, views=views, **options)


def assert_rows_are_the_views_of_their_images(
    table: FeatureTable, root: Path, augmentation: Augmentation = POLICIES["book"]
) -> None:
    features = table.features("pixels")
    for row, path in enumerate(table.columns.paths.tolist()):
        data = (root / os.fsdecode(path)).read_bytes()
        digest = hashlib.sha256(data).digest()
        assert table.columns.digests[row].tobytes() == digest
        pixels = draw_view(
            decode(data, image_size=SIZE),
            augmentation=augmentation,
            image_digest=digest,
            view=int(table.columns.views[row]),
        )
        np.testing.assert_allclose(features[row], pixels / np.float32(255), rtol=1e-6)


def views_by_split(table: FeatureTable) -> dict[str, list[int]]:
    columns = table.columns
    return {
        name: sorted(columns.views[columns.splits == number].tolist())
        for name, number in SPLITS.items()
    }


def test_only_training_images_have_views(synthetic_set: Path) -> None:
    done = extract(synthetic_set, 2)
    assert done.computed == 24 * 3 + 48
    assert_rows_are_the_views_of_their_images(done.table, synthetic_set)
    assert views_by_split(done.table) == {
        "none": [],
        "train": sorted([0, 1, 2] * 24),
        "validation": [0] * 24,
        "test": [0] * 24,
    }
    document = done.table.document
    assert (document["views"], document["tta"]) == (2, False)
    assert Augmentation.from_dict(document["augmentation"]) == POLICIES["book"]


def test_every_image_has_views_where_stage_two_splits(synthetic_classes: Path) -> None:
    table = extract(synthetic_classes, 1).table
    assert views_by_split(table)["none"] == [0] * 80 + [1] * 80


def test_tta_gives_views_to_all(synthetic_set: Path) -> None:
    table = extract(synthetic_set, 1, tta=True).table
    assert views_by_split(table)["test"] == [0] * 24 + [1] * 24
    assert_rows_are_the_views_of_their_images(table, synthetic_set)


def test_more_views_compute_only_those(synthetic_set: Path) -> None:
    assert extract(synthetic_set, 1).computed == 72 + 24
    grown = extract(synthetic_set, 3)
    assert grown.computed == 2 * 24
    assert_rows_are_the_views_of_their_images(grown.table, synthetic_set)
    at_once = extract(synthetic_set, 3, out="once.h5").table
    order = [np.lexsort((t.columns.views, t.columns.paths)) for t in (grown.table, at_once)]
    np.testing.assert_array_equal(
        grown.table.features("pixels")[order[0]], at_once.features("pixels")[order[1]]
    )


def test_fewer_views_hide_the_others_until_they_are_requested_again(synthetic_set: Path) -> None:
    extract(synthetic_set, 3)
    fewer = extract(synthetic_set, 1)
    assert fewer.computed == 0
    assert views_by_split(fewer.table)["train"] == [0] * 24 + [1] * 24
    assert extract(synthetic_set, 3).computed == 0


def test_other_augmentation_goes_to_another_file(synthetic_set: Path) -> None:
    book = extract(synthetic_set, 1).table.path
    light = extract(synthetic_set, 1, augmentation="light")
    assert light.table.path != book
    assert_rows_are_the_views_of_their_images(light.table, synthetic_set, POLICIES["light"])
    other_seed = extract(synthetic_set, 1, seed=1)
    assert other_seed.table.path not in (book, light.table.path)
    with pytest.raises(CannotCreateError, match="another --out"):
        extract(synthetic_set, 1, augmentation="light", out=book)


def test_new_image_gets_its_views_and_a_renamed_one_keeps_them(synthetic_set: Path) -> None:
    extract(synthetic_set, 2)
    draw(7, stripes=True, size=(20, 20)).save(synthetic_set / "train/striped/new.png")
    assert extract(synthetic_set, 2).computed == 3
    (synthetic_set / "train/striped/new.png").unlink()
    (synthetic_set / "train/plain/000.png").rename(synthetic_set / "train/plain/renamed.png")
    done = extract(synthetic_set, 2)
    assert done.computed == 0
    assert len(done.table) == 24 * 3 + 48
    names = done.table.columns.paths.tolist()
    assert names.count(b"train/plain/renamed.png") == 3
    assert b"train/plain/000.png" not in names
    assert (read_all_rows(done.table.path).columns.labels == -1).sum() == 3


def test_copy_in_test_gives_no_views_to_test(synthetic_set: Path) -> None:
    """The same photograph in train and test: its views are rows of train alone."""
    shutil.copy(synthetic_set / "train/plain/000.png", synthetic_set / "test/plain/copy.png")
    table = extract(synthetic_set, 2).table
    assert views_by_split(table)["test"] == [0] * 25
    assert len(table) == 24 * 3 + 49


def test_repair_draws_the_same_views(synthetic_set: Path) -> None:
    table = extract(synthetic_set, 2).table
    expected = table.features("pixels")
    content = bytearray(table.path.read_bytes())
    content[len(content) // 3] ^= 1
    table.path.write_bytes(content)
    run_command("cache", "verify", table.path, check=65)
    repaired = api.repair_cache(table.path)
    assert repaired.damages
    np.testing.assert_array_equal(read_table(table.path).features("pixels"), expected)
    run_command("cache", "verify", table.path)


def test_command_prints_the_number_of_views(synthetic_set: Path) -> None:
    command = ["extract", synthetic_set, "--base", "pixels", "--views", "2", "--rotation", "10"]
    assert "72 images and 48 views of them (120 computed)" in run_command(*command).stdout
    assert "(all from the cache)" in run_command(*command).stdout
    message = assert_one_line(run_command(*command[:4], "--tta", check=2))
    assert "--tta averages over views: set their number with --views" in message
    assert "--rotation" in assert_one_line(run_command(*command[:-1], "400", check=2))


def test_preview_writes_one_sheet_and_no_cache(synthetic_set: Path) -> None:
    finished = run_command("extract", synthetic_set, "--base", "pixels", "--preview-views")
    sheet = Path(finished.stdout.strip())
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert not list(Path("cache").glob("*.h5"))


def test_too_little_disk_space_is_an_error_before_the_work(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 9))
    with pytest.raises(StorageError, match=r"needed, 9 bytes free.*fewer --views"):
        extract(synthetic_set, 2)


def test_invalid_plans_and_documents_are_refused() -> None:
    for views in (-1, 1001):
        with pytest.raises(UsageError, match="--views is a number from 0 to 1000"):
            ViewPlan(views, POLICIES["book"])
    good = ViewPlan(2, POLICIES["book"]).to_document()
    assert ViewPlan.from_document(good) == ViewPlan(2, POLICIES["book"])
    assert ViewPlan.from_document({}) == ViewPlan()
    for change in ({"views": "2"}, {"tta": 1}, {"views": 0}, {"views": -1}, {"augmentation": {}}):
        with pytest.raises(ValueError):
            ViewPlan.from_document({**good, **change})


def test_view_0_is_the_image_itself() -> None:
    pixels = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)
    plan = ViewPlan(1, POLICIES["strong"])
    np.testing.assert_array_equal(plan.draw(RowKey(b"\1" * 32), pixels), pixels)
    assert (plan.draw(RowKey(b"\1" * 32, 1), pixels) != pixels).any()


def test_hidden_views_are_never_used_for_those_of_another_augmentation(
    synthetic_set: Path,
) -> None:
    extract(synthetic_set, 2, out="x.h5")
    with pytest.raises(CannotCreateError, match="received no --views"):
        extract(synthetic_set, 0, out="x.h5")
    with pytest.raises(CannotCreateError, match="contains views drawn with"):
        extract(synthetic_set, 2, out="x.h5", augmentation="strong")
    with pytest.raises(CannotCreateError, match="contains views drawn with"):
        extract(synthetic_set, 2, out="x.h5", seed=1)


def test_interrupted_run_goes_on_with_its_own_views_only(synthetic_set: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total:  # computed, not published
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(synthetic_set, 2, out="x.h5", progress=interrupt)
    with pytest.raises(CannotCreateError, match="of an interrupted run with another augmentation"):
        extract(synthetic_set, 2, out="x.h5", augmentation="strong")
    done = extract(synthetic_set, 2, out="x.h5")
    assert done.computed == 0
    assert_rows_are_the_views_of_their_images(done.table, synthetic_set)


@pytest.mark.slow
def test_killed_process_goes_on_to_the_same_file(synthetic_set: Path) -> None:
    """kill -9 while views are computed; bit for bit what an uninterrupted run writes."""
    command = [sys.executable, "-m", "pipeline.extract", str(synthetic_set), "--base", "vgg16"]
    command += ["--weights", "random", "--engine", "tensorflow", "--image-size", "64"]
    command += ["--views", "6", "--out", "x.h5"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not list(Path("x.parts").glob("*.h5")):
            assert run.poll() is None
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    computed = int(re.findall(r"\((\d+) computed\)", finished.stdout)[0])
    assert 0 < computed < 24 * 7 + 48
    subprocess.run([*command[:-1], "y.h5"], capture_output=True, check=True)
    tables = [read_table(Path(name)) for name in ("x.h5", "y.h5")]
    order = [np.lexsort((each.columns.views, each.columns.paths)) for each in tables]
    one, other = (
        each.features("block5_pool")[rows] for each, rows in zip(tables, order, strict=True)
    )
    np.testing.assert_array_equal(one, other)
