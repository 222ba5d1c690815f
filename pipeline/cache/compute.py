"""Compute features of images and commit them to shards in a background thread."""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cache, cached_property
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.chunks import pack
from pipeline.cache.config import ViewPlan
from pipeline.cache.file import CHUNK_BYTES, RowKey, rows_per_chunk
from pipeline.cache.shards import ShardFolder
from pipeline.engines import SAMPLE_IMAGES, Engine
from pipeline.errors import BadDataError, PipelineError, StorageError
from pipeline.images.decode import decode_forms
from pipeline.images.reader import Pixels, read_files
from pipeline.images.scan import Skipped
from pipeline.images.source import ImageSource
from pipeline.prefetch import prefetch
from pipeline.text import counted, file_size, printable

SECONDS_PER_COMMIT = 2.0  # at least, so that a fast base does not write thousands of shards
MAX_SECONDS_PER_COMMIT = 30.0  # a crash loses no more, even if a chunk of 64 rows takes longer
LOGGED_BYTES = 50 * 10**6  # smaller caches need no message about disk space
COPIES = 2  # the shards, and the file made from them

Features = dict[str, npt.NDArray[Any]]  # layer key -> (n, *shape of a row)
DecodedRow = tuple[RowKey, Pixels]  # (S, S, 3) uint8 RGB
MaybeDecodedRow = tuple["Computation", RowKey, Pixels | None]  # None: the image cannot be read
OpenEngine = Callable[[tuple[str, ...], Pixels, Mapping[str, Any] | None], Engine]

log = logging.getLogger(__name__)


class Computation:
    """Batches of missing rows of one cache, which its engine computes.

    A batch contains the same images in every run and process, whatever else is missing: the last
    bits of some engines' features depend on the other images of a batch.

    Parameters
    ----------
    batches : the rows of each call of the engine.
    recorded : the engine in the cache, for ``open_engine``.
    exists : whether a row need not be computed, besides others of its batch.
    """

    def __init__(
        self,
        layers: tuple[str, ...],
        shards: ShardFolder,
        open_engine: OpenEngine,
        *,
        batches: Sequence[Sequence[RowKey]],
        recorded: Mapping[str, Any] | None,
        exists: Callable[[RowKey], bool] = lambda key: False,
    ) -> None:
        self.layers = layers
        self.shards = shards
        self.row_count = sum(map(len, batches))
        self.arrived = 0  # rows of complete batches
        self._exists = exists
        self._open_engine = open_engine
        self._recorded = recorded
        self._batches = batches
        self._batch_of = {key: number for number, batch in enumerate(batches) for key in batch}
        self._absent = list(map(len, batches))  # rows of each batch that have not arrived
        self._pixels: dict[RowKey, Pixels] = {}
        self._sample: list[Pixels] = []
        self._complete: list[list[DecodedRow]] = []

    @cached_property
    def engine(self) -> Engine:
        """Opened once there are rows: opening takes seconds, and engines are timed on images."""
        engine = self._open_engine(self.layers, np.stack(self._sample), self._recorded)
        spec = self.shards.spec
        if engine.weights != spec.weights:
            raise BadDataError(
                f"the weights of {spec.base} have SHA-256 {engine.weights[:12]}…, not "
                f"{spec.weights[:12]}… as recorded: delete the record in weights/ and run again"
            )
        self._calls = threading.Semaphore(engine.calls_at_once)
        return engine

    @property
    def engine_record(self) -> dict[str, Any]:
        """Name, version and measured error of the engine: the recorded ones if it is the same."""
        engine, recorded = self.engine, self._recorded or {}
        error = dict(engine.error)
        if (recorded.get("name"), recorded.get("version")) == (engine.name, engine.version):
            error |= recorded.get("error") or {}
        return {"name": engine.name, "version": engine.version, "error": error}

    def add(self, key: RowKey, pixels: Pixels | None) -> None:
        """Add a row; ``pixels`` is None for an image that cannot be read."""
        number = self._batch_of[key]
        self._absent[number] -= 1
        if pixels is not None:
            self._pixels[key] = pixels
        if self._absent[number]:
            return
        keys = [each for each in self._batches[number] if each in self._pixels]
        batch = [(each, self._pixels.pop(each)) for each in keys]
        if not all(map(self._exists, keys)):  # else only unreadable images have no row
            self.arrived += len(batch)
            self._sample += [pixels for _, pixels in batch[: SAMPLE_IMAGES - len(self._sample)]]
            self._complete.append(batch)

    def take_batches(self) -> Iterator[list[DecodedRow]]:
        """Remove and yield the complete batches."""
        complete, self._complete = self._complete, []
        for batch in complete:
            self.engine  # noqa: B018 - opened in this thread
            yield batch

    def compute(self, batch: Sequence[DecodedRow]) -> Features:
        with self._calls:
            return self.engine(np.stack([pixels for _, pixels in batch]))


