"""Compute features of images and commit them to shards in a background thread."""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.chunks import pack
from pipeline.cache.file import CHUNK_BYTES, RowKey, rows_per_chunk
from pipeline.cache.shards import ShardFolder
from pipeline.engines import SAMPLE_IMAGES, Engine
from pipeline.errors import BadDataError, PipelineError, StorageError
from pipeline.images.reader import Pixels
from pipeline.prefetch import prefetch
from pipeline.text import counted, file_size, printable

SECONDS_PER_COMMIT = 2.0  # at least, so that a fast base does not write thousands of shards
MAX_SECONDS_PER_COMMIT = 30.0  # a crash loses no more, even if a chunk of 64 rows takes longer
LOGGED_BYTES = 50 * 10**6  # smaller caches need no message about disk space
COPIES = 2  # the shards, and the file made from them

Features = dict[str, npt.NDArray[Any]]  # layer key -> (n, *shape of a row)
OpenEngine = Callable[[tuple[str, ...], Pixels, Mapping[str, Any] | None], Engine]

log = logging.getLogger(__name__)


def compute_rows(
    decoded: Iterator[tuple[RowKey, Pixels]],
    layers: tuple[str, ...],
    shards: ShardFolder,
    open_engine: OpenEngine,
    batch_size: int,
    *,
    row_count: int,
    recorded: Mapping[str, Any] | None,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> None:
    """Compute and commit rows of (S, S, 3) uint8 RGB images.

    ``row_count`` : expected number of rows, for the check of disk space. ``recorded`` : the engine
    in the cache, for ``open_engine``. ``on_batch`` receives the number of rows of each batch.
    """
    sample = list(islice(decoded, max(batch_size, SAMPLE_IMAGES)))
    if not sample:
        return
    # Only once there is an image: opening takes seconds, and engines are timed on images.
    engine = open_engine(layers, _stack(sample), recorded)
    spec = shards.spec
    if engine.weights != spec.weights:
        raise BadDataError(
            f"the weights of {spec.base} have SHA-256 {engine.weights[:12]}…, not "
            f"{spec.weights[:12]}… as recorded: delete the record in weights/ and run again"
        )
    rows = chain(sample, decoded)
    batches = iter(lambda: list(islice(rows, batch_size)), [])
    # Batches are computed ahead: no core waits for the end of a batch or for its commit.
    computed = prefetch(
        lambda batch: engine(_stack(batch)), batches, threads=engine.calls_at_once, name="engine"
    )
    with Committer(shards, engine, layers) as committer, contextlib.closing(computed):
        for number, (batch, features) in enumerate(computed):
            if not number:
                _check_space(shards, features, row_count)
            committer.add([key for key, _ in batch], features)
            on_batch(len(batch))
        committer.finish()


def _stack(batch: Sequence[tuple[RowKey, Pixels]]) -> Pixels:
    return np.stack([pixels for _, pixels in batch])


class Committer:
    """Collect an engine's rows and commit them in a thread, one shard at a time.

    A shard is due after `SECONDS_PER_COMMIT`, or when its features exceed 8 MiB. It contains whole
    chunks, so that publishing copies them without recompressing; the last shard, or one after
    `MAX_SECONDS_PER_COMMIT`, may end with a partial chunk. The end of the context commits all
    collected rows, also after an error, unless a commit has failed.
    """

    def __init__(self, shards: ShardFolder, engine: Engine, layers: Sequence[str]) -> None:
        self._shards = shards
        self._engine = {"name": engine.name, "version": engine.version, "error": engine.error}
        self._layers = layers
        self._dtype = shards.spec.dtype
        self._chunk = min(rows_per_chunk(engine.row_shapes[key], self._dtype) for key in layers)
        # Pairs: no interrupt can separate keys from their features.
        self._collected: list[tuple[list[RowKey], Features]] = []
        self._last_commit = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        commit = self._running
        failed = commit is not None and commit.done() and commit.exception()
        if error is not None and not failed:
            with contextlib.suppress(PipelineError):  # the first error is the one to report
                self.finish()
        self._thread.shutdown(wait=True)

    def add(self, keys: list[RowKey], features: Mapping[str, npt.NDArray[Any]]) -> None:
        """Collect rows; raise BadDataError if the type cannot store them.

        Raises the error of an earlier commit that failed.
        """
        stored = {layer: _convert(layer, features[layer], self._dtype) for layer in self._layers}
        self._collected.append((keys, stored))
        count = sum(len(batch) for batch, _ in self._collected)
        size = sum(rows.nbytes for _, batch in self._collected for rows in batch.values())
        seconds = time.monotonic() - self._last_commit
        in_whole_chunks = count - count % self._chunk
        if in_whole_chunks and (seconds >= SECONDS_PER_COMMIT or size >= CHUNK_BYTES):
            self._commit(in_whole_chunks)
        elif seconds >= MAX_SECONDS_PER_COMMIT:
            self._commit(count)

    def finish(self) -> None:
        """Commit the rest."""
        if count := sum(len(batch) for batch, _ in self._collected):
            self._commit(count)
        self._wait()

    def _commit(self, count: int) -> None:
        """Wait for the previous commit, start the next."""
        self._wait()
        keys = [key for batch, _ in self._collected for key in batch]
        features = {
            layer: np.concatenate([batch[layer] for _, batch in self._collected])
            for layer in self._layers
        }
        first = {layer: rows[:count] for layer, rows in features.items()}
        rest = {layer: rows[count:] for layer, rows in features.items()}
        self._last_commit = time.monotonic()
        self._running = self._thread.submit(
            self._shards.commit, keys[:count], first, engine=self._engine
        )
        # An interrupt before this line commits rows twice, which does no harm.
        self._collected = [(keys[count:], rest)] if len(keys) > count else []

    def _wait(self) -> None:
        """Wait for the running commit; raise its error."""
        if self._running is not None:
            self._running.result()  # if this raises, `_running` stays: no commit follows
            self._running = None


def _convert(layer: str, features: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Convert features to the stored dtype; raises BadDataError if it cannot store them."""
    with np.errstate(over="ignore"):
        stored = features.astype(dtype)
    if not np.isfinite(stored).all():
        cause = (
            f"--dtype {dtype} is too small for them, use float32"
            if np.isfinite(features).all()
            else "the weights or the layer are broken"
        )
        raise BadDataError(f"features of {layer} are not finite: {cause}")
    largest = np.abs(features).max(initial=0)
    if 0 < largest < np.finfo(dtype).tiny:
        raise BadDataError(
            f"features of {layer} are at most {largest:.0e}: --dtype {dtype} is too coarse for "
            f"them, use float32"
        )
    return stored


def _check_space(shards: ShardFolder, sample: Features, rows: int) -> None:
    """Log the bytes that rows like the (n, ...) sample need; raises StorageError if too many."""
    size = 0
    for features in sample.values():
        with np.errstate(over="ignore"):  # `_convert` reports values too large for float16
            stored = np.ascontiguousarray(features, shards.spec.dtype)
        size += len(pack(stored) or stored.tobytes()) * rows // len(features)
    folder = shards.cache.parent
    free = shutil.disk_usage(folder).free
    needed = COPIES * size
    if shards.cache.exists():  # it stays until the new file replaces it
        needed += shards.cache.stat().st_size
    if size > LOGGED_BYTES:
        log.info(
            "%s of %s: about %s on the disk, %s during the run; %s free", counted(rows, "row"),
            printable(", ".join(sample)), file_size(size), file_size(needed),
            file_size(free),
        )  # fmt: skip
    if needed > free:
        cures = {
            "fewer --views": shards.augmentation is not None,
            "--pooling avg": any(features.ndim > 2 for features in sample.values()),
            "--dtype float16": shards.spec.dtype != "float16",
        }
        smaller = " or ".join(cure for cure, helps in cures.items() if helps)
        raise StorageError(
            f"{printable(folder)} has too little space: {file_size(needed)} needed, "
            f"{file_size(free)} free; free some" + f", or use {smaller}" * bool(smaller)
        )
