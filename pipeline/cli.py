"""Shared by all commands: parser, options, log and progress on stderr, exit codes."""

import argparse
import contextlib
import difflib
import io
import json
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from pipeline.config import Config, flag_of, fraction, option, path_argument
from pipeline.errors import PipelineError, StorageError
from pipeline.text import counted, duration, printable

if TYPE_CHECKING:
    from pipeline.evaluation.result import Comparison
    from pipeline.images.views import Augmentation

EXIT_INTERRUPTED = 130
C = TypeVar("C", bound=Config)

SECONDS_BETWEEN_LINES = 10.0  # progress if stderr is not a terminal


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Options for the results of a comparison or training."""

    out: Path = option(
        Path("results"), metavar="FOLDER", help="parent of the run folder", group="results"
    )
    save: str = option(
        "all",
        choices=("all", "best", "none"),
        help="models to save for predict and export; best: the recommended one",
        group="results",
    )
    smooth: float = option(
        0.8,
        type=fraction,
        metavar="F",
        help="factor of the curves' moving average, 0 for none",
        group="results",
    )
    columns: str = option(
        "",
        metavar="LIST",
        help="comma list of the table's columns, such as head,test,log-loss (default: all)",
        group="results",
    )
    json: bool = option(False, help="print results.json instead of a table", group="results")


def parser(
    *, command: str, summary: str, example: str, package: str = "pipeline"
) -> argparse.ArgumentParser:
    """Return a parser whose ``--help`` has a summary, every default and an example."""
    made = _Parser(
        prog=f"python -m {package}.{command}",
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    made._negative_number_matcher = re.compile(r"-[\d.][\d.,eE+-]*$")  # --range -1024,3071
    return made


class _Parser(argparse.ArgumentParser):
    """Print an error as one line, with a suggestion instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        word, names = "", list(self._option_string_actions)
        if message.startswith("unrecognized arguments: -"):
            word = message.split()[2].partition("=")[0]
        elif choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            word, names = choice[1], re.findall(r"[\w-]+", choice[2])
        similar = difflib.get_close_matches(word, names, n=1)
        hint = f"; did you mean {similar[0]}?" if similar else "."
        for kind, expected in (("int", "a whole number"), ("float", "a number")):
            message = message.replace(f"invalid {kind} value:", f"expected {expected}, received")
        self.exit(2, f"error: {printable(message)}{hint} See {self.prog} --help\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Append the default to a help text, except for switches and texts that contain it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        has_value = isinstance(default, str | int | float | Path) and not isinstance(default, bool)
        if not has_value or default == argparse.SUPPRESS or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


def add_options(
    parser: argparse.ArgumentParser, config: type[Config], *, exclude: Collection[str] = ()
) -> None:
    """Add an option for each field of a config except ``exclude``; see `pipeline.config`."""
    groups: dict[str, Any] = {"": parser}
    for field in fields(config):
        flag = flag_of(field)
        if not flag or field.name in exclude:
            continue
        settings: dict[str, Any] = {"dest": field.name, "help": field.metadata["help"]}
        kind, group = field.metadata["type"], field.metadata["group"]
        if kind is bool:
            settings |= {"action": argparse.BooleanOptionalAction, "default": field.default}
        elif isinstance(field.default, bool):
            settings["action"] = "store_false" if field.default else "store_true"
        else:
            settings |= {"type": path_argument if kind is Path else kind, "default": field.default}
            settings |= {name: field.metadata[name] for name in ("choices", "metavar")}
        if field.default == ():
            settings |= {"action": "append", "default": []}
        if group not in groups:
            title, _, description = group.partition(": ")
            groups[group] = parser.add_argument_group(title, description or None)
        groups[group].add_argument(flag, **settings)


def augmentation_of(arguments: argparse.Namespace, *, seed: int) -> "Augmentation":
    """Return the augmentation that the options of `AugmentConfig` describe."""
    from pipeline.cache.config import AugmentConfig
    from pipeline.images.views import choose_augmentation

    return choose_augmentation(**vars(config_from(arguments, AugmentConfig)), seed=seed)


def config_from(arguments: argparse.Namespace, config: type[C], **values: Any) -> C:
    """Return a config of parsed arguments; ``values`` replace or complete them."""
    parsed = vars(arguments)
    names = [field.name for field in fields(config) if flag_of(field) and field.name in parsed]
    return config(**{name: parsed[name] for name in names} | values)


def command_line(module: str, argv: Sequence[str] | None) -> str:
    """Return the command as typed, escaped; ``argv`` is that of the process if it is None."""
    arguments = sys.argv[1:] if argv is None else argv
    return printable(shlex.join(["python", "-m", module, *arguments]))


def run(
    main: Callable[[Sequence[str] | None], None], *, when_interrupted: str = "interrupted"
) -> None:
    """Run a command and exit with its code; an expected failure is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without "–" shows its code point
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
    except KeyboardInterrupt as error:
        log.error("%s", str(error) or when_interrupted)
        if threading.active_count() > 1:  # they fit heads or compute batches: do not wait
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of stdout has ended, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno is None:
            raise
        where = f" {error.filename}" if error.filename else ""
        log.error("%s%s: check the disk and its permissions", error.strerror, where)
        sys.exit(StorageError.exit_code)


def print_comparison(
    comparison: "Comparison", folder: Path, *, as_json: bool, columns: str = ""
) -> None:
    """Print a run's table, recommendation and folder, or its results.json.

    ``columns`` as for `named_columns`; empty for all, or those that fit a terminal.
    """
    if as_json:
        print_json(json.loads((folder / "results.json").read_text("utf-8")))
        return
    from pipeline.evaluation import table

    results = comparison.results
    shown = table.named_columns(columns, comparison.task) or table.columns_of(results)
    for notice in comparison.notices:
        print(f"note: {notice}")
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(table.rich_table(results, shown, width=console.width))
        shown = table.fit_columns(shown, results, console.width)
    else:
        print(table.plain_table(results, shown))
    for line in table.legend(shown, results, recommends=comparison.recommends):
        print(line)
    print(f"\n{comparison.recommendation}")
    if comparison.findings is not None and comparison.findings.learning_curve is not None:
        print(f"{comparison.findings.learning_curve.sentence}.")
    print(f"\nopen {printable(folder / 'report.html')}")
    print(f"written to {printable(folder)}")


def print_json(document: Any) -> None:
    """Print one JSON document for programs."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8: JSON escapes round-trip
        text = json.dumps(document, indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")


class _StderrHandler(logging.StreamHandler[Any]):
    """Print plain lines on the current stderr: rich replaces it, to keep them above a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        kind = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return kind + super().format(record)


class ProgressBar:
    """Show the progress of a long step on stderr, with rate and time left: ``bar(done, total)``.

    Draw a bar if stderr is a terminal, else print a line every ten seconds.
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
        if self._first_done is None:  # the rate excludes rows of earlier runs
            self._first_done, self._started = done, now
        elapsed = now - self._started
        rate = (done - self._first_done) / elapsed if elapsed > 0 else 0.0
        speed = [f"{rate:.1f} {self.unit}s/s"] if rate >= 0.1 else []
        left = [f"{duration((total - done) / rate)} left"] if rate and done < total else []
        note = ", ".join(speed + left) or "starting"
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
            columns = (TextColumn(self.label), BarColumn(20), MofNCompleteColumn(), note_column)
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=total, note=note)
        self._bar.update(self._task, completed=done, total=total, note=note)
        if done >= total:  # another bar may follow
            self._bar.stop()


class StageProgressBar(contextlib.ExitStack):
    """Show a progress bar per stage of a training: ``progress(stage, done, total)``."""

    def __init__(self, *, unit: str) -> None:
        super().__init__()
        self._unit = unit
        self._bar: ProgressBar | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.label != stage:
            self.close()
            self._bar = self.enter_context(ProgressBar(stage, unit=self._unit))
        self._bar(done, total)
