"""Shards: small immutable files, one per commit, with the rows that are not published yet.

Each shard contains the keys of its rows and is named by them: the files in the folder are all that
a later run needs, in any order, and any number of processes may write them. Only the process that
publishes the cache file and deletes shards holds the `writer_lock`.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from pipeline.cache.checksums import find_damage, write_checksums
from pipeline.cache.chunks import write_chunk
from pipeline.cache.file import DIGEST_DTYPE, LIBVER, FeatureTable, RowKey, create_features
from pipeline.cache.hdf5 import open_hdf5
from pipeline.durable import (
    DISK_FULL,
    STALE_AFTER,
    TEMPORARY_SUFFIX,
    make_folder,
    remove_empty_folder,
    remove_file,
    remove_temporaries,
    sync_folder,
    write_durably,
)
from pipeline.errors import BusyError, CannotCreateError, StorageError
from pipeline.spec import FeatureSpec
from pipeline.text import printable

log = logging.getLogger(__name__)

PLAN = "extraction.plan"  # file beside the shards, see `pipeline.cache.plan`
SHARD_NAME = re.compile(r"[0-9a-f]{32}\.h5")  # see `_content_name`
NO_SHARD = (OSError, KeyError, ValueError)  # errors of reading another or damaged file
POLL_SECONDS = 0.2  # between attempts to take a lock that another process holds


@dataclass(frozen=True)
class Shard:
    """Committed rows; ``augmentation`` contains the ranges of their views.

    ``copied`` : they are from another cache, see `pipeline.cache.reuse`.
    """

    path: Path
    keys: tuple[RowKey, ...]
    row_shapes: Mapping[str, tuple[int, ...]]
    engine: Mapping[str, Any]
    augmentation: Mapping[str, Any] | None
    copied: bool = False


class ShardFolder:
    """The shards beside one cache file: ``<name>.parts/`` for ``<name>.h5``."""

    is_on_disk = True

    def __init__(
        self, cache_path: Path, spec: FeatureSpec, augmentation: Mapping[str, Any] | None = None
    ) -> None:
        self.cache = cache_path
        self.path = cache_path.with_suffix(".parts")
        self.spec = spec
        self.augmentation = augmentation
        self._unusable: list[Path] = []  # damaged, or other files
        self.shards: list[Shard] = []  # of earlier runs and other processes, then of this one

    def recover(self) -> None:
        """Clean up after a killed run: delete old temporary files, sync folders, read the shards.

        The caller holds the `writer_lock`; other processes may be committing shards.
        """
        remove_temporaries(self.cache)
        oldest = time.time() - STALE_AFTER
        for temporary in self.path.glob(f"*{TEMPORARY_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # its process has just finished it
                if temporary.stat().st_mtime < oldest:
                    remove_file(temporary)
        for folder in (self.path.parent, self.path):
            if folder.is_dir():
                sync_folder(folder)
        paths = self._paths()
        self.shards = self.read()
        self._unusable = sorted(set(paths) - {shard.path for shard in self.shards})

    def read(self, *, verify: bool = True) -> list[Shard]:
        """Return the undamaged shards; changes nothing.

        Without ``verify``, their features are not read: damaged ones are among them.
        """
        return [shard for path in self._paths() if (shard := self._read_shard(path, verify=verify))]

    def _paths(self) -> list[Path]:
        return sorted(self.path.glob("*.h5"))

    def commit(
        self,
        keys: Sequence[RowKey],
        features: Mapping[str, npt.NDArray[Any]],
        *,
        engine: Mapping[str, Any],
        copied: bool = False,
    ) -> None:
        """Write rows durably: when this returns, they survive a crash.

        Two processes that commit the same rows write the same file; the first one stays.

        ``features`` : layer key -> (n, *shape of a row) in the stored dtype.
        """
        path = self.path / f"{_content_name(keys, features)}.h5"
        row_shapes = {layer: rows.shape[1:] for layer, rows in features.items()}
        shard = Shard(path, tuple(keys), row_shapes, dict(engine), self.augmentation, copied)
        if not path.exists() or self._read_shard(path) is None:
            origin = {name: getattr(shard, name) for name in ("engine", "augmentation", "copied")}
            data = _encode_shard({"spec": self.spec.to_dict(), **origin}, keys, features)
            self.write(path.name, data)
        self.shards.append(shard)

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder durably."""
        if not self.path.exists():
            make_folder(self.path)
        write_durably(self.path / name, lambda file: file.write(data))

    def remove_published(self, table: FeatureTable) -> None:
        """Delete the shards whose rows are all in the file, and the plan; later runs use others."""
        published = set(table.columns.row_keys())
        needed = False
        for shard in self.shards:
            if shard.row_shapes.keys() - table.layers.keys() or set(shard.keys) - published:
                needed = True
            else:
                remove_file(shard.path)
        if needed:
            return
        for path in (*self._unusable, self.path / PLAN):
            remove_file(path)
        remove_empty_folder(self.path)

    def _read_shard(self, path: Path, *, verify: bool = True) -> Shard | None:
        """Read a shard of this spec; None for another file or a damaged one."""
        try:
            if damages := find_damage(path, features=verify):  # h5py may not end on such a file
                what = printable(damages[0].what)
                log.warning(
                    "%s is damaged (%s): its rows are computed again", printable(path), what
                )
                return None
            with open_hdf5(path) as file:
                return self._describe(file, path)
        except FileNotFoundError:  # another process has just published and deleted it
            return None
        except NO_SHARD as error:
            log.warning("%s is not a shard (%s): ignored", printable(path), error)
            return None

    def read_stream(self, stream: BinaryIO, path: Path) -> Shard | None:
        """Read a shard of this spec, not its features; None for another file or a damaged one."""
        try:
            with h5py.File(stream, "r") as file:
                return self._describe(file, path)
        except NO_SHARD as error:
            log.warning("%s is not a shard (%s): ignored", printable(path), error)
            return None

    def _describe(self, file: h5py.File, path: Path) -> Shard | None:
        document = json.loads(file["spec"].asstr()[()])
        keys = zip(file["digests"][()], file["views"][()], strict=True)
        shard = Shard(
            path=path,
            keys=tuple(RowKey(digest.tobytes(), int(view)) for digest, view in keys),
            row_shapes={name: rows.shape[1:] for name, rows in file["features"].items()},
            engine=document["engine"],
            augmentation=document.get("augmentation"),
            copied=bool(document.get("copied")),
        )
        return shard if document["spec"] == self.spec.to_dict() else None


