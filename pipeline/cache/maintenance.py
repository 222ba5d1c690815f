"""Looking after caches: what stands where, what is damaged, what can go."""

import csv
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.cache.checksums import (
    MAGIC,
    Damage,
    InvalidChecksumsError,
    find_damage,
    read_checksums,
    write_checksums,
    write_repaired,
)
from pipeline.cache.file import NO_FILE, FeatureTable, Source, cache_files, read_all_rows
from pipeline.cache.fill import SKIPPED_SUFFIX
from pipeline.cache.publish import DamagedRows, publish
from pipeline.cache.shards import writer_lock
from pipeline.durable import DiskFile, remove_file, remove_folder, write_durably
from pipeline.errors import BadDataError
from pipeline.images.scan import Skipped
from pipeline.text import counted, printable

CHECKPOINTS = "finetuning"  # the folder of states that a training goes on from
ABANDONED_AFTER = 30 * 86_400  # seconds: nobody will go on from such a state
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
LEFTOVER = re.compile(r"(.+)\.[0-9a-f]{8}\.tmp")  # what write_durably calls its temporaries


def verify_cache(path: Path) -> list[Damage]:
    """Check every byte of a cache file and its shards, then the rows; raises as `check_format`."""
    damages = [damage for _, damage in _shard_damages(path)]
    if not path.exists() and any(path.with_suffix(".parts").glob("*.h5")):
        return damages
    check_format(path)
    damages += find_damage(path)
    if not damages:
        damages += _contradictions(read_all_rows(path))
    return damages


def check_format(path: Path) -> None:
    """Raise NoInputError or BadDataError unless a file is a cache, perhaps a damaged one."""
    if path.is_file():
        with path.open("rb") as file:
            signed = file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(MAGIC)))
            if signed or file.read() == MAGIC:
                return
    read_all_rows(path)


def remove_damaged_shards(path: Path) -> list[Damage]:
    """Delete the shards beside a cache that are damaged: the next run computes their rows again."""
    found = list(_shard_damages(path))
    for shard in {shard for shard, _ in found}:
        remove_file(shard)
    return [damage for _, damage in found]


def _shard_damages(path: Path) -> Iterator[tuple[Path, Damage]]:
    """Each damaged place in the shards beside a cache, its words naming the shard."""
    for shard in sorted(path.with_suffix(".parts").glob("*.h5")):
        for damage in find_damage(shard):
            what = f"{shard.parent.name}/{shard.name}: {damage.what}"
            yield shard, Damage(damage.dataset, damage.rows, what)


def _contradictions(table: FeatureTable) -> Iterator[Damage]:
    """Rows that contradict one another although every byte is as it was written."""
    present = np.flatnonzero(table.columns.labels != NO_FILE)
    paths, views = table.columns.paths[present].tolist(), table.columns.views[present].tolist()
    for (path, view), count in Counter(zip(paths, views, strict=True)).items():
        if count > 1:
            of_view = f" of view {view}" * bool(view)
            yield Damage("paths", None, f"{printable(path)} has {count} rows{of_view}")
    for layer in table.layers:
        name = f"features/{layer}"
        for row in _unreadable_rows(table, layer):
            yield Damage(name, (row, row), f"{name}, row {row}: not finite")


def repair_metadata(path: Path) -> None:
    """Restore all but features from the seal, or seal anew; BadDataError if both are damaged."""
    try:
        read_checksums(path)
    except InvalidChecksumsError:
        read_all_rows(path)  # raises if HDF5 cannot make sense of the file either

        def reseal(file: DiskFile) -> None:
            with path.open("rb") as source:
                shutil.copyfileobj(source, file)
            write_checksums(file)

        write_durably(path, reseal, needs=path.stat().st_size)
        return
    if any(not damage.dataset.startswith("features/") for damage in find_damage(path)):
        write_durably(path, lambda file: write_repaired(path, file), needs=path.stat().st_size)


