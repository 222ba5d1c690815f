"""Count the CPU cores that this process can use."""

import math
import os
from functools import cache
from pathlib import Path

# Files with the CPU quota of a container: microseconds of computing per period in microseconds.
_QUOTA_FILES = (
    ("cpu.max",),  # quota and period, in control groups version 2
    ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
)
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@cache
def usable_cores() -> int:
    """Return the number of cores this process may use, by CPU affinity and container quota."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return math.ceil(min(cores, _container_quota(CONTROL_GROUPS)))


def _container_quota(folder: Path) -> float:
    """Return the number of cores that a container may use; infinity without a limit."""
    for names in _QUOTA_FILES:
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # no such file, or its quota is max
            continue
    return math.inf
