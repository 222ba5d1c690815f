"""Run the project's commands as a user does: in a process of their own."""

import subprocess
import sys
from pathlib import Path


def run_command(*arguments: str | Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """``python -m pipeline.<arguments>``; fails the test unless it ends with ``check``."""
    finished = subprocess.run(
        [sys.executable, "-m", f"pipeline.{arguments[0]}", *map(str, arguments[1:])],
        capture_output=True,
        text=True,
        check=False,
        errors="surrogateescape",
    )
    if check is not None:
        assert finished.returncode == check, f"exit {finished.returncode}\n{finished.stderr}"
    return finished


def modules_loaded_by(*arguments: str | Path) -> set[str]:
    """Top-level modules that a command has imported when it ends."""
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "finally: print('MODULES', *{name.split('.')[0] for name in sys.modules})\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, f"pipeline.{arguments[0]}", *map(str, arguments[1:])],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(finished.stdout.rpartition("MODULES")[2].split())


def assert_one_line(finished: subprocess.CompletedProcess[str]) -> str:
    """An expected failure: no traceback, nothing on stdout, one line that begins with error."""
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert finished.stderr.splitlines()[-1] == lines[0]
    return lines[0]
