"""Peak memory of a process and its descendants."""

import os
import sys
import threading
from pathlib import Path
from typing import Self

SECONDS_BETWEEN_SAMPLES = 0.1  # a sample takes about a millisecond


class MemoryWatch:
    """Sample the memory of a process tree in a thread while the ``with`` block runs.

    Attributes
    ----------
    peak : largest sum of resident bytes over the tree; shared pages count in each process. None on
        systems other than Linux.
    """

    def __init__(self, pid: int) -> None:
        self.peak: int | None = None
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            resident = tree_memory(self._pid)
            if resident is not None:
                self.peak = max(self.peak or 0, resident)
            if self._ended.wait(SECONDS_BETWEEN_SAMPLES):
                return


def tree_memory(pid: int) -> int | None:
    """Return the resident bytes of a process and its descendants; None if unknown."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # the process has ended, or this is not Linux
        return None
    total = resident * os.sysconf("SC_PAGE_SIZE")
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:  # the thread has ended
            continue
        total += sum(tree_memory(int(child)) or 0 for child in pids)
    return total


def own_peak() -> int | None:
    """Return the peak of this process's resident bytes; None if unknown (Windows)."""
    if sys.platform == "win32":
        return None
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return _resource_peak("RUSAGE_SELF")


def ended_children_peak() -> int | None:
    """Return the largest peak of the ended child processes; None if unknown (Windows)."""
    return None if sys.platform == "win32" else _resource_peak("RUSAGE_CHILDREN")


def _resource_peak(whose: str) -> int:
    import resource  # Unix only

    peak = resource.getrusage(getattr(resource, whose)).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
