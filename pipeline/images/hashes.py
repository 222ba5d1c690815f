"""Hash files, and store the digests in an index, as git does, to read only changed files again.

A stored digest is valid while size, mtime, ctime and inode are the same and both times are older
than the granularity of the clock, which could hide a change. A program can set mtime back, but not
ctime. Where ctime is not the change time (Windows), every file is hashed.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.durable import make_folder, write_durably
from pipeline.images.scan import Skipped

HASH_THREADS = 4
RACY_NS = 2_000_000_000  # 2 s: FAT has the coarsest clock of all file systems
HAS_CHANGE_TIME = os.name != "nt"

Entry = list[Any]  # size, mtime_ns, ctime_ns, inode, time of hashing (ns), digest (hexadecimal)


def hash_files(
    root: Path, paths: Iterable[bytes], *, index_folder: Path | None = None, rehash: bool = False
) -> tuple[dict[bytes, bytes], list[Skipped]]:
    """Return the SHA-256 of each file by path relative to ``root``, and the unreadable files."""
    name = hashlib.sha256(bytes(root)).hexdigest()[:16]
    index = None if index_folder is None else index_folder / f"{name}.json"
    stored = {} if index is None or rehash else _read_index(index)
    entries = dict(stored)  # a run with --limit-per-class keeps the other entries

    def digest(path: bytes) -> bytes | Skipped:
        name = os.fsdecode(path)
        try:
            entry = stored.get(name)
            if entry is None or not _is_unchanged(entry, root / name):
                entry = _hash_file(root / name)
        except OSError as error:
            return Skipped(path, f"cannot be read: {error.strerror}")
        entries[name] = entry
        return bytes.fromhex(entry[-1])

    paths = list(paths)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        results = dict(zip(paths, pool.map(digest, paths), strict=True))
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
        lengths = {(len(entry), len(bytes.fromhex(entry[5]))) for entry in entries.values()}
        if lengths <= {(6, 32)}:
            return dict(entries)
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        pass
    return {}


def _is_unchanged(entry: Entry, path: Path) -> bool:
    """Return whether a file is certainly the one that was hashed."""
    stat = path.stat()
    is_recent = max(stat.st_mtime_ns, stat.st_ctime_ns) + RACY_NS > entry[4]
    is_same = entry[:4] == [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return HAS_CHANGE_TIME and is_same and not is_recent


def _hash_file(path: Path) -> Entry:
    now = time.time_ns()
    with path.open("rb") as stream:
        stat = os.fstat(stream.fileno())
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, now, content]
