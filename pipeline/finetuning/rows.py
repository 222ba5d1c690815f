"""Training and validation rows: arrays on disk, read in an order that depends on the seed."""

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.durable import storage_errors
from pipeline.errors import StorageError
from pipeline.prefetch import prefetch
from pipeline.text import file_size, printable

BLOCK_BYTES = 2**25  # 32 MiB, about 100 maps: reads each chunk of the cache once or twice
ORDER = 1  # number of the random stream of the row order; other streams are for weights

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Inputs (N, …) float32, in memory or on disk, and labels (N,) in 0 … K - 1."""

    inputs: Array
    labels: Indices

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Indices, epoch: int) -> Array:
        """Return inputs (B, …), the same in each epoch; a subclass may augment them."""
        return np.asarray(self.inputs[rows])

    def batches(
        self, order: Indices, *, size: int, epoch: int = 0
    ) -> Generator[tuple[Array, Indices]]:
        """Yield inputs (B, …) and labels (B,) in this order; a thread prefetches the next batch."""
        parts = (order[start : start + size] for start in range(0, len(order), size))
        batches = prefetch(lambda rows: self.read(rows, epoch), parts)
        with contextlib.closing(batches):
            for rows, inputs in batches:
                yield inputs, self.labels[rows]


def row_order(count: int, *, seed: int, epoch: int) -> Indices:
    """Return the order of the rows in an epoch, which counts from 0: (count,)."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(count)


def check_disk_space(folder: Path, needed: int, *, cure: str) -> None:
    """Raise StorageError if a folder's disk has too few free bytes for the training data."""
    free = shutil.disk_usage(folder).free
    log.info("training needs %s of disk space, %s free", file_size(needed), file_size(free))
    if needed > free:
        raise StorageError(
            f"{printable(folder)}: training needs {file_size(needed)} of disk space; found "
            f"{file_size(free)}; {cure}"
        )


@contextlib.contextmanager
def scratch_array(
    blocks: Iterable[Array], *, shape: Sequence[int], dtype: str, folder: Path
) -> Iterator[Array]:
    """Write rows to disk, uncompressed, so that reading a shuffled batch takes milliseconds.

    The blocks (n, …) have at most N rows in total, the first dimension of ``shape``. The file has
    no name: it disappears with the process, even if that is killed.

    Yields a read-only array of the written rows. Raises StorageError without disk space.
    """
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    check_disk_space(folder, needed, cure="free disk space and run again")
    with tempfile.TemporaryFile(dir=folder) as file:
        rows = 0
        # not a writable mapping: on a full disk, SIGBUS would kill the process
        with storage_errors(folder / "training data", needs=needed):
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype).data)
                rows += len(block)
            file.flush()
        written = (rows, *shape[1:])
        yield np.memmap(file, dtype, "r", shape=written) if rows else np.empty(written, dtype)


def scratch_maps(
    read: Callable[[Indices], Array], rows: Indices, *, row_shape: Sequence[int], folder: Path
) -> contextlib.AbstractContextManager[Array]:
    """Return a `scratch_array` of cached maps, float32; ascending rows are read fastest."""
    size = max(1, BLOCK_BYTES // (4 * math.prod(row_shape)))
    blocks = (read(rows[start : start + size]) for start in range(0, len(rows), size))
    return scratch_array(blocks, shape=(len(rows), *row_shape), dtype="float32", folder=folder)
