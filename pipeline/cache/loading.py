"""Cached features as others take them: NumPy arrays, a tf.data.Dataset, pandas, Arrow."""

import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import SPLIT_NAMES, FeatureTable, read_table, rows_per_chunk
from pipeline.errors import NoInputError, UnreachableError, UsageError
from pipeline.spec import check_seed
from pipeline.text import printable

FORMS = ("table", "arrays", "dataset", "pandas", "arrow")
MIXED_CHUNKS = 16  # shuffled together: 1,024 rows, 32 MiB at (4, 4, 512) float32

Rows = npt.NDArray[np.int64]
Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def load_features(
    path: str | os.PathLike[str],
    *,
    as_: str = "table",
    layer: str | None = None,
    split: str | None = None,
    views: int = 0,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int = 0,
) -> Any:
    """Open a cache of features.

    Parameters
    ----------
    as_ : what to return:

        - ``table``: a `FeatureTable`, which reads features when it is asked for them;
        - ``arrays``: features (N, *shape of a row) float32 and labels (N,) int64, numbers of the
          table's ``classes``;
        - ``dataset``: a ``tf.data.Dataset`` of batches of both, read from the file as it goes;
        - ``pandas``: a data frame, one row an image: path, label (the class name), split, and a
          column for each feature, maps flattened;
        - ``arrow``: a ``pyarrow.Table`` of path, label, split and features, each a tensor.
    layer : layer key; None where the cache holds only one.
    split : ``train``, ``validation`` or ``test``, where the set has such folders; None for all.
    views : how many augmented views of each image to add, where the cache has them. By default
        none: a row is an image, and whoever divides rows parts no views. With some, rows of an
        image share its path, and ``pandas`` and ``arrow`` have a column view, 0 for the image.
    shuffle : mix the dataset's images anew in every epoch: 1,024 at a time, from 16 random places.

    Raises NoInputError if there is no such file or nothing in that split, BadDataError if it is
    not one of ours, UsageError for an unknown layer, UnreachableError if a package is missing.

    Examples
    --------
    >>> from pipeline import extract_features, load_features
    >>> path = extract_features("photos", base="pixels", pooling="avg").table.path
    >>> load_features(path).classes
    ('plain', 'striped')
    >>> features, labels = load_features(path, as_="arrays", split="train")
    >>> features.shape, labels.shape
    ((24, 3), (24,))
    >>> load_features(path, as_="pandas").shape  # path, label, split and three features
    (72, 6)
    >>> load_features(path, as_="arrow").column_names
    ['path', 'label', 'split', 'features']
    """
    if as_ not in FORMS:
        raise UsageError(f"as_ is one of {', '.join(FORMS)}; received {as_!r}")
    table = read_table(Path(path))
    if as_ == "table":
        if layer is not None or split is not None or views:
            raise UsageError("a table holds every layer, split and view; choose with another as_")
        return table
    key, rows = _layer(table, layer), _rows(table, split, views)
    if as_ == "arrays":
        return table.features(key, rows), table.columns.labels[rows]
    if as_ == "dataset":
        check_seed(seed, "seed")
        random = np.random.default_rng(seed) if shuffle else None
        return _dataset(table, key, rows, batch_size, random)
    if as_ == "pandas":
        return _pandas(table, key, rows, with_views=views > 0)
    return _arrow(table, key, rows, with_views=views > 0)


def _layer(table: FeatureTable, name: str | None) -> str:
    if name is None and len(table.layers) == 1:
        return next(iter(table.layers))
    if name in table.layers:
        return str(name)
    held = ", ".join(map(printable, table.layers))
    raise UsageError(f"{printable(table.path)} holds the layers {held}; received layer={name!r}")


