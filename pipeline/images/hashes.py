"""Remember the digests of files that have not changed, as git's index does.

A stored digest is trusted while size, mtime, ctime and inode are the same and neither time is so
recent that a change could hide behind the clock's granularity. A program can set mtime back, but
not ctime. Where ctime is no change time (Windows), every file is hashed.
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
RACY_NS = 2_000_000_000  # FAT's two seconds, the coarsest clock that a file system has
HAS_CHANGE_TIME = os.name != "nt"

Entry = list[Any]  # size, mtime_ns, ctime_ns, inode, when hashed (ns), digest (hexadecimal)


def hash_files(
    root: Path, paths: Iterable[bytes], *, index_folder: Path | None = None, rehash: bool = False
) -> tuple[dict[bytes, bytes], list[Skipped]]:
    """SHA-256 of each file, by its path relative to ``root``, in order; and unreadable files."""
    name = hashlib.sha256(bytes(root)).hexdigest()[:16]
    path = None if index_folder is None else index_folder / f"{name}.json"
    before = {} if path is None or rehash else _read(path)
    after: dict[str, Entry] = {}

    def digest(path: bytes) -> bytes | Skipped:
        name = os.fsdecode(path)
        try:
            entry = _trusted(before.get(name), root / name) or _hashed(root / name)
        except OSError as error:
            return Skipped(path, f"cannot be read: {error.strerror}")
        after[name] = entry
        return bytes.fromhex(entry[-1])

    paths = list(paths)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        results = dict(zip(paths, pool.map(digest, paths), strict=True))
    after = before | after  # a limited run knows of fewer files
    if path is not None and after != before:
        make_folder(path.parent)
        # escapes give names that are no UTF-8 their own bytes back
        text = json.dumps(after)
        write_durably(path, lambda file: file.write(text.encode()))
    digests = {path: found for path, found in results.items() if isinstance(found, bytes)}
    return digests, [found for found in results.values() if isinstance(found, Skipped)]


def _read(path: Path) -> dict[str, Entry]:
    """What was remembered; a damaged index is as good as none."""
    try:
        entries = json.loads(path.read_text())
        if all(
            len(bytes.fromhex(entry[5])) == 32 and len(entry) == 6 for entry in entries.values()
        ):
            return dict(entries)
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        pass
    return {}


def _trusted(entry: Entry | None, path: Path) -> Entry | None:
    """The entry, if the file is certainly the one that was hashed."""
    if entry is None or not HAS_CHANGE_TIME:
        return None
    stat = path.stat()
    recent = max(stat.st_mtime_ns, stat.st_ctime_ns) + RACY_NS > entry[4]
    same = entry[:4] == [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return entry if same and not recent else None


def _hashed(path: Path) -> Entry:
    now = time.time_ns()
    with path.open("rb") as stream:
        stat = os.fstat(stream.fileno())
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, now, content]
