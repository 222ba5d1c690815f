"""The peak memory of a process and all its descendants."""

import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

SECONDS_BETWEEN_LOOKS = 0.1  # a look takes about a millisecond


class MemoryWatch:
    """Watches a process tree from a thread while the ``with`` block runs.

    Attributes
    ----------
    peak : bytes of resident memory, the sum over the tree at its highest; pages that processes
        share count in each. None where the system does not tell (all but Linux).
    """

    def __init__(self, pid: int) -> None:
        self.peak: int | None = None
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            found = tree_memory(self._pid)
            if found is not None:
                self.peak = max(self.peak or 0, found)
            if self._ended.wait(SECONDS_BETWEEN_LOOKS):
                return


def tree_memory(pid: int) -> int | None:
    """Bytes of resident memory that a process and its descendants hold now; None if unknown."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # it has ended, or this is not Linux
        return None
    total = resident * os.sysconf("SC_PAGE_SIZE")
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # a thread that has ended
            continue
        total += sum(tree_memory(int(child)) or 0 for child in found)
    return total


def own_peak() -> int | None:
    """The most bytes of resident memory that this process ever held; None if unknown (Windows)."""
    if sys.platform == "win32":
        return None
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return _ever_held("RUSAGE_SELF")


def ended_children_peak() -> int | None:
    """The same of the largest child process that has ended so far; None if unknown (Windows)."""
    return None if sys.platform == "win32" else _ever_held("RUSAGE_CHILDREN")


def _ever_held(whose: str) -> int:
    import resource  # Unix alone has it

    held = resource.getrusage(getattr(resource, whose)).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held
