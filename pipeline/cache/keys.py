"""What a row is called in the cache."""

from typing import NamedTuple

import numpy as np

DIGEST_DTYPE = np.dtype("V32")  # opaque: a fixed-width string would lose trailing zero bytes


class RowKey(NamedTuple):
    """What names a row within a layer: the image's content and the view of it."""

    digest: bytes  # SHA-256 of the image file
    view: int = 0  # 0 is the image as it is
