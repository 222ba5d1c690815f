"""Measure in other processes: workers that wait for requests, and commands."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.memory import MemoryWatch, ended_children_peak
from pipeline import errors
from pipeline.errors import StorageError


class Worker:
    """A process that measures one side on request.

    Attributes
    ----------
    about : facts about the side, such as its version.
    peak : peak of resident bytes so far; None before the first request, or if unknown.
    start_seconds : from the start of the process until it is ready.
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
        )
        try:
            self.about: Mapping[str, Any] = self._answer()["about"]
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - started

    def ask(self, **message: Any) -> dict[str, Any]:
        """Measure once; raise the PipelineError that the side raised."""
        requests = self._process.stdin
        if requests is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended: its last answer says why
                requests.write(json.dumps(message) + "\n")
                requests.flush()
        answer = self._answer()
        self.peak = answer["peak"]
        measured: dict[str, Any] = answer["measured"]
        return measured

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise StorageError(
                f"the process that measures {self.side} ended without an answer; it may be out of "
                f"memory: see its output"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer

    def close(self) -> None:
        """End the process and wait until its memory is free."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Finished:
    """Result of a command: its JSON, wall time and the peak memory of its process tree."""

    document: dict[str, Any]
    seconds: float
    peak: int | None


def run_command(arguments: Sequence[str]) -> Finished:
    """Run ``python -m pipeline.<arguments>``.

    Raises StorageError with the last line of the command's output if it fails.
    """
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", f"pipeline.{arguments[0]}", *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            with MemoryWatch(process.pid) as watch:
                out, err = process.communicate()
        except BaseException:
            process.kill()
            raise
    seconds = time.perf_counter() - started
    if process.returncode:
        (*_, last) = err.decode(errors="replace").splitlines() or ["no output"]
        raise StorageError(f"python -m pipeline.{arguments[0]} failed: {last}")
    return Finished(json.loads(out), seconds, watch.peak or ended_children_peak())
