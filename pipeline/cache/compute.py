"""Run images through an engine and commit their features to shards in a background thread."""

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
from pipeline.engines import Engine
from pipeline.errors import BadDataError, PipelineError, StorageError
from pipeline.images.reader import Pixels
from pipeline.prefetch import prefetch
from pipeline.text import counted, file_size, printable

SECONDS = 2.0  # between commits, so that a fast base makes no shard a blink
MOST_SECONDS = 30.0  # what a crash may cost where a chunk of 64 rows takes longer
SAMPLE = 8  # images that an engine is chosen by, at least
WORTH_SAYING = 50 * 10**6  # bytes
COPIES = 2  # the shards, and beside them the file that is made from them

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
    committed: Callable[[int], object] = lambda rows: None,
) -> None:
    """Compute rows of (S, S, 3) uint8 RGB; ``committed`` is told how many when some are safe."""
    ahead = list(islice(decoded, max(batch_size, SAMPLE)))
    if not ahead:
        return
    # Not before there is an image: opening takes seconds, and engines are tried on images.
    engine = open_engine(layers, _stacked(ahead), recorded)
    spec = shards.spec
    if engine.weights != spec.weights:
        raise BadDataError(
            f"the weights of {spec.base} have SHA-256 {engine.weights[:12]}…, not "
            f"{spec.weights[:12]}… as noted: delete the note in weights/ and run again"
        )
    rows = chain(ahead, decoded)
    batches = iter(lambda: list(islice(rows, batch_size)), [])
    # None of the engine's cores waits for the rest of a batch, nor for what is done with it.
    computed = prefetch(
        lambda batch: engine(_stacked(batch)), batches, threads=engine.calls_at_once, name="engine"
    )
    with Commits(shards, engine, layers) as commits, contextlib.closing(computed):
        for number, (batch, features) in enumerate(computed):
            if not number:
                check_disk_space(shards, features, row_count)
            committed(commits.add([key for key, _ in batch], features))
        committed(commits.finish())


def _stacked(batch: Sequence[tuple[RowKey, Pixels]]) -> Pixels:
    return np.stack([pixels for _, pixels in batch])


class Commits:
    """Takes an engine's rows and commits them in a thread, at most one shard at a time.

    A shard is due after `SECONDS`, or when its features pass 8 MiB. It holds whole chunks, so that
    publishing can copy them as they are; the last one, or one after `MOST_SECONDS`, need not.
    Whatever ends the context, all that it was given is committed, unless a commit has failed.
    """

    def __init__(self, shards: ShardFolder, engine: Engine, layers: Sequence[str]) -> None:
        self._shards = shards
        self._made_by = {"name": engine.name, "version": engine.version, "error": engine.error}
        self._layers = layers
        self._dtype = shards.spec.dtype
        self._chunk = min(rows_per_chunk(engine.row_shapes[key], self._dtype) for key in layers)
        # keys never part from their features: whatever interrupts, no row gets another's
        self._waiting: list[tuple[list[RowKey], Features]] = []
        self._last = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._writing: tuple[int, Future[None]] | None = None  # rows, and their commit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _, commit = self._writing or (0, None)
        failed = commit is not None and commit.done() and commit.exception()
        if error is not None and not failed:
            with contextlib.suppress(PipelineError):  # the first error is the one to tell
                self.finish()
        self._thread.shutdown(wait=True)

    def add(self, keys: list[RowKey], features: Mapping[str, npt.NDArray[Any]]) -> int:
        """Take rows; returns how many, of earlier calls too, were committed meanwhile.

        Raises BadDataError if features are not finite, and what a commit raises.
        """
        stored = {key: _stored(key, features[key], self._dtype) for key in self._layers}
        self._waiting.append((keys, stored))
        count = sum(len(each) for each, _ in self._waiting)
        size = sum(rows.nbytes for _, each in self._waiting for rows in each.values())
        waited = time.monotonic() - self._last
        whole = count - count % self._chunk
        if whole and (waited >= SECONDS or size >= CHUNK_BYTES):
            return self._commit(whole)
        return self._commit(count) if waited >= MOST_SECONDS else 0

    def finish(self) -> int:
        """Commit the rest; returns how many rows were committed since the last call."""
        count = sum(len(each) for each, _ in self._waiting)
        done = self._commit(count) if count else 0
        return done + self._settle()

    def _commit(self, count: int) -> int:
        """Hand rows to the thread, once it is done with those before."""
        done = self._settle()
        keys = [key for each, _ in self._waiting for key in each]
        features = {
            layer: np.concatenate([each[layer] for _, each in self._waiting])
            for layer in self._layers
        }
        first = {layer: rows[:count] for layer, rows in features.items()}
        rest = {layer: rows[count:] for layer, rows in features.items()}
        self._last = time.monotonic()
        commit = self._thread.submit(self._shards.commit, keys[:count], first, engine=self._made_by)
        self._writing = count, commit
        # interrupted before this, rows are committed twice, which does no harm
        self._waiting = [(keys[count:], rest)] if len(keys) > count else []
        return done

    def _settle(self) -> int:
        """The rows of the shard that was being written; raises what writing it raised."""
        if self._writing is None:
            return 0
        rows, commit = self._writing
        commit.result()  # `_writing` stays if this raises: a commit that failed is the last one
        self._writing = None
        return rows


def _stored(layer: str, features: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Features in the stored dtype; raises BadDataError where one is not a finite number."""
    with np.errstate(over="ignore"):
        stored = features.astype(dtype)
    if not np.isfinite(stored).all():
        cause = (
            f"--dtype {dtype} cannot hold them, use float32"
            if np.isfinite(features).all()
            else "the weights or the layer are broken"
        )
        raise BadDataError(f"features of {layer} are not finite: {cause}")
    return stored


def check_disk_space(
    shards: ShardFolder, sample: Mapping[str, npt.NDArray[Any]], rows: int
) -> None:
    """Log the size of rows like the (n, ...) sample; raises StorageError if they cannot fit."""
    size = 0
    for features in sample.values():
        with np.errstate(over="ignore"):  # `_stored` refuses what float16 cannot hold
            stored = np.ascontiguousarray(features, shards.spec.dtype)
        size += len(pack(stored) or stored.tobytes()) * rows // len(features)
    folder = shards.cache.parent
    free = shutil.disk_usage(folder).free
    needed = COPIES * size
    if shards.cache.exists():  # it stays until the new one is there
        needed += shards.cache.stat().st_size
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