def _rows(table: FeatureTable, split: str | None, views: int) -> Rows:
    if split is not None and split not in SPLIT_NAMES[1:]:
        raise UsageError(f"split is one of {', '.join(SPLIT_NAMES[1:])}; received {split!r}")
    columns = table.columns
    chosen = np.full(len(table), True)
    if split is not None:
        chosen = columns.splits == SPLIT_NAMES.index(split)
        if not chosen.any():
            raise NoInputError(
                f"{printable(table.path)} has no {split} images: its set has no such folder"
            )
    cached = int(columns.views[chosen].max(initial=0))
    if not 0 <= views <= cached:
        raise UsageError(
            f"{printable(table.path)} holds {cached} augmented views of an image; received "
            f"views={views}"
        )
    return np.flatnonzero(chosen & (columns.views <= views))


def _dataset(
    table: FeatureTable, layer: str, rows: Rows, batch_size: int, random: np.random.Generator | None
) -> Any:
    from pipeline.keras_backend import tf

    if batch_size < 1:
        raise UsageError(f"batch_size is at least 1; received {batch_size}")
    return (
        tf.data.Dataset.from_generator(
            lambda: _blocks(table, layer, rows, random),
            output_signature=(
                tf.TensorSpec((None, *table.layers[layer]), tf.float32),
                tf.TensorSpec((None,), tf.int64),
            ),
        )
        .rebatch(batch_size)
        .apply(tf.data.experimental.assert_cardinality(math.ceil(len(rows) / batch_size)))
        .prefetch(tf.data.AUTOTUNE)
    )


def _blocks(
    table: FeatureTable, layer: str, rows: Rows, random: np.random.Generator | None
) -> Iterator[Arrays]:
    """All rows, some chunks of the file at a time, so that each chunk is read once."""
    size = rows_per_chunk(table.layers[layer], table.spec.dtype)
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    if random:
        random.shuffle(chunks)
    for start in range(0, len(chunks), MIXED_CHUNKS):
        block = np.concatenate(chunks[start : start + MIXED_CHUNKS])
        if random:
            random.shuffle(block)
        yield table.features(layer, block), table.columns.labels[block]


def _pandas(table: FeatureTable, layer: str, rows: Rows, *, with_views: bool) -> Any:
    pandas = _package("pandas", "a data frame")
    features = table.features(layer, rows).reshape(len(rows), -1)
    columns = table.columns
    about = pandas.DataFrame(
        {
            "path": _paths(table, rows),
            "label": pandas.Categorical.from_codes(columns.labels[rows], list(table.classes)),
            "split": pandas.Categorical.from_codes(columns.splits[rows], list(SPLIT_NAMES)),
        }
    )
    if with_views:
        about["view"] = columns.views[rows]
    names = [f"{layer}_{number}" for number in range(features.shape[1])]
    return pandas.concat([about, pandas.DataFrame(features, columns=names)], axis="columns")


def _arrow(table: FeatureTable, layer: str, rows: Rows, *, with_views: bool) -> Any:
    arrow = _package("pyarrow", "an Arrow table")
    columns = table.columns
    return arrow.table(
        {
            "path": arrow.array(_paths(table, rows), arrow.string()),
            "label": arrow.DictionaryArray.from_arrays(
                columns.labels[rows].astype(np.int32), list(table.classes)
            ),
            "split": arrow.DictionaryArray.from_arrays(
                columns.splits[rows].astype(np.int32), list(SPLIT_NAMES)
            ),
            **({"view": arrow.array(columns.views[rows])} if with_views else {}),
            "features": arrow.FixedShapeTensorArray.from_numpy_ndarray(table.features(layer, rows)),
        }
    )


def _paths(table: FeatureTable, rows: Rows) -> list[str]:
    """Relative paths as text that any column takes, whatever bytes a name has."""
    paths: list[bytes] = table.columns.paths[rows].tolist()
    return [path.decode("utf-8", "backslashreplace") for path in paths]


def _package(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnreachableError(
            f"{what} needs {name}, which is not installed: pip install -e '.[notebook]'"
        ) from error
