"""Checks that refuse files that only look like caches, before their data is read.

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

MAX_CHUNK_BYTES = 2**28  # 256 MiB; valid ones are 8 MiB, or one row if that is larger
MAX_ROWS = 2**31
MAX_TEXT_BYTES = 2**24
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
COLUMN_DTYPES = {"labels": "<i8", "splits": "|u1", "digests": "|V32", "views": "<i2", "paths": "S"}


class InvalidCacheError(Exception):
    """A file does not have the layout of a cache; the message says where."""


def check_layout(file: h5py.File) -> None:
    """Check a file's structure, not its values; raises InvalidCacheError."""
    lengths = set()
    for name, kind in COLUMN_DTYPES.items():
        column = _dataset(file, name)
        is_valid = column.dtype.kind == "S" if kind == "S" else column.dtype == np.dtype(kind)
        if column.ndim != 1 or not is_valid:
            raise InvalidCacheError(
                f"its {name} have the type {column.dtype}, shape {column.shape}"
            )
        if column.chunks or column.id.get_storage_size() != column.size * column.dtype.itemsize:
            raise InvalidCacheError(f"its {name} are not stored completely")
        lengths.add(len(column))
    for name, dimensions in (("spec", 0), ("classes", 1)):
        text = _dataset(file, name)
        if text.ndim != dimensions or h5py.check_string_dtype(text.dtype) is None:
            raise InvalidCacheError(f"its {name} is not text")
        if text.nbytes > MAX_TEXT_BYTES or text.chunks:
            raise InvalidCacheError(f"its {name} declares {text.nbytes:,} bytes")
    features = _resolve(file, "features")
    if not isinstance(features, h5py.Group) or not len(features):
        raise InvalidCacheError("it contains no features")
    for layer in features:
        rows = _dataset(file, f"features/{layer}")
        name = rows.name
        if rows.dtype not in ("<f4", "<f2") or rows.ndim < 2:
            raise InvalidCacheError(f"its {name} have the type {rows.dtype}, shape {rows.shape}")
        if not rows.chunks or rows.chunks[1:] != rows.shape[1:]:
            raise InvalidCacheError(f"its {name} are not stored in chunks of whole rows")
        plist = rows.id.get_create_plist()
        filters = {plist.get_filter(number)[0] for number in range(plist.get_nfilters())}
        if not filters <= FILTERS:
            raise InvalidCacheError(f"its {name} need filters other than gzip and fletcher32")
        stored = rows.id.get_storage_size()
        if math.prod(rows.chunks) * rows.dtype.itemsize > MAX_CHUNK_BYTES:
            raise InvalidCacheError(
                f"its {name} have chunks of more than {MAX_CHUNK_BYTES:,} bytes"
            )
        if rows.nbytes > stored * GZIP_LIMIT:
            raise InvalidCacheError(
                f"its {name} declare {rows.nbytes:,} bytes; {stored:,} are stored"
            )
        if rows.id.get_num_chunks() != math.ceil(len(rows) / rows.chunks[0]):
            raise InvalidCacheError(f"its {name} have chunks that were never written")
        lengths.add(len(rows))
    if len(lengths) != 1 or max(lengths) > MAX_ROWS:
        raise InvalidCacheError(f"its datasets have different numbers of rows: {sorted(lengths)}")


def check_values(columns: Mapping[str, npt.NDArray[Any]], class_count: int) -> None:
    """Check the values of the columns; raises InvalidCacheError."""
    labels, splits, views = columns["labels"], columns["splits"], columns["views"]
    if labels.size and not (labels.min() >= -1 and labels.max() < class_count):
        raise InvalidCacheError("its labels name missing classes")
    if splits.max(initial=0) > 3 or views.min(initial=0) < 0:
        raise InvalidCacheError("its splits or views are out of range")
    for path in columns["paths"]:
        if path.startswith(b"/") or b".." in path.split(b"/") or not path:
            raise InvalidCacheError(f"its path {bytes(path)!r} leaves the image folder")


def _resolve(file: h5py.File, name: str) -> object:
    """Return the object of a name; raises InvalidCacheError for a link."""
    node: object = file
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            raise InvalidCacheError(f"it has no {name}")
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise InvalidCacheError(f"its {name} is a link")
        node = node[part]
    return node


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    dataset = _resolve(file, name)
    if not isinstance(dataset, h5py.Dataset):
        raise InvalidCacheError(f"its {name} is not a dataset")
    if dataset.is_virtual or dataset.external:
        raise InvalidCacheError(f"its {name} are in other files")
    return dataset
