"""Arrays, tf.data, pandas and Arrow contain what the cache contains."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import publish_random
from feature_sets import alternating_labels, draw_features, folder_splits, write_cache

from pipeline import load_features
from pipeline.cache.file import FeatureTable
from pipeline.cache.loading import shuffled_blocks
from pipeline.errors import NoInputError, UnreachableError, UsageError

COUNT = 150


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = alternating_labels(COUNT)
    return write_cache(
        tmp_path_factory.mktemp("loading") / "synthetic.h5",
        labels=labels,
        splits=folder_splits(COUNT),
        layers={
            "maps": draw_features(np.array(labels), (2, 2, 3)),
            "maps:avg": draw_features(np.array(labels), (3,), seed=1),
        },
    )


def test_default_form_is_a_table(cache: Path) -> None:
    table = load_features(cache)
    assert isinstance(table, FeatureTable)
    assert len(load_features(str(cache))) == COUNT


def test_arrays_of_a_split(cache: Path) -> None:
    table = load_features(cache)
    features, labels = load_features(cache, as_="arrays", layer="maps", split="validation")
    rows = np.flatnonzero(table.columns.splits == 2)
    np.testing.assert_array_equal(features, table.features("maps")[rows])
    np.testing.assert_array_equal(labels, table.columns.labels[rows])
    assert len(load_features(cache, as_="arrays", layer="maps:avg")[0]) == COUNT


def test_data_frame_has_one_row_per_image(cache: Path) -> None:
    table = load_features(cache)
    frame = load_features(cache, as_="pandas", layer="maps")
    assert list(frame)[:4] == ["path", "label", "split", "maps_0"]
    assert frame["path"].tolist() == [path.decode() for path in table.columns.paths]
    assert frame["label"].tolist() == [table.classes[label] for label in table.columns.labels]
    assert frame["split"].value_counts()["train"] == (table.columns.splits == 1).sum()
    np.testing.assert_array_equal(
        frame.filter(like="maps_").to_numpy(), table.features("maps").reshape(COUNT, -1)
    )


def test_arrow_table_keeps_the_shape_of_maps(cache: Path) -> None:
    table = load_features(cache)
    arrow = load_features(cache, as_="arrow", layer="maps", split="test")
    rows = np.flatnonzero(table.columns.splits == 3)
    tensors = arrow["features"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(tensors, table.features("maps")[rows])
    labels = [table.classes[label] for label in table.columns.labels[rows]]
    assert arrow["label"].to_pylist() == labels
    assert set(arrow["split"].to_pylist()) == {"test"}


def test_views_are_loaded_only_on_request(tmp_path: Path) -> None:
    labels, splits = alternating_labels(40), folder_splits(40)
    plain = write_cache(tmp_path / "plain.h5", labels=labels, splits=splits)
    viewed = write_cache(tmp_path / "viewed.h5", labels=labels, splits=splits, views=3)
    images = splits.count(1)
    for split, expected in ((None, 40), ("train", images), ("test", splits.count(3))):
        assert len(load_features(viewed, as_="arrays", split=split)[1]) == expected
    assert len(load_features(viewed, as_="arrays", split="train", views=2)[1]) == 3 * images
    assert len(load_features(viewed, as_="arrays", views=3)[1]) == 40 + 3 * images
    assert len(load_features(viewed)) == 40 + 3 * images  # a table contains the whole file
    for form in ("pandas", "arrow"):
        found: Any = load_features(viewed, as_=form, views=1)  # type: ignore[call-overload]
        assert sum(map(int, found["view"].to_numpy())) == images
        columns = load_features(viewed, as_=form)  # type: ignore[call-overload]
        names = load_features(plain, as_=form)  # type: ignore[call-overload]
        assert getattr(columns, "column_names", list(columns)) == getattr(
            names, "column_names", list(names)
        )
    with pytest.raises(UsageError, match="contains 0 augmented views per image; received views=1"):
        load_features(viewed, as_="arrays", split="test", views=1)
    with pytest.raises(UsageError, match="received views=-1"):
        load_features(viewed, as_="arrays", views=-1)


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    publish_random(tmp_path / "random.h5", rows=3)
    for form in ("pandas", "arrow"):
        found: Any = load_features(tmp_path / "random.h5", as_=form, layer="maps")  # type: ignore[call-overload]
        assert str(found["path"][0]) == "a/0-\\xff.jpg"


@pytest.mark.slow
def test_dataset_yields_every_image_once_per_epoch(cache: Path) -> None:
    table = load_features(cache)
    expected = {row.tobytes(): label for row, label in zip(
        table.features("maps"), table.columns.labels.tolist(), strict=True)}  # fmt: skip
    plain = load_features(cache, as_="dataset", layer="maps", batch_size=40)
    assert plain.cardinality().numpy() == 4
    features = np.concatenate([batch.numpy() for batch, _ in plain])
    np.testing.assert_array_equal(features, table.features("maps"))
    mixed = load_features(cache, as_="dataset", layer="maps", shuffle=True, seed=1)
    epochs = []
    for _ in range(2):
        seen = {}
        for batch, labels in mixed:
            assert batch.shape[0] <= 32
            seen |= {row.tobytes(): label for row, label in zip(
                batch.numpy(), labels.numpy().tolist(), strict=True)}  # fmt: skip
        assert seen == expected
        epochs.append(list(seen))
    assert epochs[0] != epochs[1] != list(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"as_": "xlsx"}, "as_ is one of table, arrays, dataset, pandas, arrow; received 'xlsx'"),
        ({"as_": "arrays"}, "contains the layers maps, maps:avg; received layer=None"),
        ({"as_": "arrays", "layer": "map"}, "received layer='map'"),
        ({"as_": "arrays", "layer": "maps", "split": "val"}, "split is one of train, validation"),
        ({"split": "train"}, "a table contains every layer, split and view"),
    ],
)
def test_invalid_options_are_refused(cache: Path, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_features(cache, **options)


def test_split_without_images_is_an_error(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "synthetic.h5", labels=[0, 1])
    with pytest.raises(NoInputError, match="has no test images"):
        load_features(cache, as_="arrays", split="test")


def test_missing_package_names_the_command_that_installs_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnreachableError, match=r"needs pyarrow.*pip install -e '.\[notebook\]'"):
        load_features(cache, as_="arrow", layer="maps")


@pytest.mark.parametrize("count", [1, 64, 1000, 10_000])
def test_shuffled_blocks_have_every_row_once_and_all_classes_of_sorted_rows(count: int) -> None:
    labels = np.sort(np.arange(count) % 4)
    blocks = list(shuffled_blocks(count, 10, 16, np.random.default_rng(0)))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(count))
    assert len(blocks) == math.ceil(count / 160)
    for block in blocks:
        assert len(block) <= 160
        counts = np.bincount(labels[block], minlength=4)
        assert np.ptp(counts) <= 20 or count < 1000  # two chunks
    other = next(shuffled_blocks(count, 10, 16, np.random.default_rng(1)))
    assert count == 1 or other.tolist() != blocks[0].tolist()
