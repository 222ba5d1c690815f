"""The rows that a network is trained on: arrays on the disk, read in the order of a seed."""

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

BLOCK_BYTES = 2**25  # 32 MiB: some hundred maps, so that a chunk of the cache is read once or twice
ORDER = 1  # the random stream of the order; others draw weights

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Inputs (N, …) float32, which may lie on the disk, and their labels (N,) in 0 … K - 1."""

    inputs: Array
    labels: Indices

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Indices, epoch: int) -> Array:
        """Inputs (B, …), the same in each epoch; a subclass may augment them anew."""
        return np.asarray(self.inputs[rows])

    def batches(
        self, order: Indices, *, size: int, epoch: int = 0
    ) -> Generator[tuple[Array, Indices]]:
        """Yield inputs (B, …) and labels (B,) in the given order; the next batch is read ahead."""
        cut = (order[start : start + size] for start in range(0, len(order), size))
        batches = prefetch(lambda rows: self.read(rows, epoch), cut)
        with contextlib.closing(batches):
            for rows, inputs in batches:
                yield inputs, self.labels[rows]


def row_order(count: int, *, seed: int, epoch: int) -> Indices:
    """The order of the rows in an epoch, from 0: (count,)."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(count)


@contextlib.contextmanager
def scratch_array(
    blocks: Iterable[Array], *, shape: Sequence[int], dtype: str, folder: Path
) -> Iterator[Array]:
    """Put rows on the disk, uncompressed, where a shuffled batch is read in milliseconds.

    The blocks (n, …) have together at most the N rows of ``shape``. Their file has no name: it is
    gone with the process, however that ends.

    Yields the array, read-only, of as many rows as there were. Raises StorageError without room.
    """
    needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(folder).free
    log.info("training data takes %s of the disk while it runs", file_size(needed))
    if needed > free:
        raise StorageError(
            f"no space left for training data in {printable(folder)}: {file_size(needed)} needed, "
            f"{file_size(free)} free; make room and run again"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        rows = 0
        # written, not mapped: a mapped file on a full disk dies of SIGBUS
        with storage_errors(folder / "training data", needs=needed):
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype).data)
                rows += len(block)
            file.flush()
        whole = (rows, *shape[1:])
        yield np.memmap(file, dtype, "r", shape=whole) if rows else np.empty(whole, dtype)


def scratch_maps(
    read: Callable[[Indices], Array], rows: Indices, *, row_shape: Sequence[int], folder: Path
) -> contextlib.AbstractContextManager[Array]:
    """Cached maps of rows, float32, as a `scratch_array`; ascending rows are read fastest."""
    size = max(1, BLOCK_BYTES // (4 * math.prod(row_shape)))
    blocks = (read(rows[start : start + size]) for start in range(0, len(rows), size))
    return scratch_array(blocks, shape=(len(rows), *row_shape), dtype="float32", folder=folder)
