"""Several caches are filled in one pass: each image is decoded once, each cache is as alone."""

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import PIXEL_SPEC, PixelEngine, cache_fill, fill, fill_all
from PIL import Image
from synthetic_images import draw

from pipeline.cache.config import ViewPlan
from pipeline.cache.file import read_all_rows, read_table
from pipeline.cache.fill import CacheFill
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.errors import BadDataError
from pipeline.images.source import FolderSource
from pipeline.images.views import POLICIES

SIZES = (8, 16, 12)
SPECS = {size: replace(PIXEL_SPEC, base=f"tiny{size}", image_size=size) for size in SIZES}


class Caches:
    """Three caches of one image folder, with an engine and an image size each."""

    def __init__(self, root: Path, folder: Path, **engines: PixelEngine) -> None:
        folder.mkdir(exist_ok=True)
        self.root = root
        self.paths = {size: folder / f"synthetic-{size}.h5" for size in SIZES}
        self.engines = {
            size: engines.get(f"engine{size}", PixelEngine(size=size)) for size in SIZES
        }

    def fills(self) -> list[CacheFill]:
        return [self.fill_of(size) for size in SIZES]

    def fill_of(self, size: int) -> CacheFill:
        return cache_fill(self.root, self.paths[size], self.engines[size], spec=SPECS[size])

    def features(self) -> dict[int, np.ndarray]:
        return {size: read_table(path).features("maps") for size, path in self.paths.items()}

    def images_seen(self) -> list[int]:
        return [engine.images_seen for engine in self.engines.values()]


@pytest.fixture
def caches(synthetic_set: Path, tmp_path: Path) -> Caches:
    return Caches(synthetic_set, tmp_path / "cache")


def assert_as_alone(caches: Caches, folder: Path, **options: Any) -> None:
    """Each cache has the rows and the features, bit for bit, of a run with its base alone."""
    alone = Caches(caches.root, folder)
    for size in SIZES:
        fill_all(caches.root, [alone.fill_of(size)], **options)
        expected, received = read_table(alone.paths[size]), read_table(caches.paths[size])
        assert received.columns.equals(expected.columns)
        np.testing.assert_array_equal(received.features("maps"), expected.features("maps"))


@pytest.mark.parametrize("views", [0, 2])
def test_each_image_is_read_and_decoded_once_and_each_cache_is_as_alone(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int
) -> None:
    plan = ViewPlan(views, POLICIES["book"] if views else None)
    read: Counter[bytes] = Counter()
    decoded: list[Any] = []
    read_file, open_image = FolderSource.read, Image.open

    def count_read(source: FolderSource, path: bytes) -> bytes:
        read[path] += 1
        return read_file(source, path)

    def count_open(*arguments: Any, **options: Any) -> Any:
        decoded.append(arguments)
        return open_image(*arguments, **options)

    monkeypatch.setattr(FolderSource, "read", count_read)
    monkeypatch.setattr(Image, "open", count_open)
    fill_all(caches.root, caches.fills(), plan=plan)
    assert set(read.values()) == {2}  # for its hash, and to decode it
    assert len(read) == len(decoded) == 72
    monkeypatch.undo()
    assert caches.images_seen() == [72 + 24 * views] * 3
    assert_as_alone(caches, tmp_path / "alone", plan=plan)


def test_second_pass_computes_only_what_each_cache_misses(caches: Caches, tmp_path: Path) -> None:
    fill_all(caches.root, [caches.fill_of(8)])
    for number in range(3):
        draw(900 + number, stripes=True).save(caches.root / "test/striped" / f"new{number}.png")
    progress: list[tuple[int, int]] = []
    results = fill_all(caches.root, caches.fills(), progress=lambda *done: progress.append(done))
    assert [result.computed for result in results] == [3, 75, 75]
    assert caches.images_seen() == [72 + 3, 75, 75]
    assert progress[-1] == (225, 225)
    assert progress == sorted(progress)
    assert_as_alone(caches, tmp_path / "alone")
    before = {path: path.stat().st_mtime_ns for path in caches.paths.values()}
    assert [each.computed for each in fill_all(caches.root, caches.fills())] == [0, 0, 0]
    assert {path: path.stat().st_mtime_ns for path in caches.paths.values()} == before
    assert [len(engine.opened) for engine in caches.engines.values()] == [2, 1, 1]


