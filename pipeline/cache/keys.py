"""What a row, a layer and a file are called in the cache."""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from pipeline.errors import BadDataError
from pipeline.spec import FeatureSpec

DIGEST_DTYPE = np.dtype("V32")  # opaque: a fixed-width string would lose trailing zero bytes


class RowKey(NamedTuple):
    """What names a row within a layer: the image's content and the view of it."""

    digest: bytes  # SHA-256 of the image file
    view: int = 0  # 0 is the image as it is


def cache_file(folder: Path, *, set_name: str, root: Path, spec: FeatureSpec) -> Path:
    """Where the features of a set belong: ``<set>-<base>-<fingerprint>.h5``.

    Two folders of one name never share a file: while the folder that a file was made from still
    exists elsewhere, the other one's file carries six digits of its own path's digest.
    """
    name = re.sub(r"[^\w.-]+", "_", set_name).strip(".-") or "set"
    plain = folder / f"{name}-{spec.base}-{spec.fingerprint}.h5"
    recorded = _recorded_root(plain)
    if recorded is None or recorded == root or not recorded.is_dir():
        return plain
    digits = hashlib.sha256(bytes(root)).hexdigest()[:6]
    return folder / f"{name}~{digits}-{spec.base}-{spec.fingerprint}.h5"


def _recorded_root(path: Path) -> Path | None:
    """The image folder that a cache file was made from; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            return Path(json.loads(file["spec"].asstr()[()])["root"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadDataError(
            f"{path} stands where this set's features belong but is no feature cache; "
            f"move it away or give --out"
        ) from error
