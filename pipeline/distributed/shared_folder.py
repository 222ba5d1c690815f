"""The plan and the shards of one cache at an address: ``extract --shared s3://bucket/pets``.

Workers read and write there only. The machine that publishes fetches the shards, and deletes those
that it has published.
"""

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from pipeline.cache.fill import CacheFill
from pipeline.cache.plan import ExtractionPlan
from pipeline.cache.shards import PLAN, SHARD_NAME, Shard, ShardFolder
from pipeline.durable import make_folder, write_durably
from pipeline.errors import BadDataError, CannotCreateError, NoInputError
from pipeline.images.object_storage import StorageSource, as_url
from pipeline.text import counted, printable

READ_AHEAD = 64 * 2**10  # bytes: keys and shapes of a shard, without its features
THREADS = 8  # requests at a time

log = logging.getLogger("pipeline")


class SharedFolder:
    """The files of one cache at an address, or in a folder."""

    def __init__(self, name: str) -> None:
        on_disk = re.match(r"(?:file|local):/+(.*)", name)
        self.address = "" if on_disk else as_url(name)
        self._folder = None if self.address else Path(f"/{on_disk[1]}" if on_disk else name)
        if self._folder:
            self.address = f"file://{self._folder.absolute()}"

    @cached_property
    def _writer(self) -> StorageSource:
        return StorageSource(self.address)

    @contextlib.contextmanager
    def reached(self) -> Iterator[StorageSource]:
        """Yield the storage; raise UnreachableError if it has no such bucket, or refuses."""
        try:
            yield StorageSource(self.address)
        except (FileNotFoundError, PermissionError) as error:
            raise StorageSource.unreachable(self.address, error) from error

    def read_plan(self) -> ExtractionPlan:
        """Return the plan; raises as `ExtractionPlan.read`."""
        with self.reached() as storage:
            return ExtractionPlan.load(
                lambda: storage.read(PLAN.encode()), f"{self.address}/{PLAN}"
            )

    def write_plan(self, plan: ExtractionPlan) -> None:
        self.write(PLAN, plan.to_bytes())

    def _plan_of(self, fill: CacheFill) -> ExtractionPlan | None:
        """Return the plan, if there is one; raises CannotCreateError for that of another cache."""
        try:
            plan = self.read_plan()
        except NoInputError:
            return None
        except BadDataError as error:  # another version
            log.warning("%s", error)
            return None
        if (plan.spec, plan.document["set"]) != (fill.spec, fill.document["set"]):
            raise CannotCreateError(
                f"{printable(self.address)} contains the plan of another cache, of "
                f"{printable(plan.document['set'])} with {plan.spec.base}: choose another --shared"
            )
        return plan

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that it exists as a whole or not at all."""
        if self._folder:
            make_folder(self._folder)
            write_durably(self._folder / name, lambda file: file.write(data))
        else:
            self._writer.write(name.encode(), data)

    def shards(self) -> list[str]:
        """Return the names of the shards: not of caches, which would be deleted as published."""
        with self.reached() as storage:
            names = [os.fsdecode(path) for path in storage.list()]
        return sorted(name for name in names if SHARD_NAME.fullmatch(name))

    def fetch(self, fill: CacheFill) -> list[str]:
        """Copy the plan and the shards of a cache beside it; return the names of the shards."""
        local = ShardFolder(fill.path, fill.spec)
        if plan := self._plan_of(fill):
            plan.write(local.path)

        def copy(name: str) -> bool:
            if not (local.path / name).exists():
                try:
                    data = storage.read_range(name.encode(), 0, storage.stat(name.encode()).size)
                except FileNotFoundError:  # another process has just published and deleted it
                    return False
                if not local.read_stream(io.BytesIO(data), local.path / name):
                    return False
                local.write(name, data)
            return True

        names = self.shards()
        with self.reached() as storage, ThreadPoolExecutor(THREADS) as pool:
            names = [
                name for name, copied in zip(names, pool.map(copy, names), strict=True) if copied
            ]
        if names:
            log.info("%s from %s", counted(len(names), "shard"), printable(self.address))
        return names

    def remove_published(self, fill: CacheFill, fetched: Sequence[str]) -> None:
        """Delete the fetched shards that publishing has deleted beside the cache, and the plan."""
        folder = ShardFolder(fill.path, fill.spec).path
        needed = [name for name in fetched if (folder / name).exists()]
        with self.reached() as storage:
            for name in {*fetched} - {*needed}:
                storage.remove(name.encode())
            if not needed:
                storage.remove(PLAN.encode())


class SharedShards(ShardFolder):
    """The shards in a shared folder; nothing is written to the disk of this machine."""

    is_on_disk = False

    def __init__(self, folder: SharedFolder, plan: ExtractionPlan) -> None:
        augmentation = plan.views.to_document().get("augmentation")
        super().__init__(Path(PLAN), plan.spec, augmentation)
        self._folder = folder

    def read(self, *, verify: bool = True) -> list[Shard]:
        """Return the shards of this spec; ``verify`` has no effect: no features are read."""

        def read(name: str) -> Shard | None:
            try:
                stream = storage.open(name.encode(), read_ahead=READ_AHEAD)
            except FileNotFoundError:  # another process has just published and deleted it
                return None
            with stream:
                return self.read_stream(stream, self.path / name)

        with self._folder.reached() as storage, ThreadPoolExecutor(THREADS) as pool:
            return [shard for shard in pool.map(read, self._folder.shards()) if shard]

    def write(self, name: str, data: bytes) -> None:
        self._folder.write(name, data)
