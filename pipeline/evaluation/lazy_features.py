"""`LazyFeatures`: features that are read in blocks, from memory or from a temporary file.

A cache is compressed and contains whole maps: 150 MB of it are read in a second. A fit that reads
all rows fifty times reads a temporary file of the rows instead, at 4 GB per second.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StorageError
from pipeline.text import file_size, printable

BLOCK_BYTES = 1 << 20  # a block that a fit reads: it stays in the L2 cache of a core

Features = npt.NDArray[np.float32]  # (N, D)
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LazyFeatures:
    """Features (N, D) float32; ``features[rows]`` reads a slice or numbers of rows.

    Attributes
    ----------
    source : (R, D) in memory, or the path of a file of them, which is deleted with the last of
        these objects in the process that wrote it; other processes read it.
    rows : (N,) numbers of rows of the source.
    """

    source: Features | Path
    size: tuple[int, int]
    rows: Rows
    _holder: Any = None

    @classmethod
    def of(cls, features: Features) -> "LazyFeatures":
        return cls(features, features.shape, np.arange(len(features)))

    @classmethod
    def write(
        cls, blocks: Iterable[tuple[Rows, Features]], size: tuple[int, int]
    ) -> "LazyFeatures":
        """Write blocks to a temporary file: numbers of rows (n,) and their features (n, D)."""
        needed, parent = max(1, 4 * size[0] * size[1]), Path(tempfile.gettempdir())

        def no_space() -> StorageError:
            free = shutil.disk_usage(parent).free
            return StorageError(
                f"{printable(parent)}: a temporary file of features that memory cannot hold needs "
                f"{file_size(needed)}, {file_size(free)} are free: name another folder in the "
                f"variable TMPDIR, or raise --memory"
            )

        if shutil.disk_usage(parent).free < needed:
            raise no_space()
        holder: Any
        if sys.platform == "linux":
            # without a name: it is gone with this process, even if that is killed
            holder = tempfile.TemporaryFile()  # noqa: SIM115 - the object closes it
            path = Path(f"/proc/{os.getpid()}/fd/{holder.fileno()}")
            try:
                # a mapped write to a part that the disk cannot hold ends the process: SIGBUS
                os.posix_fallocate(holder.fileno(), 0, needed)
            except OSError as error:
                raise no_space() from error
        else:
            holder = tempfile.TemporaryDirectory(prefix="features-", ignore_cleanup_errors=True)
            path = Path(holder.name) / "features.f32"
            with path.open("wb") as file:
                file.truncate(needed)
        for rows, features in blocks:
            np.memmap(path, np.float32, "r+", shape=size)[rows] = features
        return cls(path, size, np.arange(size[0]), holder)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.size[1]

    @property
    def is_stored(self) -> bool:
        return isinstance(self.source, Path)

    def take(self, rows: Rows) -> "LazyFeatures":
        """Return these rows, unread."""
        return replace(self, rows=self.rows[rows])

    def __getitem__(self, rows: Any) -> Features:
        chosen = self.rows[rows]
        if isinstance(self.source, Path):
            # mapped for this read only: pages of the file do not stay in this process's memory
            file = np.memmap(self.source, np.float32, "r", shape=self.size)
            return np.array(file[chosen])
        if len(chosen) and np.array_equal(chosen, np.arange(chosen[0], chosen[0] + len(chosen))):
            return self.source[chosen[0] : chosen[0] + len(chosen)]  # without a copy
        return np.asarray(self.source[chosen])

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        features = self[:]
        is_view = not self.is_stored and np.may_share_memory(features, self.source)
        return np.array(features, dtype, copy=True if copy and is_view else None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_holder": None}