def decode_batches(
    batches: Mapping["Computation", Sequence[Sequence[tuple[bytes, RowKey]]]],
    source: ImageSource,
    paths: Iterable[bytes],
    plan: ViewPlan,
    *,
    reasons: dict[bytes, str] | None,
) -> Generator[list[MaybeDecodedRow]]:
    """Yield the rows of one image after another, with their pixels; decode each image once.

    Parameters
    ----------
    batches : of paths and row keys; at least one.
    paths : in the order of reading.
    reasons : receives the digest of each image that cannot be read, and why; if None, such an image
        raises BadDataError.
    """
    groups: dict[Computation, dict[bytes, list[RowKey]]] = {}
    first: list[bytes] = []  # images of the first batches of each cache, with which engines open
    for computation, of_computation in batches.items():
        group = groups.setdefault(computation, {})
        for batch in of_computation:
            if len(group) < SAMPLE_IMAGES:
                first += (path for path, _ in batch)
            for path, key in batch:
                group.setdefault(path, []).append(key)
    digests = {path: keys[0].digest for group in groups.values() for path, keys in group.items()}
    ordered = dict.fromkeys([*first, *paths])
    forms = {each: (each.shards.spec.image_size, each.shards.spec.resize) for each in groups}
    range = next(iter(groups)).shards.spec.range

    def process(path: bytes, data: bytes) -> list[MaybeDecodedRow]:
        wanted = {each: group[path] for each, group in groups.items() if path in group}
        pixels = decode_forms(data, {forms[each] for each in wanted}, range=range)
        draw = cache(lambda key, form: plan.draw(key, pixels[form]))
        return [
            (each, key, draw(key, forms[each])) for each, keys in wanted.items() for key in keys
        ]

    files = read_files(
        source,
        {path: digests[path] for path in ordered if path in digests},
        process,
        pixels_per_file=(plan.views + 1) * sum(size * size for size, _ in set(forms.values())),
    )
    with closing(files):
        for path, rows in files:
            if not isinstance(rows, Skipped):
                yield rows
                continue
            if reasons is None:
                raise strict_error(rows)
            reasons[digests[path]] = rows.reason
            yield [
                (each, key, None) for each, group in groups.items() for key in group.get(path, ())
            ]


def strict_error(item: Skipped) -> BadDataError:
    return BadDataError(f"{printable(item.path)}: {item.reason} (--strict stops here)")


def open_engines(
    decoded: Iterator[Iterable[MaybeDecodedRow]], computations: Sequence[Computation]
) -> list[Computation]:
    """Read the first rows of each cache, open its engine; return the computations that have rows.

    ``decoded`` yields the rows of one image at a time.
    """
    for rows in decoded:
        _distribute(rows)
        counts = [computation.arrived for computation in computations]
        # The second limit bounds memory: a cache may miss only a few rows, of the last images.
        if min(counts) >= SAMPLE_IMAGES or max(counts) >= SAMPLE_IMAGES * len(computations):
            break
    opened = [computation for computation in computations if computation.arrived]
    for computation in opened:
        computation.engine  # noqa: B018
    return opened


def compute_rows(
    decoded: Iterator[Iterable[MaybeDecodedRow]],
    computations: Sequence[Computation],
    *,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> None:
    """Compute and commit the rows of images; ``decoded`` yields those of one image at a time.

    Each engine is opened with the first rows of its cache. ``on_batch`` receives the number of rows
    of each batch.
    """
    opened = open_engines(decoded, computations)
    if not opened:
        return
    # Batches are computed ahead: no core waits for the end of a batch or for its commit.
    computed = prefetch(
        lambda item: item[0].compute(item[1]),
        _batches(decoded, computations),
        threads=max(computation.engine.calls_at_once for computation in opened),
        name="engine",
    )
    committers: dict[Computation, Committer] = {}
    needed = 0  # bytes on the disk
    with contextlib.ExitStack() as stack, closing(computed):
        for (computation, batch), features in computed:
            if computation not in committers:
                needed += _check_space(computation, features, needed)
                committers[computation] = stack.enter_context(Committer(computation))
            committers[computation].add([key for key, _ in batch], features)
            on_batch(len(batch))
        for committer in committers.values():
            committer.finish()


def _batches(
    decoded: Iterator[Iterable[MaybeDecodedRow]], computations: Sequence[Computation]
) -> Iterator[tuple[Computation, list[DecodedRow]]]:
    """Yield batches as soon as they are complete."""
    for rows in chain([()], decoded):
        _distribute(rows)
        for computation in computations:
            for batch in computation.take_batches():
                yield computation, batch


def _distribute(rows: Iterable[MaybeDecodedRow]) -> None:
    for computation, key, pixels in rows:
        computation.add(key, pixels)


class Committer:
    """Collect an engine's rows and commit them in a thread, one shard at a time.

    A shard is due after `SECONDS_PER_COMMIT`, or when its features exceed 8 MiB. It contains whole
    batches, so that no batch is computed in part, and where these fill whole chunks, whole chunks,
    which publishing copies without recompressing; the last shard, or one after
    `MAX_SECONDS_PER_COMMIT`, may end with a partial chunk. The end of the context commits all
    collected rows, also after an error, unless a commit has failed.
    """

    def __init__(self, computation: Computation) -> None:
        self._shards = computation.shards
        self._engine = computation.engine_record
        self._layers = computation.layers
        self._dtype = self._shards.spec.dtype
        shapes = computation.engine.row_shapes
        self._chunk = min(rows_per_chunk(shapes[key], self._dtype) for key in self._layers)
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
        is_due = seconds >= SECONDS_PER_COMMIT or size >= CHUNK_BYTES
        fills_chunk = count // self._chunk > (count - len(keys)) // self._chunk
        if (is_due and fills_chunk) or seconds >= MAX_SECONDS_PER_COMMIT:
            self._commit()

    def finish(self) -> None:
        """Commit the rest."""
        if self._collected:
            self._commit()
        self._wait()

    def _commit(self) -> None:
        """Wait for the previous commit, start the next."""
        self._wait()
        keys = [key for batch, _ in self._collected for key in batch]
        features = {
            layer: np.concatenate([batch[layer] for _, batch in self._collected])
            for layer in self._layers
        }
        self._last_commit = time.monotonic()
        self._running = self._thread.submit(
            self._shards.commit, keys, features, engine=self._engine
        )
        # An interrupt before this line commits rows twice, which does no harm.
        self._collected = []

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
