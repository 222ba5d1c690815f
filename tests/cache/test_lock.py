"""One writer a cache; a dead one holds nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cache.shards import writer_lock
from pipeline.errors import BusyError

HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from pipeline.cache.shards import writer_lock\n"
    "with writer_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(float(sys.argv[2]))\n"
)


def holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that holds the lock, and does so already."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_second_writer_is_told_which_process_holds_the_cache(tmp_path: Path) -> None:
    process = holder(tmp_path / "pets.h5", 60)
    with pytest.raises(BusyError, match=f"process {process.pid} on .* is writing"):
        writer_lock(tmp_path / "pets.h5").__enter__()
    process.kill()
    process.wait()


def test_killed_holder_frees_the_lock_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path / "pets.h5", 60)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with writer_lock(tmp_path / "pets.h5"):
        pass


def test_waiting_writer_goes_on_when_the_holder_ends(tmp_path: Path) -> None:
    process = holder(tmp_path / "pets.h5", 0.5)
    with writer_lock(tmp_path / "pets.h5", wait=True):
        assert process.wait(timeout=10) == 0


def test_other_caches_are_not_disturbed(tmp_path: Path) -> None:
    process = holder(tmp_path / "pets.h5", 60)
    started = time.monotonic()
    with writer_lock(tmp_path / "cars.h5"):
        assert process.poll() is None
    assert time.monotonic() - started < 50
    process.kill()
    process.wait()
