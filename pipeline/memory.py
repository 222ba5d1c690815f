"""The memory that this process may use, and how much it uses."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GB = 10**9
SHARE = 0.75  # of what is available: other programs, and the page cache, need the rest
CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_LIMIT_FILES = {"": "memory.max", "memory": "memory.limit_in_bytes"}  # of versions 2 and 1


def memory_budget(gigabytes: float | None = None) -> int:
    """Return the bytes that this process may use: three quarters of what it can have by default.

    Memory that the process uses already is part of it.
    """
    if gigabytes is not None:
        return int(gigabytes * GB)
    limits = [_available() + used_memory(), *_container_limits(CONTROL_GROUPS, OWN_GROUPS)]
    return int(SHARE * min(limits))


def used_memory() -> int:
    """Return the bytes of memory that this process has, without pages of files."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        try:
            import psutil
        except ImportError:
            return 0
        return int(psutil.Process().memory_info().rss)


def _available() -> int:
    """Return the bytes that programs can get without swapping; all that is installed elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {
            name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)
        }
        return 1024 * int(values["MemAvailable"])
    except (OSError, KeyError):
        pass
    if sys.platform == "win32":
        return _available_on_windows()
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _available_on_windows() -> int:
    import ctypes

    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
            (name, ctypes.c_uint64)
            for name in ("total", "available", "pages", "free_pages", "space", "free_space", "more")
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.available)


def _container_limits(root: Path, own_groups: Path) -> Iterator[int]:
    """Yield the limits of the control groups around this process, such as those of a container.

    Inside a container the path of its own group is often missing: then its limit is at the root.
    """
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in _LIMIT_FILES:
            continue
        top = root / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no such file, or its limit is max
                yield int((folder / _LIMIT_FILES[controllers]).read_text())
            if folder == top:
                break
