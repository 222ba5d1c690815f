"""How much room features will take on the disk, said before hours are spent on them."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.chunks import pack
from pipeline.errors import StorageError
from pipeline.text import counted, file_size, printable

WORTH_SAYING = 50 * 10**6  # bytes
COPIES = 2  # the shards, and beside them the file that is made from them

log = logging.getLogger(__name__)


def check_room(cache: Path, sample: Mapping[str, npt.NDArray[Any]], rows: int, dtype: str) -> None:
    """Say about how large the features will be, judged by the first ones, where that is much.

    Parameters
    ----------
    cache : the file that they will stand in.
    sample : layer key -> features of some rows, (n, *shape of a row).
    rows : how many there will be.

    Raises StorageError if they cannot fit.
    """
    size = 0
    for features in sample.values():
        with np.errstate(over="ignore"):  # what float16 cannot hold is told elsewhere
            stored = np.ascontiguousarray(features, dtype)
        size += len(pack(stored) or stored.tobytes()) * rows // len(features)
    folder = cache.parent
    free = shutil.disk_usage(folder).free
    needed = COPIES * size
    if cache.exists():  # it stays until the new one is there
        needed += cache.stat().st_size
    if size > WORTH_SAYING:
        log.info(
            "%s of %s: about %s on the disk, %s while it is written; %s free", counted(rows, "row"),
            printable(", ".join(sample)), file_size(size), file_size(needed),
            file_size(free),
        )  # fmt: skip
    if needed > free:
        raise StorageError(
            f"{printable(folder)} has too little room: {file_size(needed)} needed, "
            f"{file_size(free)} free; make room, or take fewer --views, --pooling avg or "
            f"--dtype float16"
        )
