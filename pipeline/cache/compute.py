"""Compute features of images and commit them to shards in a background thread."""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import chain
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
DecodedRow = tuple[RowKey, Pixels]  # (S, S, 3) uint8 RGB
OpenEngine = Callable[[tuple[str, ...], Pixels, Mapping[str, Any] | None], Engine]

log = logging.getLogger(__name__)


class Computation:
    """Missing rows of one cache, which its engine computes.

    ``row_count`` : their expected number, for the check of disk space. ``recorded`` : the engine in
    the cache, for ``open_engine``.
    """

    def __init__(
        self,
        layers: tuple[str, ...],
        shards: ShardFolder,
        open_engine: OpenEngine,
        *,
        row_count: int,
        recorded: Mapping[str, Any] | None,
    ) -> None:
        self.layers = layers
        self.shards = shards
        self.row_count = row_count
        self.rows: list[DecodedRow] = []  # that wait for a batch
        self._open_engine = open_engine
        self._recorded = recorded

    @cached_property
    def engine(self) -> Engine:
        """Opened once there are rows: opening takes seconds, and engines are timed on images."""
        engine = self._open_engine(self.layers, _stack(self.rows[:SAMPLE_IMAGES]), self._recorded)
        spec = self.shards.spec
        if engine.weights != spec.weights:
            raise BadDataError(
                f"the weights of {spec.base} have SHA-256 {engine.weights[:12]}…, not "
                f"{spec.weights[:12]}… as recorded: delete the record in weights/ and run again"
            )
        self._calls = threading.Semaphore(engine.calls_at_once)
        return engine

    def take_batches(self, size: int) -> Iterator[list[DecodedRow]]:
        """Remove and yield as many full batches as there are."""
        while len(self.rows) >= size:
            self.engine  # noqa: B018 - opened while the sample is complete
            batch, self.rows = self.rows[:size], self.rows[size:]
            yield batch

    def compute(self, batch: Sequence[DecodedRow]) -> Features:
        with self._calls:
            return self.engine(_stack(batch))


def compute_rows(
    decoded: Iterator[Iterable[tuple[Computation, DecodedRow]]],
    computations: Sequence[Computation],
    batch_size: int,
    *,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> None:
    """Compute and commit the rows of images; ``decoded`` yields those of one image at a time.

    Each engine is opened with the first rows of its cache. ``on_batch`` receives the number of rows
    of each batch.
    """
    for rows in decoded:
        _distribute(rows)
        counts = [len(computation.rows) for computation in computations]
        # The second limit bounds memory: a cache may miss only a few rows, of the last images.
        if min(counts) >= SAMPLE_IMAGES or max(counts) >= SAMPLE_IMAGES * len(computations):
            break
    opened = [computation for computation in computations if computation.rows]
    if not opened:
        return
    # Batches are computed ahead: no core waits for the end of a batch or for its commit.
    computed = prefetch(
        lambda item: item[0].compute(item[1]),
        _batches(decoded, computations, batch_size),
        threads=max(computation.engine.calls_at_once for computation in opened),
        name="engine",
    )
    committers: dict[Computation, Committer] = {}
    needed = 0  # bytes on the disk
    with contextlib.ExitStack() as stack, contextlib.closing(computed):
        for (computation, batch), features in computed:
            if computation not in committers:
                needed += _check_space(computation, features, needed)
                committer = Committer(computation.shards, computation.engine, computation.layers)
                committers[computation] = stack.enter_context(committer)
            committers[computation].add([key for key, _ in batch], features)
            on_batch(len(batch))
        for committer in committers.values():
            committer.finish()


def _batches(
    decoded: Iterator[Iterable[tuple[Computation, DecodedRow]]],
    computations: Sequence[Computation],
    batch_size: int,
) -> Iterator[tuple[Computation, list[DecodedRow]]]:
    """Yield batches as soon as they are complete, and the rest at the end."""
    for rows in chain([()], decoded):
        _distribute(rows)
        for computation in computations:
            for batch in computation.take_batches(batch_size):
                yield computation, batch
    for computation in computations:
        for batch in computation.take_batches(len(computation.rows) or 1):
            yield computation, batch


def _distribute(rows: Iterable[tuple[Computation, DecodedRow]]) -> None:
    for computation, row in rows:
        computation.rows.append(row)


def _stack(batch: Sequence[DecodedRow]) -> Pixels:
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


def _check_space(computation: Computation, sample: Features, reserved: int) -> int:
    """Return and log the bytes that rows like the (n, ...) sample need.

    Raises StorageError if, with those ``reserved`` for other caches, they exceed the free ones.
    """
    shards, rows = computation.shards, computation.row_count
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
    if reserved + needed > free:
        cures = {
            "fewer --views": shards.augmentation is not None,
            "--pooling avg": any(features.ndim > 2 for features in sample.values()),
            "--dtype float16": shards.spec.dtype != "float16",
        }
        smaller = " or ".join(cure for cure, helps in cures.items() if helps)
        raise StorageError(
            f"{printable(folder)} has too little space: {file_size(reserved + needed)} needed, "
            f"{file_size(free)} free; free some" + f", or use {smaller}" * bool(smaller)
        )
    return needed
