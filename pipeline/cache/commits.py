"""Rows on their way to shards: gathered while the engine computes, written behind its back."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import CHUNK_BYTES, rows_per_chunk
from pipeline.cache.keys import RowKey
from pipeline.cache.shards import ShardFolder
from pipeline.engines import Engine
from pipeline.errors import BadDataError, PipelineError

SECONDS = 2.0  # between commits, so that a fast base makes no shard a blink
MOST_SECONDS = 30.0  # what a crash may cost where a chunk of 64 rows takes longer

Batch = tuple[list[RowKey], dict[str, npt.NDArray[Any]]]  # rows and their features by layer


class Commits:
    """Takes an engine's rows and commits them in a thread, at most one shard at a time.

    A shard holds whole chunks where it can, so that publishing can copy them as they are; the last
    one holds the rest. Whatever ends the context, all that it was given is committed, unless a
    commit itself has failed.

    A shard is due after `SECONDS`, or when its features pass 8 MiB; after `MOST_SECONDS` it need
    not fill a chunk.
    """

    def __init__(
        self, shards: ShardFolder, engine: Engine, layers: Sequence[str], dtype: str
    ) -> None:
        self._shards = shards
        self._made_by = {"name": engine.name, "version": engine.version, "error": engine.error}
        self._layers = list(layers)
        self._dtype = dtype
        self._chunk = min(rows_per_chunk(engine.row_shapes[key], dtype) for key in layers)
        # keys never part from their features: whatever interrupts, no row gets another's
        self._waiting: list[Batch] = []
        self._last = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._writing: Future[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = self._writing is not None and self._writing.done() and self._writing.exception()
        if error is not None and not failed:
            with contextlib.suppress(PipelineError):  # the first error is the one to tell
                self.finish()
        self._thread.shutdown(wait=True)

    def add(self, keys: Sequence[RowKey], features: Mapping[str, npt.NDArray[Any]]) -> int:
        """Take rows; returns how many rows, of earlier calls too, were committed meanwhile.

        Raises BadDataError if features are not finite, and what a commit raises.
        """
        stored = {key: _stored(key, features[key], self._dtype) for key in self._layers}
        self._waiting.append((list(keys), stored))
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
        self._writing = self._thread.submit(self._write, keys[:count], first)
        # interrupted before this, rows are committed twice, which does no harm
        self._waiting = [(keys[count:], rest)] if len(keys) > count else []
        return done

    def _write(self, keys: Sequence[RowKey], features: Mapping[str, npt.NDArray[Any]]) -> int:
        self._shards.commit(keys, features, engine=self._made_by)
        return len(keys)

    def _settle(self) -> int:
        """The rows of the shard that was being written; raises what writing it raised."""
        if self._writing is None:
            return 0
        rows = self._writing.result()  # kept if it raises: a commit that failed is the last one
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
