"""One process at a time writes a cache; a killed one frees the lock."""

import subprocess
import sys
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


def start_holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that already holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_second_writer_names_the_first_until_that_is_killed(tmp_path: Path) -> None:
    process = start_holder(tmp_path / "pets.h5", 60)
    with pytest.raises(BusyError, match=f"process {process.pid} on .* is writing"):
        writer_lock(tmp_path / "pets.h5").__enter__()
    with writer_lock(tmp_path / "cars.h5"):  # another cache is free
        assert process.poll() is None
    process.kill()
    process.wait()
    with writer_lock(tmp_path / "pets.h5"):
        pass


def test_waiting_writer_continues_when_the_holder_ends(tmp_path: Path) -> None:
    process = start_holder(tmp_path / "pets.h5", 0.1)
    with writer_lock(tmp_path / "pets.h5", wait=True):
        assert process.wait(timeout=10) == 0