def test_each_engine_is_opened_with_eight_images_of_its_size(
    caches: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_all(caches.root, [caches.fill_of(8)])
    for number in range(9):
        draw(700 + number, stripes=True).save(caches.root / "test/striped" / f"new{number}.png")
    shapes = []
    open_engine = PixelEngine.open

    def record(engine: PixelEngine, layers: Any, images: np.ndarray, recorded: Any) -> PixelEngine:
        shapes.append(images.shape)
        return open_engine(engine, layers)

    monkeypatch.setattr(PixelEngine, "open", record)
    fill_all(caches.root, caches.fills())
    assert shapes == [(8, size, size, 3) for size in SIZES]


def test_killed_pass_keeps_the_rows_of_all_caches(synthetic_set: Path, tmp_path: Path) -> None:
    dying = Caches(synthetic_set, tmp_path / "cache", engine16=PixelEngine(size=16, die_after=40))
    with pytest.raises(KeyboardInterrupt):
        fill_all(synthetic_set, dying.fills())
    kept = []
    for size, path in dying.paths.items():
        assert not path.exists()
        shards = ShardFolder(path, SPECS[size])
        shards.recover()
        kept.append(sum(len(shard.keys) for shard in shards.shards))
    assert kept == [48, 40, 40]  # in turns, in batches of 8
    again = Caches(synthetic_set, tmp_path / "cache")
    fill_all(synthetic_set, again.fills())
    assert again.images_seen() == [72 - rows for rows in kept]
    assert_as_alone(again, tmp_path / "alone")


def test_base_that_fails_costs_no_row_of_the_others(synthetic_set: Path, tmp_path: Path) -> None:
    class BrokenEngine(PixelEngine):
        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return {key: rows + np.nan for key, rows in super().__call__(images).items()}

    caches = Caches(synthetic_set, tmp_path / "cache", engine12=BrokenEngine(size=12))
    with pytest.raises(BadDataError, match="not finite"):
        fill_all(synthetic_set, caches.fills())
    others = Caches(synthetic_set, tmp_path / "cache")
    fill_all(synthetic_set, [others.fill_of(8), others.fill_of(16)])
    assert others.images_seen() == [72 - 8, 72 - 8, 0]


def test_unreadable_image_is_skipped_in_all_caches(caches: Caches) -> None:
    broken = caches.root / "train/plain/broken.png"
    broken.write_bytes(b"text")
    progress: list[tuple[int, int]] = []
    results = fill_all(caches.root, caches.fills(), progress=lambda *done: progress.append(done))
    for path, result in zip(caches.paths.values(), results, strict=True):
        assert [file.path for file in result.skipped] == [b"train/plain/broken.png"]
        assert len(read_table(path)) == 72
        assert "broken.png" in path.with_suffix(".skipped.csv").read_text()
    assert progress[-1] == (219, 219)
    with pytest.raises(BadDataError, match=r"broken\.png: not an image"):
        fill_all(caches.root, caches.fills(), strict=True)


def test_layers_that_one_cache_misses_are_computed_in_the_same_pass(caches: Caches) -> None:
    fill(caches.root, caches.paths[8], PixelEngine(), spec=SPECS[8], limit=3)
    fills = [replace(caches.fill_of(8), layers=["maps:avg"]), caches.fill_of(16)]
    fill_all(caches.root, fills)
    assert set(caches.engines[8].opened) == {("maps:avg",), ("maps", "maps:avg")}
    table = read_all_rows(caches.paths[8])
    np.testing.assert_allclose(
        table.features("maps:avg"), table.features("maps").mean(axis=(1, 2)), rtol=1e-5
    )
    assert len(read_table(caches.paths[16])) == 72


def test_locks_are_taken_in_one_order_so_that_two_passes_never_wait_for_each_other(
    caches: Caches,
) -> None:
    first, second = sorted(caches.paths[size] for size in (8, 16))
    fills = sorted((caches.fill_of(8), caches.fill_of(16)), key=lambda each: each.path)
    with writer_lock(first):
        passes = [
            threading.Thread(target=fill_all, args=(caches.root, order), kwargs={"wait": True})
            for order in (fills, fills[::-1])
        ]
        for each in passes:
            each.start()
        for each in passes:
            each.join(timeout=0.4)
            assert each.is_alive()
        with writer_lock(second):  # no pass holds it while it waits for the first
            pass
    for each in passes:
        each.join(timeout=20)
        assert not each.is_alive()
    assert sorted(caches.images_seen()) == [0, 72, 72]
