"""Stage two: train heads on cached features, compare them, write results/<run>/."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline import cli
from pipeline.config import flag_of, fraction, whole_number
from pipeline.errors import NoInputError, UsageError
from pipeline.evaluation.config import ClassifyConfig
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import parse_custom_head
from pipeline.text import counted, printable

if TYPE_CHECKING:
    from pipeline.evaluation.result import Comparison

T = TypeVar("T")

log = logging.getLogger("pipeline")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or the process's own."""
    arguments = _parser().parse_args(argv)
    if arguments.verbose:
        log.setLevel(logging.DEBUG)
    heads = [*(arguments.heads.split(",") if arguments.heads else ()), *arguments.head]
    for custom in arguments.head:
        parse_custom_head(custom)
    config = cli.config_from(
        arguments,
        ClassifyConfig,
        heads=heads or arguments.heads,
        dense=_dense_grid(arguments),
        keep=arguments.save != "none",
    )
    config.requests  # noqa: B018 - a misspelt name is refused before anything is loaded
    if arguments.check and arguments.save == "none":
        raise UsageError("--check reruns saved heads, and --save none saves none: leave out one")
    from pipeline.evaluation.compare import compare_heads
    from pipeline.report.run_folder import check_writable, write_run

    check_writable(arguments.out)
    comparison = compare_heads(arguments.caches or [_newest_cache(arguments.cache_dir)], config)
    words = sys.argv[1:] if argv is None else argv
    folder = write_run(
        comparison,
        arguments.out,
        command=printable(shlex.join(["python", "-m", "pipeline.classify", *words])),
        smoothing=arguments.smooth,
        save=arguments.save,
    )
    cli.print_comparison(comparison, folder, as_json=arguments.json)
    if arguments.check:
        _check(comparison, folder, arguments)


def _check(comparison: "Comparison", folder: Path, arguments: argparse.Namespace) -> None:
    """Rerun test images from their files with every saved head; BadDataError where one differs."""
    import numpy as np

    from pipeline.models.bundle import load_bundle
    from pipeline.models.parity import check_parity
    from pipeline.models.runs import FOLDER

    bundles = {path: load_bundle(path) for path in sorted((folder / FOLDER).glob("*"))}
    if not bundles:
        raise UsageError(
            "--check reruns saved heads, and none could be saved: results.json has why"
        )
    keys = np.concatenate([outcome.test.keys for outcome in comparison.outcomes])
    with cli.ProgressBar("checking", unit="image") as bar:
        found = check_parity(
            list(bundles.values()),
            cache_dir=arguments.cache_dir,
            keys=keys,
            max_images=arguments.check_images,
            progress=bar,
        )
    say = log.info if arguments.json else print
    total = counted(len(np.unique(keys)), "test image")
    say(f"checked {found[0].count:,} of {total}, from their files:")
    for path, parity in zip(bundles, found, strict=True):
        say(f"  {printable(path.stem)}: {parity}")
    for path, parity in zip(bundles, found, strict=True):
        parity.raise_for_difference(printable(path))


def _dense_grid(arguments: argparse.Namespace) -> list[DenseConfig]:
    """Every combination of the dense head's options."""
    names = [each.name for each in fields(DenseConfig)]
    lists = [getattr(arguments, f"dense_{name}") for name in names]
    return [DenseConfig(**dict(zip(names, values, strict=True))) for values in product(*lists)]


def _parser() -> argparse.ArgumentParser:
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
        "--head",
        action="append",
        default=[],
        metavar="MODULE:FACTORY",
        help="a custom head: a function that returns a scikit-learn estimator or, called with the "
        "numbers of features and classes, a Keras model; repeatable",
    )
    cli.add_options(parser, ClassifyConfig)
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s"
    )
    saving = parser.add_argument_group("saving heads, for predict and export")
    saving.add_argument(
        "--save",
        choices=("all", "best", "none"),
        default="all",
        help="which to write into the run's models/; best is the recommended one (default: all)",
    )
    saving.add_argument(
        "--check",
        action="store_true",
        help="rerun test images from their files with every saved head: the predictions must be "
        "those that were measured",
    )
    saving.add_argument(
        "--check-images",
        type=whole_number,
        default=200,
        metavar="N",
        help="so many at most, evenly spread (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead")
    parser.add_argument("--verbose", action="store_true", help="show each epoch of the dense head")
    dense = parser.add_argument_group(
        "the dense head", "defaults: Deep Learning with Python, 5.3; comma lists make a grid"
    )
    for each in fields(DenseConfig):
        dense.add_argument(
            flag_of(each),
            dest=f"dense_{each.name}",
            type=several(each.metadata["type"]),
            default=[each.default],
            metavar=each.metadata["metavar"],
            help=each.metadata["help"],
        )
    dense.add_argument(
        "--smooth",
        type=fraction,
        default=0.8,
        metavar="F",
        help="moving average in the curves, 0 for none (default: %(default)s)",
    )
    return parser


def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A comma list of these."""

    def numbers(text: str) -> list[T]:
        return [kind(word) for word in text.split(",")]

    numbers.__name__ = f"comma list of {kind.__name__}"  # argparse shows it for what is no number
    return numbers


def _newest_cache(folder: Path) -> Path:
    from pipeline.cache.file import cache_files

    newest = next(cache_files(folder), None)
    if newest is None:
        raise NoInputError(
            f"there is no feature cache in {folder}/; run python -m pipeline.extract first"
        )
    log.info("taking the newest cache: %s", newest)
    return newest


if __name__ == "__main__":
    cli.run(main)
