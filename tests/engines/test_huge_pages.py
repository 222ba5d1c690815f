"""Memory in large pages holds what it held; what others allocated stays as it is."""

import mmap
import os
import re
import sys
from pathlib import Path

import pytest

from pipeline.engines import huge_pages
from pipeline.engines.huge_pages import MODE, PAGE, Area, allocated, use_huge_pages

PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform == "linux" else {}


def resident(kind: str) -> int:
    """Bytes of this process in memory, of a kind that Linux counts."""
    text = Path("/proc/self/smaps_rollup").read_text()
    (found,) = re.findall(rf"^{kind}:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found)


def moves_pages() -> bool:
    if sys.platform != "linux" or not MODE.exists() or "[never]" in MODE.read_text():
        return False
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 1)


needs_large_pages = pytest.mark.skipif(not moves_pages(), reason="needs Linux 6.1, large pages")


@needs_large_pages
def test_new_memory_moves_and_keeps_its_content() -> None:
    before = allocated()
    content = os.urandom(8 * PAGE)
    memory = mmap.mmap(-1, len(content), **PRIVATE)
    memory.write(content)
    large = resident("AnonHugePages")
    use_huge_pages(before)
    if "[madvise]" in MODE.read_text():  # else they were large from the start
        assert resident("AnonHugePages") - large > len(content) / 2
    assert memory[:] == content


@needs_large_pages
def test_memory_of_before_is_left_alone() -> None:
    memory = mmap.mmap(-1, 64 * PAGE, **PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for start in range(0, len(memory), PAGE):
        memory[start] = 1  # most of it was never touched, and takes no room
    memory.madvise(mmap.MADV_HUGEPAGE)
    before, used = allocated(), resident("Rss")
    use_huge_pages(before)
    assert resident("Rss") - used < 8 * PAGE


def test_parts_of_an_area_that_are_new() -> None:
    others = [Area(0, 10), Area(20, 30), Area(50, 60)]
    cut = huge_pages._without
    assert cut(Area(5, 55), others) == [Area(10, 20), Area(30, 50)]
    assert cut(Area(20, 30), others) == []
    assert cut(Area(40, 70), others) == [Area(40, 50), Area(60, 70)]
    assert cut(Area(70, 80), others) == [Area(70, 80)]


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "MAPS", Path("/nowhere"))
    assert allocated() == []
    monkeypatch.setattr(huge_pages, "MODE", Path("/nowhere"))
    use_huge_pages([])
