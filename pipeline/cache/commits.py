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

SECONDS = 2.0  # between commits: what a crash may cost, while a fast base makes no shard a blink


class Commits:
    """Takes an engine's rows and commits them in a thread, at most one shard at a time.

    A shard holds whole chunks, so that publishing can copy them as they are; the last one holds
    the rest. Whatever ends the context, all that was computed is committed, unless a commit itself
    has failed.

    A shard is due after `SECONDS`, or when its features pass 8 MiB.
    """

    def __init__(
        self, shards: ShardFolder, engine: Engine, layers: Sequence[str], dtype: str
    ) -> None:
        self._shards = shards
        self._made_by = {"name": engine.name, "version": engine.version, "error": engine.error}
        self._dtype = dtype
        self._chunk = min(rows_per_chunk(engine.row_shapes[key], dtype) for key in layers)
        self._keys: list[RowKey] = []
        self._batches: dict[str, list[npt.NDArray[Any]]] = {key: [] for key in layers}
        self._bytes = 0
        self._last = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._writing: Future[int] | None = None
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self._failed:
            with contextlib.suppress(PipelineError):  # the first error is the one to tell
                self.finish()
        self._thread.shutdown(wait=True)

    def add(self, keys: Sequence[RowKey], features: Mapping[str, npt.NDArray[Any]]) -> int:
        """Take rows; returns how many rows, of earlier calls too, were committed meanwhile.

        Raises BadDataError if features are not finite, and what a commit raises.
        """
        stored = {key: _stored(key, features[key], self._dtype) for key in self._batches}
        self._keys += keys
        for key, batches in self._batches.items():
            batches.append(stored[key])
            self._bytes += stored[key].nbytes
        whole = len(self._keys) - len(self._keys) % self._chunk
        waited = time.monotonic() - self._last
        if whole and (waited >= SECONDS or self._bytes >= CHUNK_BYTES):
            return self._commit(whole)
        return 0

    def finish(self) -> int:
        """Commit the rest; returns how many rows were committed since the last call."""
        done = self._commit(len(self._keys)) if self._keys else 0
        return done + self._settle()

    def _commit(self, count: int) -> int:
        """Hand rows to the thread, once it is done with those before."""
        done = self._settle()
        keys, self._keys = self._keys[:count], self._keys[count:]
        features = {}
        self._bytes = 0
        for key, batches in self._batches.items():
            rows = np.concatenate(batches)
            features[key] = rows[:count]
            batches[:] = [rows[count:]]
            self._bytes += batches[0].nbytes
        self._last = time.monotonic()
        self._writing = self._thread.submit(self._write, keys, features)
        return done

    def _write(self, keys: Sequence[RowKey], features: Mapping[str, npt.NDArray[Any]]) -> int:
        self._shards.commit(keys, features, engine=self._made_by)
        return len(keys)

    def _settle(self) -> int:
        """The rows of the shard that was being written; raises what writing it raised."""
        writing, self._writing = self._writing, None
        if writing is None:
            return 0
        self._failed = True  # until it is known that it has not
        rows = writing.result()
        self._failed = False
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
