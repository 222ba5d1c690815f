"""Verify, repair and prune caches."""

import contextlib
import io
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.cache.checksums import (
    Damage,
    InvalidChecksumsError,
    find_damage,
    read_checksums,
    write_checksums,
    write_repaired,
)
from pipeline.cache.file import (
    MOVE_AWAY,
    NO_FILE,
    FeatureTable,
    RowKey,
    Source,
    cache_files,
    read_all_rows,
)
from pipeline.cache.fill import SKIPPED_SUFFIX
from pipeline.cache.hdf5 import describe_cut, length_before_cut, open_hdf5
from pipeline.cache.publish import publish
from pipeline.cache.row_index import DamagedRows
from pipeline.cache.shards import PLAN, writer_lock
from pipeline.cache.validation import COLUMN_DTYPES, OPTIONAL_COLUMNS, check_layout
from pipeline.durable import DiskFile, remove_file, remove_folder, write_durably
from pipeline.errors import BadDataError, BusyError, PipelineError
from pipeline.images.sets import is_gone, missing_folder, reopen_source
from pipeline.text import counted, printable

CHECKPOINTS = "finetuning"  # folder of training checkpoints
ABANDONED_AFTER = 30 * 86_400  # seconds: older checkpoints are rarely resumed
NO_CHECKSUMS = (
    "another program opened the file for writing or wrote it; it cannot be compared with what "
    "extract wrote"
)
TEMPORARY = re.compile(r"(.+)\.[0-9a-f]{8}\.tmp")  # the temporary names of write_durably


def verify_cache(path: Path) -> list[Damage]:
    """Check every byte of a cache and its shards, then the rows; raises like `find_file_damage`."""
    damages = [damage for _, damage in _shard_damages(path)]
    if not path.exists() and any(path.with_suffix(".parts").glob("*.h5")):
        return damages
    return damages + find_file_damage(path)


def find_file_damage(path: Path) -> list[Damage]:
    """Check every byte of a cache file, then the rows.

    Without checksums HDF5's own are checked. Raises NoInputError, BusyError, or BadDataError for a
    file that is not a cache or that nothing can repair.
    """
    if not path.is_file():
        read_all_rows(path)
    with contextlib.suppress(OSError):  # raises BusyError
        open_hdf5(path).close()
    try:
        read_checksums(path)
    except InvalidChecksumsError as error:
        if length := length_before_cut(path):
            _check_cut_off(path, length)
            return [Damage("", None, f"it is {describe_cut(path, length)}")]
        table = read_all_rows(path)
        what = f"{error}: {NO_CHECKSUMS}"
        return [*_find_invalid_rows(table), Damage("", None, what, is_lost=False)]
    return find_damage(path) or list(_find_invalid_rows(read_all_rows(path)))


def remove_damaged_shards(path: Path) -> list[Damage]:
    """Delete the damaged shards of a cache: the next run computes their rows again."""
    damages = list(_shard_damages(path))
    for shard in {shard for shard, _ in damages}:
        remove_file(shard)
    return [damage for _, damage in damages]


def _shard_damages(path: Path) -> Iterator[tuple[Path, Damage]]:
    """Yield each damage in the shards of a cache; its text names the shard."""
    for shard in sorted(path.with_suffix(".parts").glob("*.h5")):
        for damage in find_damage(shard):
            what = f"{shard.parent.name}/{shard.name}: {damage.what}"
            yield shard, Damage(damage.dataset, damage.rows, what)


def _find_invalid_rows(table: FeatureTable) -> Iterator[Damage]:
    """Yield duplicate rows, and rows that are unreadable or not finite."""
    columns = table.columns.take(np.flatnonzero(table.columns.labels != NO_FILE))
    pairs = zip(columns.paths.tolist(), columns.views.tolist(), strict=True)
    for (path, view), count in Counter(pairs).items():
        if count > 1:
            of_view = f" of view {view}" * bool(view)
            yield Damage("paths", None, f"{printable(path)} has {count} rows{of_view}")
    for layer in table.layers:
        name = f"features/{layer}"
        rows = np.array([*_unreadable_rows(table, layer)], np.int64)
        for block in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            if len(block):
                first, last = int(block[0]), int(block[-1])
                place = f"row {first}" if first == last else f"rows {first} to {last}"
                yield Damage(name, (first, last), f"{name}, {place}: unreadable or not finite")