def _content_name(keys: Sequence[RowKey], layers: Iterable[str]) -> str:
    """Return a file name of rows: 32 digits of the SHA-256 of their keys and layers."""
    content = hashlib.sha256(json.dumps(sorted(layers)).encode())
    for key in keys:
        content.update(key.digest + key.view.to_bytes(2, "little"))
    return content.hexdigest()[:32]


def _encode_shard(
    document: Mapping[str, Any], keys: Sequence[RowKey], features: Mapping[str, npt.NDArray[Any]]
) -> bytes:
    """Encode a shard in memory and read it back: HDF5 itself never writes to the disk."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=LIBVER) as file:
        file["spec"] = json.dumps(document)
        file["digests"] = np.frombuffer(b"".join(key.digest for key in keys), DIGEST_DTYPE)
        file["views"] = np.array([key.view for key in keys], np.int16)
        for layer, rows in features.items():
            dataset = create_features(file, layer, rows.shape[1:], len(rows), str(rows.dtype))
            for start in range(0, len(rows), dataset.chunks[0]):
                write_chunk(dataset, start, rows[start : start + dataset.chunks[0]])
    write_checksums(buffer)
    with h5py.File(buffer, "r") as file:  # a check of the HDF5 and compression libraries
        if len(file["digests"]) != len(keys) or not all(
            np.array_equal(file[f"features/{layer}"][()], rows) for layer, rows in features.items()
        ):
            raise StorageError("a batch of features differs when read back; run again")
    return buffer.getvalue()


@contextlib.contextmanager
def writer_lock(cache_path: Path, *, wait: bool | None = None) -> Iterator[None]:
    """Hold ``<name>.lock``; if another process holds it, wait for it or raise BusyError.

    ``wait`` : None in commands without --wait.
    """
    lock = FileLock(cache_path.with_suffix(".lock"))
    holder = cache_path.with_suffix(".holder")  # not the lock file: each attempt truncates that
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        process = "another process"
        with contextlib.suppress(OSError):  # it is starting or ending
            process = printable(holder.read_text()) or process
        message = f"{process} is writing {printable(cache_path)}"
        if not wait:
            or_wait = "" if wait is None else ", or with --wait"
            raise BusyError(f"{message}; run again after its end{or_wait}") from error
        log.info("waiting: %s", message)
        lock.acquire(poll_interval=POLL_SECONDS)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise CannotCreateError(
            f"cannot write in {printable(cache_path.parent)}: {error.strerror}; choose another "
            f"folder"
        ) from error
    try:
        with contextlib.suppress(OSError):  # optional; later writes report a full disk
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
