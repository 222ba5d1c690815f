"""Stage two: train heads on cached features, compare them, write results/<run>/."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import cli
from pipeline.errors import NoInputError
from pipeline.heads.registry import HEADS, parse_heads
from pipeline.heads.settings import OPTIMIZERS, DenseSettings
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.evaluation.result import Comparison

log = logging.getLogger("pipeline")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or the process's own."""
    arguments = _parser().parse_args(argv)
    if arguments.verbose:
        log.setLevel(logging.DEBUG)
    parse_heads(arguments.heads)  # a misspelt name is told before anything is loaded
    from pipeline.evaluation.compare import compare_heads
    from pipeline.report.run_folder import check_writable, write_run

    check_writable(arguments.out)
    comparison = compare_heads(
        arguments.caches or [_newest_cache(arguments.cache_dir)],
        heads=arguments.heads,
        layers=arguments.layer,
        split=arguments.split,
        split_seed=arguments.split_seed,
        seed=arguments.seed,
        dense=DenseSettings(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            units=arguments.units,
            dropout=arguments.dropout,
            learning_rate=arguments.learning_rate,
            optimizer=arguments.optimizer,
        ),
    )
    words = sys.argv[1:] if argv is None else argv
    folder = write_run(
        comparison,
        arguments.out,
        command=shlex.join(["python", "-m", "pipeline.classify", *words]),
        smoothing=arguments.smooth,
    )
    if arguments.json:
        sys.stdout.write((folder / "results.json").read_text("utf-8"))
    else:
        _print_table(comparison)
        print(f"\nwritten to {printable(folder)}")


def _parser() -> argparse.ArgumentParser:
    book = DenseSettings()
    parser = cli.parser(
        command="classify",
        summary="Train classifiers on cached features and compare them in a table.",
        example="python -m pipeline.classify cache/pets-vgg16-*.h5 --heads logistic,dense",
    )
    parser.add_argument(
        "caches", nargs="*", type=Path, metavar="CACHE", help="feature files (default: the newest)"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=Path("cache"),
        metavar="DIR",
        help="where to look for the newest (default: %(default)s)",
    )
    parser.add_argument(
        "--heads",
        default="all",
        metavar="LIST",
        help=f"comma list of {', '.join(HEADS)} or all; NAME:flat or NAME:pooled chooses the input",
    )
    parser.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="NAME",
        help="only this layer; repeatable (default: every cached layer)",
    )
    parser.add_argument(
        "--split",
        default="60/20/20",
        metavar="A/B/C",
        help="train/validation/test shares without such folders (default: %(default)s)",
    )
    parser.add_argument(
        "--split-seed", type=int, default=0, metavar="N", help="another division of these shares"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed repeats the table exactly"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead")
    parser.add_argument("--verbose", action="store_true", help="show each epoch of the dense head")
    dense = parser.add_argument_group("the dense head (defaults: Deep Learning with Python, 5.3)")
    for flag, kind, metavar in (
        ("--epochs", whole_number, "N"),
        ("--batch-size", whole_number, "N"),
        ("--units", whole_number, "N"),
        ("--dropout", fraction, "P"),
        ("--learning-rate", positive_number, "R"),
    ):
        default = getattr(book, flag.strip("-").replace("-", "_"))
        dense.add_argument(
            flag, type=kind, default=default, metavar=metavar, help="default: %(default)s"
        )
    dense.add_argument(
        "--optimizer", choices=OPTIMIZERS, default=book.optimizer, help="default: %(default)s"
    )
    dense.add_argument(
        "--smooth",
        type=fraction,
        default=0.8,
        metavar="F",
        help="moving average in curves.png, 0 for none (default: %(default)s)",
    )
    return parser


# argparse shows these names when a value is no number at all
def whole_number(text: str) -> int:
    """An integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text}")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text}")
    return value


def fraction(text: str) -> float:
    """A number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, received {text}")
    return value


def _newest_cache(folder: Path) -> Path:
    from pipeline.cache.file import cache_files

    newest = next(cache_files(folder), None)
    if newest is None:
        raise NoInputError(
            f"there is no feature cache in {folder}/; run python -m pipeline.extract first"
        )
    log.info("taking the newest cache: %s", newest)
    return newest


def _print_table(comparison: "Comparison") -> None:
    from pipeline.evaluation.table import plain_table, rich_table

    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(rich_table(comparison.results, width=console.width))
    else:
        print(plain_table(comparison.results))


if __name__ == "__main__":
    cli.run(main)
