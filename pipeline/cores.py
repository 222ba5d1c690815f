"""How many cores there are to share work out over."""

import math
import os
from functools import cache
from pathlib import Path

# The share of a container: microseconds of computing in so many of the clock.
_SHARES = (
    ("cpu.max",),  # both in one file, since control groups version 2
    ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
)
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@cache
def usable_cores() -> int:
    """How many cores this process may use: those it is pinned to, and a container's share."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return math.ceil(min(cores, _share(CONTROL_GROUPS)))


def _share(folder: Path) -> float:
    """Cores that a container may keep busy; without bounds where there is no such limit."""
    for names in _SHARES:
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # there is no such file; or it says max
            continue
    return math.inf
