"""Rows of a cache: what names them, what is stored of them, where their features are."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

DIGEST_DTYPE = np.dtype("V32")  # opaque: a fixed-width string would lose trailing zero bytes


class RowKey(NamedTuple):
    """What names a row within a layer: the image's content and the view of it."""

    digest: bytes  # SHA-256 of the image file
    view: int = 0  # 0 is the image as it is


class Row(NamedTuple):
    """A row of the cache file, without its features."""

    key: RowKey
    path: bytes  # relative to the image root
    label: int
    split: int


class Source(NamedTuple):
    """Where a row's features are: a file and the row in it."""

    path: Path
    row: int