def bad_rows(path: Path, table: FeatureTable) -> DamagedRows:
    """Rows whose features are not what was written, by the seal and by HDF5's checksums."""
    bad = {layer: set(_unreadable_rows(table, layer)) for layer in table.layers}
    for damage in find_damage(path):
        if damage.rows and damage.dataset.startswith("features/"):
            rows = range(damage.rows[0], damage.rows[1] + 1)
            bad[damage.dataset.removeprefix("features/")].update(rows)
    return {layer: frozenset(rows) for layer, rows in bad.items()}


def _unreadable_rows(table: FeatureTable, layer: str) -> Iterator[int]:
    """Rows in chunks that fail HDF5's checksum; of images that are there, also those of NaN."""
    with h5py.File(table.path, "r") as file:
        dataset = file[f"features/{layer}"]
        step = dataset.chunks[0]
        for start in range(0, len(dataset), step):
            try:
                rows = dataset[start : start + step]
            except OSError:
                yield from range(start, min(start + step, len(dataset)))
                continue
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            for row in start + np.flatnonzero(~finite):
                if table.columns.labels[row] != NO_FILE:
                    yield int(row)


@dataclass(frozen=True)
class Prunable:
    path: Path
    size: int  # bytes
    reason: str
    gone_rows: int = 0


def find_prunable(folder: Path) -> list[Prunable]:
    """What is left of dead runs, deleted folders and images, and trainings nobody went on with."""
    found = [
        Prunable(path, path.stat().st_size, "half-written by a run that died")
        for path in sorted([*folder.glob("*"), *folder.glob("*/*")])
        if LEFTOVER.fullmatch(path.name)
    ]
    found += _abandoned_checkpoints(folder)
    for path in cache_files(folder):
        try:
            table = read_all_rows(path)
        except BadDataError:
            continue  # not ours to delete
        size = path.stat().st_size
        if not Path(table.document["root"]).is_dir():
            reason = f"its image folder {printable(table.document['root'])} is gone"
            found.append(Prunable(path, size, reason))
        elif gone := len(_rows_of_deleted_images(table)):
            share = size * gone // len(table)
            reason = f"{counted(gone, 'row')} of deleted images"
            found.append(Prunable(path, share, reason, gone))
    return found


def _abandoned_checkpoints(folder: Path) -> Iterator[Prunable]:
    for run in sorted((folder / CHECKPOINTS).glob("*/")):
        try:
            stats = [path.stat() for path in (run, *run.rglob("*"))]
        except FileNotFoundError:  # its training has just ended
            continue
        age = time.time() - max(each.st_mtime for each in stats)
        if age > ABANDONED_AFTER:
            reason = f"checkpoints of a training that stopped {age / 86_400:.0f} days ago"
            yield Prunable(run, sum(each.st_size for each in stats), reason)


def prune(item: Prunable) -> None:
    """Delete what `find_prunable` found; raises BusyError if an extraction uses it."""
    if item.path.is_dir():  # checkpoints; a training that takes them up makes them new
        shutil.rmtree(item.path)
        return
    if leftover := LEFTOVER.fullmatch(item.path.name):
        stem = leftover[1].removesuffix(".h5").removesuffix(SKIPPED_SUFFIX)
        in_parts = item.path.parent.suffix == ".parts"
        of_cache = item.path.parent if in_parts else item.path.with_name(f"{stem}.h5")
        with writer_lock(of_cache):
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
    """Rows whose file is not there any more; those outside a limit stay."""
    root = Path(table.document["root"])
    return [
        row
        for row in np.flatnonzero(table.columns.labels == NO_FILE).tolist()
        if not (root / os.fsdecode(table.columns.paths[row])).exists()
    ]


def skipped_files(path: Path) -> list[Skipped]:
    listed = path.with_suffix(SKIPPED_SUFFIX)
    try:
        with listed.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    return [Skipped(os.fsencode(row["path"]), row["reason"]) for row in rows]
