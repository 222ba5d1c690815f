"""Looking after caches: what stands where, what is damaged, what can go."""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.cache.file import NO_FILE, FeatureTable, cache_files, read_all_rows
from pipeline.cache.fill import SKIPPED_SUFFIX
from pipeline.cache.lock import writer_lock
from pipeline.cache.merge import Distrusted
from pipeline.cache.publish import Source, publish
from pipeline.cache.seal import (
    BrokenSeal,
    Damage,
    find_damage,
    read_seal,
    write_mended,
    write_seal,
)
from pipeline.durable import (
    TEMPORARY_SUFFIX,
    DiskFile,
    remove_file,
    remove_folder,
    write_durably,
)
from pipeline.errors import BadDataError
from pipeline.images.scan import Skipped
from pipeline.text import counted, printable


def verify_cache(path: Path) -> list[Damage]:
    """Check every byte of a cache file and of its shards, then what the rows say of themselves.

    Raises NoInputError if there is no such file, BadDataError if it is none of ours.
    """
    shards = sorted(path.with_suffix(".parts").glob("*.h5"))
    damages = [
        Damage(damage.dataset, damage.rows, f"{shard.parent.name}/{shard.name}: {damage.what}")
        for shard in shards
        for damage in find_damage(shard)
    ]
    if shards and not path.exists():
        return damages
    if not path.is_file():
        read_all_rows(path)  # says what it is instead
    damages += find_damage(path)
    if not damages:
        damages += _contradictions(read_all_rows(path))
    return damages


def _contradictions(table: FeatureTable) -> Iterator[Damage]:
    """Rows that contradict one another although every byte is as it was written."""
    present = np.flatnonzero(table.columns.labels != NO_FILE)
    for path, count in Counter(table.columns.paths[present].tolist()).items():
        if count > 1:
            yield Damage("paths", None, f"{printable(path)} has {count} rows")
    for layer in table.layers:
        name = f"features/{layer}"
        for row in _unreadable_rows(table, layer):
            yield Damage(name, (row, row), f"{name}, row {row}: not finite")


def mend_metadata(path: Path) -> None:
    """Restore all that is not features from the seal, or seal anew a file whose seal is damaged.

    Raises BadDataError if both are damaged.
    """
    try:
        read_seal(path)
    except BrokenSeal:
        read_all_rows(path)  # raises if HDF5 cannot make sense of the file either

        def reseal(file: DiskFile) -> None:
            with path.open("rb") as source:
                shutil.copyfileobj(source, file)
            write_seal(file)

        write_durably(path, reseal, needs=path.stat().st_size)
        return
    if any(not damage.dataset.startswith("features/") for damage in find_damage(path)):
        write_durably(path, lambda file: write_mended(path, file), needs=path.stat().st_size)


def bad_rows(path: Path, table: FeatureTable) -> Distrusted:
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
    """Something that can go: the path, its bytes, and why."""

    path: Path
    size: int
    reason: str
    gone_rows: int = 0


def find_prunable(folder: Path) -> list[Prunable]:
    """Temporary files of dead runs, caches of deleted image folders, rows of deleted images."""
    found = [
        Prunable(path, path.stat().st_size, "half-written by a run that died")
        for path in sorted([*folder.glob(f"*{TEMPORARY_SUFFIX}")])
    ]
    for path in cache_files(folder):
        try:
            table = read_all_rows(path)
        except BadDataError:
            continue  # not ours to delete
        size = path.stat().st_size
        if not Path(table.document["root"]).is_dir():
            reason = f"its image folder {printable(table.document['root'])} is gone"
            found.append(Prunable(path, size, reason))
        elif gone := int((table.columns.labels == NO_FILE).sum()):
            share = size * gone // len(table)
            reason = f"{counted(gone, 'row')} of images that are gone"
            found.append(Prunable(path, share, reason, gone))
    return found


def prune(item: Prunable) -> None:
    """Delete what `find_prunable` found; raises BusyError if a run uses it."""
    if item.path.suffix == TEMPORARY_SUFFIX:
        written = item.path.name.rsplit(".", 2)[0]  # without the random digits
        stem = written.removesuffix(".h5").removesuffix(SKIPPED_SUFFIX)
        with writer_lock(item.path.with_name(f"{stem}.h5")):
            remove_file(item.path)
        return
    with writer_lock(item.path):
        if item.gone_rows:
            _drop_gone_rows(item.path)
            return
        remove_folder(item.path.with_suffix(".parts"))
        remove_file(item.path.with_suffix(SKIPPED_SUFFIX))
        remove_file(item.path)
    remove_file(item.path.with_suffix(".lock"))


def _drop_gone_rows(path: Path) -> None:
    table = read_all_rows(path)
    present = np.flatnonzero(table.columns.labels != NO_FILE)
    sources = [Source(path, int(row)) for row in present]
    publish(
        path,
        document=table.document,
        classes=table.classes,
        columns=table.columns.take(present),
        layers={layer: (shape, sources) for layer, shape in table.layers.items()},
    )


def skipped_files(path: Path) -> list[Skipped]:
    """The files that a cache's last run skipped."""
    try:
        with path.with_suffix(SKIPPED_SUFFIX).open(
            newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            return [
                Skipped(os.fsencode(row["path"]), row["reason"]) for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
