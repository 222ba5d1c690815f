"""What the doors share: the parser's look, log and progress on stderr, errors to exit codes."""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pipeline.config import Config, flag_of
from pipeline.errors import PipelineError, StorageError
from pipeline.text import counted, duration, printable

if TYPE_CHECKING:
    from pipeline.evaluation.result import Comparison, Result
    from pipeline.images.views import Augmentation

EXIT_INTERRUPTED = 130
C = TypeVar("C", bound=Config)

SECONDS_BETWEEN_LINES = 10.0  # progress where stderr is a file: often enough to see it is alive


def parser(
    *, command: str, summary: str, example: str, package: str = "pipeline"
) -> argparse.ArgumentParser:
    """A parser whose ``--help`` says what the command does and shows it in use."""
    return argparse.ArgumentParser(
        prog=f"python -m {package}.{command}",
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_options(
    made: argparse.ArgumentParser, config: type[Config], *, leave_out: Collection[str] = ()
) -> None:
    """Add an option for each field of a config but those left out; see `pipeline.config`."""
    groups: dict[str, Any] = {"": made}
    for each in fields(config):
        flag = flag_of(each)
        if not flag or each.name in leave_out:
            continue
        settings: dict[str, Any] = {"dest": each.name, "help": each.metadata["help"]}
        kind, group = each.metadata["type"], each.metadata["group"]
        if kind is bool:
            settings |= {"action": argparse.BooleanOptionalAction, "default": each.default}
        elif isinstance(each.default, bool):
            settings["action"] = "store_false" if each.default else "store_true"
        else:
            settings |= {"type": kind, "default": each.default}
            settings |= {name: each.metadata[name] for name in ("choices", "metavar")}
        if each.default == ():
            settings |= {"action": "append", "default": []}
        if group not in groups:
            title, _, description = group.partition(": ")
            groups[group] = made.add_argument_group(title, description or None)
        groups[group].add_argument(flag, **settings)


def augmentation_of(arguments: argparse.Namespace, *, seed: int) -> "Augmentation":
    """The augmentation that the options of `pipeline.cache.config.AugmentConfig` describe."""
    from pipeline.cache.config import AugmentConfig
    from pipeline.images.views import choose_augmentation

    return choose_augmentation(**vars(config_from(arguments, AugmentConfig)), seed=seed)


def config_from(arguments: argparse.Namespace, config: type[C], **values: Any) -> C:
    """Make a config from parsed arguments; ``values`` replace or complete them."""
    named = vars(arguments)
    names = [each.name for each in fields(config) if flag_of(each) and each.name in named]
    return config(**{**{name: named[name] for name in names}, **values})


def run(
    main: Callable[[Sequence[str] | None], None], *, when_interrupted: str = "interrupted"
) -> None:
    """Run a door and leave with its exit code; an expected failure is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no "–" shows its code
            stream.reconfigure(errors="backslashreplace")
    log = logging.getLogger("pipeline")
    log.addHandler(_StderrHandler())
    log.setLevel(logging.INFO)
    try:
        main(None)
        sys.stdout.flush()
    except PipelineError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        log.error("%s", when_interrupted)
        if threading.active_count() > 1:  # heads that are being fitted, batches that are computed
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of stdout left (`| head`): nothing to tell anybody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" {error.filename}" if error.filename else ""
        log.error("%s%s: check the disk and its permissions", error.strerror, where)
        sys.exit(StorageError.exit_code)


def print_table(results: Sequence["Result"]) -> None:
    """The results table on stdout: drawn on a terminal, else plain."""
    from pipeline.evaluation.table import plain_table, rich_table

    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(rich_table(results, width=console.width))
    else:
        print(plain_table(results))


def print_comparison(comparison: "Comparison", folder: Path, *, as_json: bool) -> None:
    """What a run found: the table, what to use and where the run's folder is, or results.json."""
    if as_json:
        print_json(json.loads((folder / "results.json").read_text("utf-8")))
        return
    for notice in comparison.notices:
        print(f"note: {notice}")
    print_table(comparison.results)
    print(f"\n{comparison.recommendation}")
    if comparison.findings is not None and comparison.findings.learning_curve is not None:
        print(f"{comparison.findings.learning_curve.sentence}.")
    print(f"\nopen {printable(folder / 'report.html')}")
    print(f"written to {printable(folder)}")


def print_json(document: Any) -> None:
    """One JSON document on stdout, for programs."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a file name that is no UTF-8: JSON's own escapes round-trip
        text = json.dumps(document, indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")


class _StderrHandler(logging.StreamHandler[Any]):
    """Plain lines to whatever stderr is now: rich, while it draws a bar, puts them above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        kind = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return kind + super().format(record)


class ProgressBar:
    """How far a long step is, its rate and the time left, on stderr: ``bar(done, total)``.

    A bar where stderr is a terminal, else a line every ten seconds.
    """

    def __init__(self, label: str, *, unit: str) -> None:
        self.label = label
        self.unit = unit
        self._started = self._last_line = time.monotonic()
        self._first_done: int | None = None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first_done is None:  # rows that were there before must not count in the rate
            self._first_done, self._started = done, now
        elapsed = now - self._started
        rate = (done - self._first_done) / elapsed if elapsed > 0 else 0.0
        left = f", {duration((total - done) / rate)} left" if rate and done < total else ""
        note = f"{rate:.1f} {self.unit}s/s{left}" if rate else "starting"
        if sys.stderr.isatty():
            self._draw(done, total, note)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            line = f"{self.label}: {done:,} of {counted(total, self.unit)}, {note}"
            print(line, file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int, note: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            note_column = TextColumn("{task.fields[note]}")
            columns = (TextColumn(self.label), BarColumn(), MofNCompleteColumn(), note_column)
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=total, note=note)
        self._bar.update(self._task, completed=done, total=total, note=note)


class StageProgressBar(contextlib.ExitStack):
    """A progress bar for each stage of a training; called as ``progress(stage, done, total)``."""

    def __init__(self, *, unit: str) -> None:
        super().__init__()
        self._unit = unit
        self._bar: ProgressBar | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.label != stage:
            self.close()
            self._bar = self.enter_context(ProgressBar(stage, unit=self._unit))
        self._bar(done, total)
