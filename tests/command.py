"""Run the project's commands: in this process, or where the process matters in one of their own."""

import contextlib
import io
import logging
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

Finished = subprocess.CompletedProcess[str]


def run_command(*arguments: str | Path, check: int | None = 0) -> Finished:
    """``python -m pipeline.<arguments>`` in this process, which spares seconds of imports.

    Fails the test unless the command ends with the exit code ``check``.
    """
    code = 0
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True)
        for _ in range(2)
    )
    log = logging.getLogger("pipeline")
    handlers, level = list(log.handlers), log.level
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(
            sys, "argv", [f"pipeline.{arguments[0]}", *map(os.fspath, arguments[1:])]
        ),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "'pipeline", RuntimeWarning)  # of runpy: imported before
        try:
            runpy.run_module(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            log.handlers, log.level = handlers, level
    return _checked(
        Finished(
            list(arguments),
            code,
            *(each.buffer.getvalue().decode("utf-8", "surrogateescape") for each in (out, err)),
        ),
        check,
    )


def run_process(*arguments: str | Path, check: int | None = 0) -> Finished:
    """The same in a process of its own, as a user starts it."""
    finished = subprocess.run(
        [sys.executable, "-m", f"pipeline.{arguments[0]}", *map(str, arguments[1:])],
        capture_output=True,
        text=True,
        check=False,
        errors="surrogateescape",
    )
    return _checked(finished, check)


def _checked(finished: Finished, check: int | None) -> Finished:
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
