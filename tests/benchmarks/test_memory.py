"""The memory of a process and its descendants is seen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory import MemoryWatch, ended_children_peak, own_peak, tree_memory

MEGABYTES = 60
HOLD = f"held = bytearray({MEGABYTES} * 2**20); held[::4096] = b'1' * len(held[::4096])"
# a process that is small itself and has a child that is not, for a third of a second
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {HOLD + "; import time; time.sleep(0.35)"!r}], check=True)
"""

needs_proc = pytest.mark.skipif(tree_memory(1) is None, reason="needs Linux's /proc")


@needs_proc
def test_peak_counts_the_children_of_a_process() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", PARENT]) as process,
        MemoryWatch(process.pid) as watch,
    ):
        process.wait()
    assert process.returncode == 0
    assert watch.peak is not None
    assert MEGABYTES * 2**20 < watch.peak < 4 * MEGABYTES * 2**20


@needs_proc
def test_a_process_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert tree_memory(process.pid) is None


def test_a_process_knows_its_own_peak_and_that_of_its_children() -> None:
    code = f"{HOLD}; del held; from benchmarks.memory import own_peak; print(own_peak())"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[2])},
    )
    seen = int(finished.stdout)
    assert MEGABYTES * 2**20 < seen < 4 * MEGABYTES * 2**20
    children, own = ended_children_peak(), own_peak()
    assert children is not None
    assert own is not None
    assert children >= seen
