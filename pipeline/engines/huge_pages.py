"""Memory in pages of 2 MB, where Linux has them but waits to be asked (``madvise``).

A network streams its weights and maps through the processor for every image; each page of 4 kB
costs a look-up. VGG16 in ncnn becomes 5 to 15 % faster.
"""

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PAGE = 2 << 20
MAPS, MODE = Path("/proc/self/maps"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ASK, _COLLAPSE = 14, 25  # MADV_HUGEPAGE; MADV_COLLAPSE moves what is there, from Linux 6.1 on


class Area(NamedTuple):
    """Addresses from ``start`` to before ``end``."""

    start: int
    end: int


def allocated() -> list[Area]:
    """The memory that this process has allocated by now, by address; empty if that is unknown."""
    found = []
    with contextlib.suppress(OSError), MAPS.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            addresses, permissions, _, _, inode, *name = line.split()
            if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
                start, end = addresses.split("-")
                found.append(Area(int(start, 16), int(end, 16)))
    return found


def use_huge_pages(before: Sequence[Area]) -> None:
    """Ask for what was allocated since: some tenths of a second for 0.3 GB.

    Nothing happens where there is no such thing, or the system says never.

    Parameters
    ----------
    before : what `allocated` said then; that memory may be anybody's and is left alone.
    """
    try:
        if "[never]" in MODE.read_text():
            return
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # not Linux
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for area in allocated():
        for start, end in _without(area, before):
            first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
            if first < last:
                madvise(first, last - first, _ASK)
                madvise(first, last - first, _COLLAPSE)


def _without(area: Area, others: Sequence[Area]) -> list[Area]:
    """What of an area lies in none of the others, which are in order."""
    left, start = [], area.start
    for other in others:
        if other.end > start and other.start < area.end:
            left.append(Area(start, other.start))
            start = other.end
    left.append(Area(start, area.end))
    return [each for each in left if each.start < each.end]
