"""The rows that a network is trained on: arrays on the disk, read in the order of a seed."""

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.ahead import in_order
from pipeline.durable import explained
from pipeline.errors import StorageError
from pipeline.images.reader import read_images
from pipeline.images.scan import Skipped
from pipeline.images.views import Augmentation, draw_view
from pipeline.text import file_size, printable

BLOCK_BYTES = 2**25  # 32 MiB: some hundred maps, so that a chunk of the cache is read once or twice
ORDER = 1  # the random stream of the order; others draw weights

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Draw = Callable[[Array, int, int], Array]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Inputs with their labels.

    Attributes
    ----------
    inputs : (N, …) feature maps, float32, or images (N, S, S, 3), uint8; may lie on the disk.
    labels : (N,) int64 in 0 … K - 1.
    draw : (input, row, epoch from 0) -> what the epoch sees of it; None for the input itself.
    places : (N,) where in ``inputs`` each row is, which may hold others, too; None: in order.
    """

    inputs: Array
    labels: Indices
    draw: Draw | None = None
    places: Indices | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Indices) -> Array:
        """Inputs as they are: (B, …)."""
        return np.asarray(self.inputs[rows if self.places is None else self.places[rows]])

    def batches(
        self, order: Indices, *, size: int, epoch: int = 0
    ) -> Generator[tuple[Array, Indices]]:
        """Yield inputs (B, …) and labels (B,) in the given order; the next batch is read ahead."""
        starts = range(0, len(order), size)
        batches = in_order(lambda start: self._batch(order[start : start + size], epoch), starts)
        with contextlib.closing(batches):
            for _, batch in batches:
                yield batch

    def _batch(self, rows: Indices, epoch: int) -> tuple[Array, Indices]:
        inputs = self.read(rows)
        if self.draw:
            drawn = [
                self.draw(each, int(row), epoch) for each, row in zip(inputs, rows, strict=True)
            ]
            inputs = np.stack(drawn)
        return inputs, self.labels[rows]


def row_order(count: int, *, seed: int, epoch: int) -> Indices:
    """The order of the rows in an epoch, from 0: (count,)."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(count)


def new_views(digests: Sequence[bytes], augmentation: Augmentation) -> Draw:
    """Views on the fly: of each image the first epoch sees view 1, the second view 2, and so on."""

    def draw(pixels: Array, row: int, epoch: int) -> Array:
        return draw_view(
            pixels, augmentation=augmentation, image_digest=digests[row], view=epoch + 1
        )

    return draw


@contextlib.contextmanager
def scratch_array(
    blocks: Iterable[Array], *, shape: Sequence[int], dtype: str, folder: Path
) -> Iterator[Array]:
    """Put rows on the disk, uncompressed, where a shuffled batch is read in milliseconds.

    Parameters
    ----------
    blocks : (n, …) each, together no more rows than ``shape`` says; read one by one.
    shape : of the whole (N, …), to check that there is room.
    folder : for a file without a name, which is gone with the process, however that ends.

    Yields the array, read-only, of as many rows as there were. Raises StorageError if there is no
    room.
    """
    shape = tuple(shape)
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
        with explained(folder / "training data", needs=needed):
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype).data)
                rows += len(block)
            file.flush()
        whole = (rows, *shape[1:])
        yield np.memmap(file, dtype, "r", shape=whole) if rows else np.empty(whole, dtype)


def scratch_maps(
    read: Callable[[Indices], Array], rows: Indices, *, row_shape: Sequence[int], folder: Path
) -> contextlib.AbstractContextManager[Array]:
    """Cached maps, float32, as a `scratch_array`.

    Parameters
    ----------
    read : gives some rows, e.g. ``functools.partial(table.features, "block4_pool")``.
    rows : which ones; ascending ones are read fastest.
    """
    size = max(1, BLOCK_BYTES // (4 * math.prod(row_shape)))
    blocks = (read(rows[start : start + size]) for start in range(0, len(rows), size))
    shape = (len(rows), *row_shape)
    return scratch_array(blocks, shape=shape, dtype="float32", folder=folder)


@contextlib.contextmanager
def scratch_images(
    root: Path, digests: Mapping[bytes, bytes], *, image_size: int, resize: str, folder: Path
) -> Iterator[tuple[Array, list[bytes], list[Skipped]]]:
    """Decode images once, to a `scratch_array` of (N, S, S, 3) uint8.

    Yields them with their paths, and what was skipped and why.
    """
    kept: list[bytes] = []
    skipped: list[Skipped] = []

    def decoded() -> Iterator[Array]:
        images = read_images(root, digests, image_size=image_size, resize=resize)
        with contextlib.closing(images):
            for path, pixels in images:
                if isinstance(pixels, Skipped):
                    skipped.append(pixels)
                else:
                    kept.append(path)
                    yield pixels[None]

    shape = (len(digests), image_size, image_size, 3)
    with scratch_array(decoded(), shape=shape, dtype="uint8", folder=folder) as pixels:
        yield pixels, kept, skipped
