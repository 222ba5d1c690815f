"""Neighbors and distances equal those that NumPy computes from all pairs."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import SPEC, draw_columns, draw_features, write_cache
from target_sets import LABELS, write_targets

from pipeline.cache.file import FeatureTable, read_table
from pipeline.errors import BadDataError
from pipeline.models import neighbors
from pipeline.models.neighbors import NEAREST, CachedNeighbors
from pipeline.spec import MULTILABEL, REGRESSION

LAYER, COUNT = "maps", 90
CLASSES = ("ant", "bee", "cat")
LABELS_OF_ROWS = np.arange(COUNT) % 3
MAPS = draw_features(LABELS_OF_ROWS, (2, 3, 8))
NEW = draw_features(np.arange(7) % 3, (2, 3, 8), seed=1)


def write(copies: int = 0, views: int = 0, maps: np.ndarray = MAPS) -> FeatureTable:
    """Write a cache of three classes; the first ``copies`` images are identical files."""
    columns = draw_columns(LABELS_OF_ROWS.tolist(), splits=[1] * COUNT)
    digests = columns.digests.copy()
    digests[:copies] = digests[0]
    path = write_cache(
        Path("set.h5"),
        labels=LABELS_OF_ROWS.tolist(),
        classes=CLASSES,
        layers={LAYER: maps},
        columns=replace(columns, digests=digests),
        views=views,
    )
    return read_table(path)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = (maps.mean(axis=(1, 2), dtype=np.float64) for maps in (one, other))
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    return one @ other.T / lengths


def digests_of(table: FeatureTable, rows: list[int]) -> list[bytes]:
    return [table.columns.digests[row].tobytes() for row in rows]


@pytest.mark.parametrize("views", [0, 2])
def test_neighbors_are_the_unaugmented_images_of_the_highest_cosines(views: int) -> None:
    table = write(views=views)
    found = CachedNeighbors(table, LAYER).find(NEW, 5)
    maps = table.features(LAYER, np.flatnonzero(table.columns.views == 0))
    expected = cosines(NEW, maps)
    for of_image, values in zip(found, expected, strict=True):
        order = np.argsort(-values)[:5]
        assert [each.path for each in of_image] == [b"%d.jpg" % row for row in order]
        assert [each.label for each in of_image] == [
            ("ant", "bee", "cat")[row % 3] for row in order
        ]
        assert [each.row for each in of_image] == [row * (views + 1) for row in order]
        np.testing.assert_allclose([each.similarity for each in of_image], values[order], atol=1e-6)


def test_scale_of_the_features_does_not_matter_even_if_squares_overflow() -> None:
    first = CachedNeighbors(write(), LAYER).find(NEW, 3)
    scaled = CachedNeighbors(write(maps=MAPS * np.float32(1e30)), LAYER).find(NEW, 3)
    assert [[each.row for each in one] for one in first] == [
        [each.row for each in one] for one in scaled
    ]


def test_cached_image_is_no_neighbor_of_itself_but_a_copy_of_it_is() -> None:
    table = write(copies=2)
    cached = CachedNeighbors(table, LAYER)
    (own,) = cached.find(MAPS[5:6], COUNT, digests_of(table, [5]))
    assert len(own) == COUNT - 1
    assert b"5.jpg" not in [each.path for each in own]
    maps = MAPS.copy()
    maps[1] = maps[0]
    (copies,) = CachedNeighbors(write(copies=2, maps=maps), LAYER).find(
        maps[:1], 2, digests_of(table, [0])
    )
    assert {each.path for each in copies} == {b"0.jpg", b"1.jpg"}
    assert [each.similarity for each in copies] == [1, 1]


def test_identical_pixels_of_another_file_are_listed_with_similarity_1() -> None:
    (found,) = CachedNeighbors(write(), LAYER).find(MAPS[7:8], 1, [b"another"])
    assert (found[0].path, found[0].similarity) == (b"7.jpg", 1)


def test_distance_is_the_mean_of_the_nearest_others_without_identical_files() -> None:
    table = write(copies=3)
    cached = CachedNeighbors(table, LAYER)
    similar = cosines(MAPS[[0, 10]], MAPS)
    similar[0, :3] = similar[1, 10] = -np.inf
    nearest = 1 - -np.sort(-similar, axis=1)[:, :NEAREST]
    found = cached.distances(MAPS[[0, 10]], digests_of(table, [0, 10]))
    np.testing.assert_allclose(found, nearest.mean(axis=1), atol=1e-6)
    part = cached.subset(np.flatnonzero(table.columns.labels != 0))
    of_others = 1 - -np.sort(-cosines(NEW, MAPS[LABELS_OF_ROWS != 0]), axis=1)[:, :NEAREST]
    np.testing.assert_allclose(part.distances(NEW, [b""] * 7), of_others.mean(axis=1), atol=1e-6)


def test_distances_to_some_references_are_to_the_images_of_lowest_digests() -> None:
    table = write(views=1)
    cached = CachedNeighbors(table, LAYER)
    assert cached.references(COUNT) is cached
    some = cached.references(15)
    digests = [digest.tobytes() for digest in table.columns.digests[cached.rows]]
    chosen = sorted(sorted(range(COUNT), key=digests.__getitem__)[:15])
    np.testing.assert_array_equal(some.rows, cached.rows[chosen])
    maps = table.features(LAYER, cached.rows[chosen])
    nearest = 1 - -np.sort(-cosines(NEW, maps), axis=1)[:, :NEAREST]
    found = some.distances(NEW, [b""] * 7)
    np.testing.assert_allclose(found, nearest.mean(axis=1), atol=1e-6)


def test_features_in_memory_are_not_read_from_the_cache() -> None:
    table = write()
    in_file = CachedNeighbors(table, LAYER)
    expected = in_file.vectors
    table.path.unlink()
    in_memory = CachedNeighbors(table, LAYER, MAPS.mean(axis=(1, 2)))
    np.testing.assert_allclose(in_memory.vectors, expected, atol=1e-6)
    np.testing.assert_array_equal(in_memory.vectors_of(np.array([3, 1])), expected[[3, 1]])


def test_index_of_many_images_finds_nearly_all_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install -e '.[index]'")
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 32))
    features = (centres[random.integers(0, 40, 4000)] + random.normal(size=(4000, 32))).astype("f4")
    path = write_cache(Path("many.h5"), labels=[0] * 4000, layers={"vectors": features})
    exact = CachedNeighbors(read_table(path), "vectors")
    before = exact.find(features[:50], 10)
    monkeypatch.setattr(neighbors, "INDEXED_ROWS", 1000)
    monkeypatch.setattr(neighbors, "ROWS_PER_LIST", 100)
    monkeypatch.setattr(neighbors, "SEARCHED_SHARE", 5)
    indexed = CachedNeighbors(read_table(path), "vectors")
    after = indexed.find(features[:50], 10)
    assert type(exact._index).__module__.startswith("sklearn")
    assert type(indexed._index).__module__.startswith("faiss")
    shared = [len(set(one) & set(two)) for one, two in zip(rows(before), rows(after), strict=True)]
    assert np.mean(shared) > 9.5
    assert [one[0].similarity for one in after] == pytest.approx([1.0] * 50, abs=1e-6)


def rows(found: list) -> list[list[int]]:
    return [[each.row for each in of_image] for of_image in found]


def test_without_faiss_many_images_are_compared_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = write()
    expected = CachedNeighbors(table, LAYER).find(NEW, 4)
    monkeypatch.setattr(neighbors, "INDEXED_ROWS", 10)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with caplog.at_level(logging.INFO):
        assert CachedNeighbors(table, LAYER).find(NEW, 4) == expected
    assert "faiss is missing: pip install -e '.[index]'" in caplog.text


def test_labels_and_numbers_stand_for_the_class() -> None:
    table = read_table(write_targets(Path("labels.h5"), MULTILABEL, count=20))
    found = CachedNeighbors(table, "block5_pool:avg").find(
        table.features("block5_pool:avg", np.array([3])), 1, [b"new"]
    )
    expected = [name for name, has in zip(LABELS, table.columns.targets[3], strict=True) if has]
    assert found[0][0].label == "|".join(expected)
    table = read_table(write_targets(Path("numbers.h5"), REGRESSION, count=20))
    found = CachedNeighbors(table, "block5_pool:avg").find(
        table.features("block5_pool:avg", np.array([3])), 1, [b"new"]
    )
    assert found[0][0].label == f"{table.columns.targets[3, 0]:.6g}"


def test_pixels_are_compared_on_a_grid() -> None:
    random = np.random.default_rng(0)
    images = random.random((30, 40, 40, 3)).astype(np.float32)
    spec = replace(SPEC, base="pixels")
    path = write_cache(Path("pixels.h5"), labels=[0] * 30, layers={"pixels": images}, spec=spec)
    cached = CachedNeighbors(read_table(path), "pixels")
    assert cached.vectors.shape == (30, 16 * 16 * 3)
    (found,) = cached.find(np.roll(images[4:5], 1, axis=1), 1)
    assert found[0].row == 4


def test_features_that_are_not_finite_are_refused_in_one_line() -> None:
    maps = MAPS.copy()
    maps[4, 0, 0, 0] = np.nan
    with pytest.raises(BadDataError, match=r"set\.h5: layer maps contains values that are not fin"):
        CachedNeighbors(write(maps=maps), LAYER).find(NEW, 1)