def repair_metadata(path: Path) -> None:
    """Restore all but features, or write missing checksums; raises BadDataError if impossible."""
    try:
        read_checksums(path)
    except InvalidChecksumsError:
        length = length_before_cut(path)
        if length is None:
            read_all_rows(path)  # raises if HDF5 cannot read the file either
            length = path.stat().st_size

        def copy_with_checksums(file: DiskFile) -> None:
            with io.BufferedReader(_FilledUp(path, length)) as source:
                shutil.copyfileobj(source, file)
            write_checksums(file)

        write_durably(path, copy_with_checksums)
        return
    if any(not damage.dataset.startswith("features/") for damage in find_damage(path)):
        write_durably(path, lambda file: write_repaired(path, file))


class _FilledUp(io.FileIO):
    """A file at its length before it was cut off.

    Lost bytes are ``x``: chunks with them fail HDF5's checksum, which zeros pass.
    """

    def __init__(self, path: Path, length: int) -> None:
        super().__init__(path)
        self._length = length

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(self._length if whence == os.SEEK_END else offset)

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        view = memoryview(buffer)[: max(0, self._length - start)]
        count = super().readinto(view) or 0
        view[count:] = b"x" * (len(view) - count)
        self.seek(start + len(view))
        return len(view)


def _check_cut_off(path: Path, length: int) -> None:
    """Raise BadDataError if a cut-off file has lost more than features."""
    left = path.stat().st_size
    try:
        with _FilledUp(path, length) as stream, h5py.File(stream, "r") as file:
            check_layout(file)
            columns = [file[name] for name in (*COLUMN_DTYPES, *OPTIONAL_COLUMNS) if name in file]
            ends = [column.id.get_offset() + column.nbytes for column in columns]
            is_repairable = max(ends) <= left and all(
                rows.fletcher32 for rows in file["features"].values()
            )
    except Exception:  # h5py raises many types on damaged structures
        is_repairable = False
    if not is_repairable:
        raise BadDataError(
            f"{printable(path)} is {describe_cut(path, length)}; it lost too much to be repaired: "
            f"{MOVE_AWAY}"
        )


def damaged_rows(path: Path, table: FeatureTable) -> DamagedRows:
    """Return the rows whose features are damaged, by the file's checksums and by HDF5's."""
    damaged = {layer: set(_unreadable_rows(table, layer)) for layer in table.layers}
    for damage in find_damage(path):
        if damage.rows and damage.dataset.startswith("features/"):
            rows = range(damage.rows[0], damage.rows[1] + 1)
            damaged[damage.dataset.removeprefix("features/")].update(rows)
    return {layer: frozenset(rows) for layer, rows in damaged.items()}


def _unreadable_rows(table: FeatureTable, layer: str) -> Iterator[int]:
    """Yield rows in chunks that fail HDF5's checksum, and rows of existing images with NaN."""
    with open_hdf5(table.path) as file:
        dataset = file[f"features/{layer}"]
        size = dataset.chunks[0]
        for start in range(0, len(dataset), size):
            try:
                rows = dataset[start : start + size]
            except OSError as error:
                if error.errno:
                    raise
                yield from range(start, min(start + size, len(dataset)))
                continue
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            for row in start + np.flatnonzero(~finite):
                if table.columns.labels[row] != NO_FILE:
                    yield int(row)


@dataclass(frozen=True)
class Prunable:
    """A file, folder or rows that `prune` can delete."""

    path: Path
    size: int  # bytes
    reason: str
    gone_rows: int = 0


def find_prunable(folder: Path) -> list[Prunable]:
    """Find temporary files, abandoned checkpoints, and caches and rows of deleted images."""
    items = [
        Prunable(path, path.stat().st_size, "temporary file of a killed run")
        for path in sorted([*folder.glob("*"), *folder.glob("*/*")])
        if TEMPORARY.fullmatch(path.name)
    ]
    items += _abandoned_checkpoints(folder)
    items += _orphaned_shards(folder)
    tables: list[FeatureTable] = []
    for path in cache_files(folder):
        with contextlib.suppress(PipelineError):  # not a cache, damaged or open elsewhere: kept
            tables.append(read_all_rows(path))
    kept = [table for table in tables if not is_gone(table.document)]
    for table in tables:
        size = table.path.stat().st_size
        if gone_folder := missing_folder(table.document):
            reason = f"its image folder {printable(gone_folder)} is gone"
            reason += f"; {_describe_use(table, kept)}"
            items.append(Prunable(table.path, size, reason))
        elif gone := len(_rows_of_deleted_images(table)):
            share = size * gone // len(table)
            reason = f"{counted(gone, 'row')} of deleted images"
            items.append(Prunable(table.path, share, reason, gone))
    return items


