"""Load cached features as NumPy arrays, a tf.data.Dataset, a data frame or an Arrow table."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable, read_table, rows_per_chunk
from pipeline.errors import NoInputError, UnreachableError, UsageError
from pipeline.images.scan import SPLIT_NAMES
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION, UNLABELLED, check_seed
from pipeline.text import printable

FORMS = ("table", "arrays", "dataset", "pandas", "arrow")
SHUFFLED_CHUNKS = 16  # mixed with one another: 1,024 rows, 32 MiB at (4, 4, 512) float32

Rows = npt.NDArray[np.int64]
Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]  # features and labels


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
    as_ : the form of the result:

        - ``table``: a `FeatureTable`, which reads features on request;
        - ``arrays``: features (N, *shape of a row) float32 and labels: (N,) int64, indices into the
          table's ``classes``; of a multi-label set 0 or 1 (N, classes), of a regression the numbers
          (N,), both float64; without labels zeros;
        - ``dataset``: a ``tf.data.Dataset`` of batches of both, read from the file on the fly;
        - ``pandas``: a data frame with one row per image: path, label (the class name, names with
          ``|`` between them, or the number), split, group if there are any, and a column for each
          feature, maps flattened;
        - ``arrow``: a ``pyarrow.Table`` of path, label, split and features, each row a tensor.
    layer : layer key; may be None if the cache contains only one.
    split : ``train``, ``validation`` or ``test``, if the set has such folders; None for all.
    views : number of augmented views of each image to add. By default each row is one image, so
        that a split of the rows never separates views of an image. With views, the rows of an
        image share its path, and ``pandas`` and ``arrow`` have a column view, 0 for the image.
    shuffle : shuffle the dataset again in every epoch: 1,024 images at a time, from 16 random
        chunks of the file.

    Raises NoInputError if the file does not exist or the split is empty, BadDataError if the file
    is not a cache, UsageError for an invalid option, UnreachableError if a package is missing.

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
            raise UsageError("a table contains every layer, split and view; use another as_")
        return table
    key, rows = _select_layer(table, layer), _select_rows(table, split, views)
    if as_ == "arrays":
        return table.features(key, rows), _labels(table)[rows]
    if as_ == "dataset":
        check_seed(seed, "seed")
        random = np.random.default_rng(seed) if shuffle else None
        return _to_dataset(table, key, rows, batch_size, random)
    if as_ == "pandas":
        return _to_pandas(table, key, rows, with_views=views > 0)
    return _to_arrow(table, key, rows, with_views=views > 0)


def _select_layer(table: FeatureTable, name: str | None) -> str:
    if name is None and len(table.layers) == 1:
        return next(iter(table.layers))
    if name in table.layers:
        return str(name)
    layers = ", ".join(map(printable, table.layers))
    place = printable(table.path)
    raise UsageError(f"{place} contains the layers {layers}; received layer={name!r}")


def _select_rows(table: FeatureTable, split: str | None, views: int) -> Rows:
    if split is not None and split not in SPLIT_NAMES[1:]:
        raise UsageError(f"split is one of {', '.join(SPLIT_NAMES[1:])}; received {split!r}")
    columns = table.columns
    selected = np.full(len(table), True)
    if split is not None:
        selected = columns.splits == SPLIT_NAMES.index(split)
        if not selected.any():
            raise NoInputError(
                f"{printable(table.path)} has no {split} images: its set has no such split"
            )
    cached = int(columns.views[selected].max(initial=0))
    if not 0 <= views <= cached:
        raise UsageError(
            f"{printable(table.path)} contains {cached} augmented views per image; received "
            f"views={views}"
        )
    return np.flatnonzero(selected & (columns.views <= views))


def _to_dataset(
    table: FeatureTable, layer: str, rows: Rows, batch_size: int, random: np.random.Generator | None
) -> Any:
    from pipeline.keras_backend import tf

    labels = _labels(table)
    if batch_size < 1:
        raise UsageError(f"batch_size is at least 1; received {batch_size}")
    return (
        tf.data.Dataset.from_generator(
            lambda: _read_blocks(table, layer, rows, random),
            output_signature=(
                tf.TensorSpec((None, *table.layers[layer]), tf.float32),
                tf.TensorSpec((None, *labels.shape[1:]), labels.dtype),
            ),
        )
        .rebatch(batch_size)
        .apply(tf.data.experimental.assert_cardinality(math.ceil(len(rows) / batch_size)))
        .prefetch(tf.data.AUTOTUNE)
    )


def _read_blocks(
    table: FeatureTable, layer: str, rows: Rows, random: np.random.Generator | None
) -> Iterator[Arrays]:
    """Yield all rows, some chunks of the file at a time, so that each chunk is read once."""
    size = rows_per_chunk(table.layers[layer], table.spec.dtype)
    labels = _labels(table)
    if random:
        blocks = shuffled_blocks(len(rows), size, SHUFFLED_CHUNKS, random)
    else:
        size *= SHUFFLED_CHUNKS
        starts = range(0, len(rows), size)
        blocks = (np.arange(start, min(start + size, len(rows))) for start in starts)
    for block in blocks:
        yield table.features(layer, rows[block]), labels[rows[block]]


def shuffled_blocks(
    count: int, chunk_rows: int, most_chunks: int, random: np.random.Generator
) -> Iterator[Rows]:
    """Yield the numbers of ``count`` rows in blocks (n,) of at most so many chunks, each shuffled.

    Neighbors in a file are similar, often of one class: each block gets one of as many neighboring
    chunks as there are blocks, so that the blocks have the same classes.
    """
    chunks = np.arange(math.ceil(count / chunk_rows))
    block_count = max(1, math.ceil(len(chunks) / most_chunks))
    missing = -len(chunks) % block_count
    groups = np.pad(chunks, (0, missing), constant_values=-1).reshape(-1, block_count)
    for block in random.permuted(groups, axis=1).T:
        rows = (chunk_rows * block[block >= 0, None] + np.arange(chunk_rows)).ravel()
        yield random.permutation(rows[rows < count])


def _to_pandas(table: FeatureTable, layer: str, rows: Rows, *, with_views: bool) -> Any:
    import pandas

    features = table.features(layer, rows).reshape(len(rows), -1)
    columns = table.columns
    label = _label_texts(table, rows)
    if table.task == CLASSES:
        label = pandas.Categorical.from_codes(columns.labels[rows], list(table.classes))
    frame = pandas.DataFrame(
        {
            "path": _path_texts(columns.paths[rows]),
            **({} if table.task == UNLABELLED else {"label": label}),
            "split": pandas.Categorical.from_codes(columns.splits[rows], list(SPLIT_NAMES)),
        }
    )
    if columns.groups.any():
        frame["group"] = _path_texts(columns.groups[rows])
    if with_views:
        frame["view"] = columns.views[rows]
    names = [f"{layer}_{number}" for number in range(features.shape[1])]
    return pandas.concat([frame, pandas.DataFrame(features, columns=names)], axis="columns")


def _to_arrow(table: FeatureTable, layer: str, rows: Rows, *, with_views: bool) -> Any:
    try:
        import pyarrow as arrow
    except ImportError as error:
        raise UnreachableError(
            "an Arrow table needs pyarrow, which is not installed: pip install -e '.[notebook]'"
        ) from error
    columns = table.columns
    label = _label_texts(table, rows)
    if table.task == CLASSES:
        codes = columns.labels[rows].astype(np.int32)
        label = arrow.DictionaryArray.from_arrays(codes, list(table.classes))
    return arrow.table(
        {
            "path": arrow.array(_path_texts(columns.paths[rows]), arrow.string()),
            **({} if table.task == UNLABELLED else {"label": label}),
            "split": arrow.DictionaryArray.from_arrays(
                columns.splits[rows].astype(np.int32), list(SPLIT_NAMES)
            ),
            **({"group": _path_texts(columns.groups[rows])} if columns.groups.any() else {}),
            **({"view": arrow.array(columns.views[rows])} if with_views else {}),
            "features": arrow.FixedShapeTensorArray.from_numpy_ndarray(table.features(layer, rows)),
        }
    )


def _labels(table: FeatureTable) -> npt.NDArray[Any]:
    """Return labels (N,), or targets: (N, T) of a multi-label set, (N,) of a regression."""
    columns = table.columns
    if table.task == REGRESSION:
        return columns.targets[:, 0]
    return columns.targets if table.task == MULTILABEL else columns.labels


def _label_texts(table: FeatureTable, rows: Rows) -> Any:
    """Return ``sun|sea`` for each row of a multi-label set; the numbers of a regression."""
    if table.task == REGRESSION:
        return table.columns.targets[rows, 0]
    names = np.array(table.classes, object)
    return ["|".join(names[row > 0]) for row in table.columns.targets[rows]]


def _path_texts(paths: npt.NDArray[np.bytes_]) -> list[str]:
    """Return paths as text, with bytes that are not UTF-8 escaped."""
    return [path.decode("utf-8", "backslashreplace") for path in paths.tolist()]
