"""Run the project's commands: in the test's process, which is fast, or in another one."""

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
    """Run ``python -m pipeline.<arguments>`` in this process, which saves seconds of imports.

    A name with a dot, such as ``benchmarks.references``, is a module's full name. Asserts that the
    exit code is ``check``, unless that is None.
    """
    code = 0
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True)
        for _ in range(2)
    )
    log = logging.getLogger("pipeline")
    handlers, level = list(log.handlers), log.level
    module = str(arguments[0]) if "." in str(arguments[0]) else f"pipeline.{arguments[0]}"
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", [module, *map(os.fspath, arguments[1:])]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # of runpy
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            log.handlers, log.level = handlers, level
    streams = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err))
    return _checked(Finished(list(arguments), code, *streams), check)


def run_process(*arguments: str | Path, check: int | None = 0) -> Finished:
    """Run ``python -m pipeline.<arguments>`` in another process, as a user does."""
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


def modules_loaded_by(*arguments: str | Path, check: int = 0) -> set[str]:
    """Return the top-level modules that a command imports; assert its exit code."""
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__')\n"
        f"except SystemExit as e: assert (e.code or 0) == {check}, e.code\n"
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
    """Return the error line; assert that it is the only one, without traceback or stdout."""
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert finished.stderr.splitlines()[-1] == lines[0]
    return lines[0]
