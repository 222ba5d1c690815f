"""Peak memory covers a process and its descendants."""

import subprocess
import sys

import pytest

from benchmarks.memory import MemoryWatch, ended_children_peak, own_peak, tree_memory

MEGABYTES = 60
HOLD = f"held = bytearray({MEGABYTES} * 2**20); held[::4096] = b'1' * len(held[::4096])"
# a small process with a large child, for a third of a second
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {HOLD + "; import time; time.sleep(0.35)"!r}], check=True)
"""

needs_proc = pytest.mark.skipif(tree_memory(1) is None, reason="needs Linux's /proc")


@needs_proc
def test_peak_includes_the_children_of_a_process() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", PARENT]) as process,
        MemoryWatch(process.pid) as watch,
    ):
        process.wait()
    assert process.returncode == 0
    assert watch.peak is not None
    assert MEGABYTES * 2**20 < watch.peak < 4 * MEGABYTES * 2**20


@needs_proc
def test_memory_of_an_ended_process_is_unknown() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert tree_memory(process.pid) is None


def test_own_peak_and_peak_of_children_are_known() -> None:
    code = f"{HOLD}; del held; from benchmarks.memory import own_peak; print(own_peak())"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    peak = int(finished.stdout)
    assert MEGABYTES * 2**20 < peak < 4 * MEGABYTES * 2**20
    children, own = ended_children_peak(), own_peak()
    assert children is not None
    assert own is not None
    assert children >= peak
