"""Stage two: train heads on cached features, compare them, write results/<run>/."""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline import cli
from pipeline.errors import NoInputError, UsageError
from pipeline.heads.config import OPTIMIZERS, DenseConfig
from pipeline.heads.names import PROTOCOLS, groups, parse_custom_head, parse_heads
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
    if arguments.heads is not None:  # a misspelt name is told before anything is loaded
        parse_heads(arguments.heads)
    for own in arguments.head:
        parse_custom_head(own)
    if arguments.check and arguments.save == "none":
        raise UsageError("--check reruns saved heads, and --save none saves none: leave out one")
    from pipeline.evaluation.compare import compare_heads
    from pipeline.report.run_folder import check_writable, write_run

    check_writable(arguments.out)
    comparison = compare_heads(
        arguments.caches or [_newest_cache(arguments.cache_dir)],
        heads=_heads(arguments),
        layers=arguments.layer,
        cv=arguments.cv,
        repeats=arguments.repeats,
        split=arguments.split,
        split_seed=arguments.split_seed,
        group=arguments.group,
        refit=arguments.refit,
        protocol=arguments.protocol,
        balance=arguments.balance,
        timeout=arguments.timeout,
        labels=arguments.labels,
        seed=arguments.seed,
        dense=_dense_grid(arguments),
        look=arguments.look,
        keep=arguments.save != "none",
        views=arguments.views,
        tta=arguments.tta,
    )
    words = sys.argv[1:] if argv is None else argv
    folder = write_run(
        comparison,
        arguments.out,
        command=printable(shlex.join(["python", "-m", "pipeline.classify", *words])),
        smoothing=arguments.smooth,
        save=arguments.save,
    )
    if arguments.json:
        cli.print_json(json.loads((folder / "results.json").read_text("utf-8")))
    else:
        for notice in comparison.notices:
            print(f"note: {notice}")
        cli.print_table(comparison.results)
        print(f"\n{comparison.recommendation}")
        if comparison.findings is not None and comparison.findings.learning_curve is not None:
            print(f"{comparison.findings.learning_curve.sentence}.")
        print()
        print(f"open {printable(folder / 'report.html')}")
        print(f"written to {printable(folder)}")
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
    tests = [outcome.test for outcome in comparison.outcomes if outcome.test is not None]
    keys = np.concatenate([test.keys for test in tests])
    with cli.ProgressBar("checking", unit="image") as bar:
        found = check_parity(
            list(bundles.values()),
            cache_dir=arguments.cache_dir,
            keys=keys,
            most=arguments.check_images,
            progress=bar,
        )
    say = log.info if arguments.json else print
    total = counted(len(np.unique(keys)), "test image")
    say(f"checked {found[0].count:,} of {total}, from their files:")
    for path, parity in zip(bundles, found, strict=True):
        say(f"  {printable(path.stem)}: {parity}")
    for path, parity in zip(bundles, found, strict=True):
        parity.demand(printable(path))


def _heads(arguments: argparse.Namespace) -> list[str] | None:
    """What --heads and --head ask for; the latter alone stand alone."""
    listed = [] if arguments.heads is None else arguments.heads.split(",")
    return [*listed, *arguments.head] or None


def _dense_grid(arguments: argparse.Namespace) -> list[DenseConfig]:
    """Every combination of the widths, dropouts and learning rates that were given."""
    return [
        DenseConfig(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            units=units,
            dropout=dropout,
            learning_rate=rate,
            optimizer=arguments.optimizer,
        )
        for units, dropout, rate in product(
            arguments.units, arguments.dropout, arguments.learning_rate
        )
    ]


