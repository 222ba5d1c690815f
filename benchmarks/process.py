"""What is measured runs in processes: workers that wait for their turn, and plain commands."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.memory import MemoryWatch, ended_children_peak
from pipeline import errors
from pipeline.errors import StorageError


class Worker:
    """A side that waits in a process of its own until it is asked.

    Attributes
    ----------
    about : what the side tells of itself.
    peak : bytes of resident memory, the highest so far; None before it is asked, or if unknown.
    start_seconds : from the start of the process until it was ready.
    """

    def __init__(self, side: str, **settings: Any) -> None:
        started = time.perf_counter()
        self.side = side
        self.peak: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", side, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=_environment(),
        )
        try:
            self.about: Mapping[str, Any] = self._answer()["about"]
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - started

    def ask(self, **message: Any) -> dict[str, Any]:
        """Let it measure once; raises the PipelineError that it raised."""
        if self._process.stdin is None:
            raise StorageError(f"{self.side}: its process takes no questions")
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: its last answer, or none, says why
        answer = self._answer()
        self.peak = answer["peak"]
        measured: dict[str, Any] = answer["measured"]
        return measured

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise StorageError(
                f"the process that measures {self.side} ended without an answer; it may need more "
                f"memory than there is: see what it printed"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer

    def close(self) -> None:
        """End the process; its memory is free when this returns."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Finished:
    """A command that went well: its JSON, wall time, and the peak memory of its process tree."""

    document: dict[str, Any]
    seconds: float
    peak: int | None


def run_command(arguments: Sequence[str]) -> Finished:
    """``python -m pipeline.<arguments>``, from its start to its end.

    Raises StorageError with the command's own last line if it fails.
    """
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", f"pipeline.{arguments[0]}", *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
    ) as process:
        try:
            with MemoryWatch(process.pid) as watch:
                out, told = process.communicate()
        except BaseException:
            process.kill()
            raise
    seconds = time.perf_counter() - started
    if process.returncode:
        (*_, last) = told.decode(errors="replace").splitlines() or ["it said nothing"]
        raise StorageError(f"python -m pipeline.{arguments[0]} failed: {last}")
    return Finished(json.loads(out), seconds, watch.peak or ended_children_peak())


def _environment() -> dict[str, str]:
    """This process's own, with both packages on the import path."""
    here = os.fspath(Path(__file__).parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
