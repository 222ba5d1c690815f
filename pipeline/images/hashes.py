"""Hash files, and store the digests in an index, as git does, to read only changed files again.

A stored digest is valid while the source's version of the file (`FileStat`) is the same and older
than the granularity of the clock, which could hide a change. A file without a version is hashed.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.durable import make_folder, write_durably
from pipeline.images.scan import Skipped
from pipeline.images.source import MAX_FILE, ImageSource
from pipeline.text import file_size

HASH_THREADS = 4
BLOCK = 64  # files per task at most: a task takes as long as the check of several unchanged files
RACY_NS = 2_000_000_000  # 2 s: FAT has the coarsest clock of all file systems

Entry = list[Any]  # version of the file, time of hashing (ns), digest (hexadecimal)


def hash_files(
    source: ImageSource,
    paths: Iterable[bytes],
    *,
    index_folder: Path | None = None,
    rehash: bool = False,
) -> tuple[dict[bytes, bytes], list[Skipped]]:
    """Return the SHA-256 of each file of a source by path, and the unreadable files."""
    name = hashlib.sha256(os.fsencode(source.root)).hexdigest()[:16]
    index = None if index_folder is None else index_folder / f"{name}.json"
    stored = {} if index is None or rehash else _read_index(index)
    entries = dict(stored)  # a run with --limit-per-class keeps the other entries

    def digest(path: bytes) -> bytes | Skipped:
        name = os.fsdecode(path)
        try:
            now, entry = time.time_ns(), stored.get(name)
            status = source.stat(path)
            if status.size > MAX_FILE:
                return Skipped(path, f"too large for an image file: {file_size(status.size)}")
            is_same = entry is not None and entry[:-2] == list(status.version) != []
            if entry is None or not is_same or status.changed_ns + RACY_NS > entry[-2]:
                content = hashlib.sha256(source.read(path)).hexdigest()
                entry = [*status.version, now, content]
        except OSError as error:
            return Skipped(path, f"cannot be read: {error.strerror or error}")
        entries[name] = entry
        return bytes.fromhex(entry[-1])

    paths = list(paths)
    size = min(BLOCK, 1 + len(paths) // (8 * HASH_THREADS))
    blocks = [paths[start : start + size] for start in range(0, len(paths), size)]
    try:
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            found = pool.map(lambda block: [digest(path) for path in block], blocks)
            results = dict(zip(paths, chain.from_iterable(found), strict=True))
    finally:  # a run that loses its connection does not read these files again
        if index is not None and entries != stored:
            make_folder(index.parent)
            text = json.dumps(entries)  # its escapes keep the bytes of names that are not UTF-8
            write_durably(index, lambda file: file.write(text.encode()))
    digests = {path: result for path, result in results.items() if isinstance(result, bytes)}
    return digests, [result for result in results.values() if isinstance(result, Skipped)]


def _read_index(path: Path) -> dict[str, Entry]:
    """Read the stored entries; a missing or damaged index has none."""
    try:
        entries = json.loads(path.read_text())
        if all(type(e[-2]) is int and len(bytes.fromhex(e[-1])) == 32 for e in entries.values()):
            return dict(entries)
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        pass
    return {}