def _describe_use(table: FeatureTable, kept: Sequence[FeatureTable]) -> str:
    """Return how many rows of a cache are in no other one, which `extract` would copy."""
    only_here: set[RowKey] = set()
    drawn = table.document.get("augmentation")
    for layer in table.layers:
        keys = set(table.columns.row_keys())
        for other in kept:
            if other.spec == table.spec and layer in other.layers:
                same_views = other.document.get("augmentation") == drawn
                keys -= {key for key in other.columns.row_keys() if same_views or not key.view}
        only_here |= keys
    if not only_here:
        return "other caches have all its rows"
    rows = counted(len(only_here), "row is", "rows are")
    return f"{rows} in no other cache: if the folder was moved, extract it there first"


def _orphaned_shards(folder: Path) -> Iterator[Prunable]:
    """Yield the shards without a cache file: of runs that have ended, or of a plan's parts."""
    for parts in sorted(folder.glob("*.parts")):
        if parts.is_dir() and not parts.with_suffix(".h5").exists():
            size = sum(path.stat().st_size for path in parts.iterdir())
            with contextlib.suppress(BusyError), writer_lock(parts):
                has_plan = (parts / PLAN).exists()  # its parts hold no lock
                what = "a plan whose parts may still run" if has_plan else "an interrupted run"
                yield Prunable(parts, size, f"{what}; the same extract continues it")


def _abandoned_checkpoints(folder: Path) -> Iterator[Prunable]:
    for run in sorted((folder / CHECKPOINTS).glob("*/")):
        try:
            stats = [path.stat() for path in (run, *run.rglob("*"))]
        except FileNotFoundError:  # a training has just deleted them
            continue
        age = time.time() - max(stat.st_mtime for stat in stats)
        if age > ABANDONED_AFTER:
            reason = f"checkpoints of a training that stopped {age / 86_400:.0f} days ago"
            yield Prunable(run, sum(stat.st_size for stat in stats), reason)


def prune(item: Prunable) -> None:
    """Delete an item of `find_prunable`; raises BusyError if an extraction uses it."""
    if item.path.suffix == ".parts":
        with writer_lock(item.path):
            remove_folder(item.path)
        remove_file(item.path.with_suffix(".lock"))
        return
    if item.path.is_dir():  # checkpoints, which a resumed training writes again
        shutil.rmtree(item.path)
        return
    if temporary := TEMPORARY.fullmatch(item.path.name):
        stem = temporary[1].removesuffix(".h5").removesuffix(SKIPPED_SUFFIX)
        in_parts = item.path.parent.suffix == ".parts"
        cache = item.path.parent if in_parts else item.path.with_name(f"{stem}.h5")
        with writer_lock(cache):
            remove_file(item.path)
        return
    with writer_lock(item.path):
        if item.gone_rows:
            table = read_all_rows(item.path)
            kept = np.setdiff1d(np.arange(len(table)), _rows_of_deleted_images(table))
            sources = [Source(item.path, int(row)) for row in kept]
            publish(
                item.path,
                document=table.document,
                classes=table.classes,
                columns=table.columns.take(kept),
                layers={layer: (shape, sources) for layer, shape in table.layers.items()},
            )
            return
        remove_folder(item.path.with_suffix(".parts"))
        remove_file(item.path.with_suffix(SKIPPED_SUFFIX))
        remove_file(item.path)
    remove_file(item.path.with_suffix(".lock"))


def _rows_of_deleted_images(table: FeatureTable) -> list[int]:
    """Return rows whose image file is deleted, not those outside --limit-per-class."""
    source = reopen_source(table.document)

    def exists(row: int) -> bool:
        try:
            return source is not None and source.stat(table.columns.paths[row]).size >= 0
        except FileNotFoundError:
            return False
        except OSError:
            return True

    return [
        row for row in np.flatnonzero(table.columns.labels == NO_FILE).tolist() if not exists(row)
    ]