def _parser() -> argparse.ArgumentParser:
    book = DenseConfig()
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
    heads = parser.add_argument_group("heads")
    heads.add_argument(
        "--heads",
        metavar="LIST",
        help=f"comma list of {', '.join(groups()['all'])}, fast or all (default: all); NAME:flat or "
        "NAME:pooled chooses the input",
    )
    heads.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="MODULE:FACTORY",
        help="a head of your own: a function that returns a scikit-learn estimator or, called "
        "with the numbers of features and classes, a Keras model; repeatable",
    )
    heads.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="NAME",
        help="only this layer; repeatable (default: every cached layer)",
    )
    heads.add_argument(
        "--views",
        type=cli.count,
        metavar="K",
        help="learn from K cached augmented views of each training image, besides the image itself "
        "(default: all of them)",
    )
    heads.add_argument(
        "--balance", action="store_true", help="every class counts the same, however rare"
    )
    heads.add_argument(
        "--timeout",
        type=cli.positive_number,
        metavar="SECONDS",
        help="for one head on one division; beyond it its row says so",
    )
    judging = parser.add_argument_group("how they are judged")
    judging.add_argument(
        "--cv",
        type=cli.whole_number,
        metavar="K",
        help="cross-validate with K folds (default: 5 for fewer than 2,000 images without split "
        "folders, else one division)",
    )
    judging.add_argument(
        "--repeats",
        type=cli.whole_number,
        default=1,
        metavar="R",
        help="so many seeds for heads that draw at random, so many divisions into folds",
    )
    judging.add_argument(
        "--split",
        metavar="A/B/C",
        help="one division by train/validation/test shares, without such folders (60/20/20)",
    )
    judging.add_argument(
        "--split-seed", type=int, default=0, metavar="N", help="another division or other folds"
    )
    judging.add_argument(
        "--group",
        metavar="RULE",
        help="images that must not be parted: folder (below the class), a regular expression on "
        "the path, or a CSV file with the columns path and group",
    )
    judging.add_argument(
        "--refit",
        action="store_true",
        help="retrain the chosen setting on train and validation before the test",
    )
    judging.add_argument(
        "--protocol",
        choices=("standard", *PROTOCOLS),
        default="standard",
        help="kornblith: L2 logistic regression with 45 penalties, refit (Kornblith et al. 2019)",
    )
    judging.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: average the probabilities over all cached views of an image",
    )
    judging.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed repeats the table exactly"
    )
    judging.add_argument(
        "--labels",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="corrected labels: suspects.csv of a run, edited (columns new_label and drop); "
        "repeatable, later files win",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--no-look",
        dest="look",
        action="store_false",
        help="leave out duplicates, likely label errors and the learning curve",
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
        type=cli.whole_number,
        default=200,
        metavar="N",
        help="so many at most, evenly spread (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead")
    parser.add_argument("--verbose", action="store_true", help="show each epoch of the dense head")
    dense = parser.add_argument_group(
        "the dense head",
        "defaults: Deep Learning with Python, 5.3; lists of --units, --dropout and "
        "--learning-rate make a grid, trained in one pass",
    )
    for flag, kind, metavar in (
        ("--epochs", cli.whole_number, "N"),
        ("--batch-size", cli.whole_number, "N"),
        ("--units", several(cli.whole_number), "N,…"),
        ("--dropout", several(cli.fraction), "P,…"),
        ("--learning-rate", several(cli.positive_number), "R,…"),
    ):
        default = getattr(book, flag.strip("-").replace("-", "_"))
        dense.add_argument(
            flag,
            type=kind,
            default=str(default),  # argparse reads it like what is typed
            metavar=metavar,
            help="default: %(default)s",
        )
    dense.add_argument(
        "--optimizer", choices=OPTIMIZERS, default=book.optimizer, help="default: %(default)s"
    )
    dense.add_argument(
        "--smooth",
        type=cli.fraction,
        default=0.8,
        metavar="F",
        help="moving average in the curves, 0 for none (default: %(default)s)",
    )
    return parser


# argparse shows this name when a value is no number at all
def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A comma list of these."""

    def numbers(text: str) -> list[T]:
        return [kind(word) for word in text.split(",")]

    numbers.__name__ = f"comma list of {kind.__name__}"  # argparse shows it
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
