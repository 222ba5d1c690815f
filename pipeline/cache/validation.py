"""Refuse files that only look like caches, before their data is read.

An untrusted HDF5 file can link to other files, declare gigabytes that it does not contain, or leave
chunks unwritten, which read as zeros. Files of `pipeline.cache.publish` do none of this.
"""

import math
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.bases.weights import GZIP_LIMIT
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION, TASKS

MAX_CHUNK_BYTES = 2**28  # 256 MiB; valid ones are 8 MiB, or one row if that is larger
MAX_ROWS = 2**31
MAX_TEXT_BYTES = 2**24
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
COLUMN_DTYPES = {"labels": "<i8", "splits": "|u1", "digests": "|V32", "views": "<i2", "paths": "S"}
OPTIONAL_COLUMNS = {"targets": "<f8", "groups": "S"}


class InvalidCacheError(Exception):
    """A file does not have the layout of a cache; the message says where."""


def check_layout(file: h5py.File) -> None:
    """Check a file's structure, not its values; raises InvalidCacheError."""
    lengths = set()
    optional = {name: dtype for name, dtype in OPTIONAL_COLUMNS.items() if name in file}
    for name, dtype in (COLUMN_DTYPES | optional).items():
        column = _dataset(file, name)
        is_valid = column.dtype.kind == "S" if dtype == "S" else column.dtype == np.dtype(dtype)
        type_and_shape = f"have the type {column.dtype}, shape {column.shape}"
        dimensions = 2 if name == "targets" else 1
        _require(column.ndim == dimensions and is_valid, f"its {name} {type_and_shape}")
        size = column.size * column.dtype.itemsize
        is_stored = not column.chunks and column.id.get_storage_size() == size
        _require(is_stored, f"its {name} are not stored completely")
        lengths.add(len(column))
    for name, dimensions in (("spec", 0), ("classes", 1)):
        text = _dataset(file, name)
        is_text = text.ndim == dimensions and h5py.check_string_dtype(text.dtype) is not None
        _require(is_text, f"its {name} is not text")
        fits = text.nbytes <= MAX_TEXT_BYTES and not text.chunks
        _require(fits, f"its {name} declares {text.nbytes:,} bytes")
    features = _resolve(file, "features")
    if not isinstance(features, h5py.Group) or not len(features):
        raise InvalidCacheError("it contains no features")
    for layer in features:
        _check_features(_dataset(file, f"features/{layer}"))
        lengths.add(len(features[layer]))
    are_equal = len(lengths) == 1 and max(lengths) <= MAX_ROWS
    _require(are_equal, f"its datasets have different numbers of rows: {sorted(lengths)}")


def _check_features(rows: h5py.Dataset) -> None:
    name = rows.name
    is_valid = rows.dtype in ("<f4", "<f2") and rows.ndim >= 2
    _require(is_valid, f"its {name} have the type {rows.dtype}, shape {rows.shape}")
    has_whole_rows = bool(rows.chunks) and rows.chunks[1:] == rows.shape[1:]
    _require(has_whole_rows, f"its {name} are not stored in chunks of whole rows")
    plist = rows.id.get_create_plist()
    filters = {plist.get_filter(number)[0] for number in range(plist.get_nfilters())}
    _require(filters <= FILTERS, f"its {name} need filters other than gzip and fletcher32")
    fits = math.prod(rows.chunks) * rows.dtype.itemsize <= MAX_CHUNK_BYTES
    _require(fits, f"its {name} have chunks of more than {MAX_CHUNK_BYTES:,} bytes")
    stored = rows.id.get_storage_size()
    is_stored = rows.nbytes <= stored * GZIP_LIMIT
    _require(is_stored, f"its {name} declare {rows.nbytes:,} bytes; {stored:,} are stored")
    is_written = rows.id.get_num_chunks() == math.ceil(len(rows) / rows.chunks[0])
    _require(is_written, f"its {name} have chunks that were never written")


def check_values(columns: Mapping[str, npt.NDArray[Any]], class_count: int, task: str) -> None:
    """Check the values of the columns; raises InvalidCacheError."""
    labels, splits, views = columns["labels"], columns["splits"], columns["views"]
    _require(task in TASKS, f"its task is {task!r}; expected one of {', '.join(TASKS)}")
    highest = class_count - 1 if task == CLASSES else 0
    in_range = not labels.size or (labels.min() >= -1 and labels.max() <= highest)
    _require(in_range, "its labels name missing classes")
    targets = columns["targets"]
    width = class_count if task in (MULTILABEL, REGRESSION) else 0
    _require(targets.shape[1] == width, f"its targets have {targets.shape[1]} columns, not {width}")
    present = targets[labels >= 0]
    are_valid = np.isin(present, (0, 1)) if task == MULTILABEL else np.isfinite(present)
    _require(are_valid.all(), "its targets are not 0 or 1, or not finite")
    in_range = splits.max(initial=0) <= 3 and views.min(initial=0) >= 0
    _require(in_range, "its splits or views are out of range")
    for path in columns["paths"].tolist():
        if not path or path[:1] == b"/" or (b".." in path and b".." in path.split(b"/")):
            raise InvalidCacheError(f"its path {path!r} leaves the image folder")


def _require(condition: object, message: str) -> None:
    if not condition:
        raise InvalidCacheError(message)


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset that is in the file itself."""
    dataset = _resolve(file, name)
    if not isinstance(dataset, h5py.Dataset):
        raise InvalidCacheError(f"its {name} is not a dataset")
    _require(not dataset.is_virtual and not dataset.external, f"its {name} are in other files")
    return dataset


def _resolve(file: h5py.File, name: str) -> object:
    """Return the object of a name; raises InvalidCacheError for a link."""
    node: object = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            raise InvalidCacheError(f"it has no {name}")
        is_hard = isinstance(node.get(part, getlink=True), h5py.HardLink)
        _require(is_hard, f"its {name} is a link")
        node = node[part]
    return node
