"""``python -m pipeline.classify``: train heads on cached features, write ``results/<run>/``."""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline import cli
from pipeline.config import flag_of, path_argument, whole_number
from pipeline.errors import UsageError
from pipeline.evaluation.config import ClassifyConfig
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import check_importable, parse_custom_head
from pipeline.text import counted, printable

if TYPE_CHECKING:
    from pipeline.evaluation.result import Comparison

T = TypeVar("T")

log = logging.getLogger("pipeline")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, compare heads, write and print the results."""
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
    for request in config.requests:  # a misspelt name raises before anything is loaded
        check_importable(request)
    if arguments.check and arguments.save == "none":
        raise UsageError("--check needs saved heads; received --save none. Leave out one of them")
    config.evaluation_protocol  # noqa: B018 - as above
    caches = _find_caches(arguments.caches, arguments.cache_dir)
    from pipeline.durable import check_writable
    from pipeline.evaluation.table import named_columns

    named_columns(arguments.columns)  # a misspelt name raises before the work
    check_writable(arguments.out)
    from pipeline.evaluation.caches import open_caches

    opened = open_caches(caches, config)
    named_columns(arguments.columns, opened[0].table.task)
    from pipeline.evaluation.compare import compare_on_caches  # seconds of scikit-learn
    from pipeline.report.run_folder import write_run

    with cli.StageProgressBar(unit="fit") as bar:
        comparison = compare_on_caches(opened, config, bar)
    folder = write_run(
        comparison,
        arguments.out,
        command=cli.command_line("pipeline.classify", argv),
        smoothing=arguments.smooth,
        save=arguments.save,
    )
    cli.print_comparison(comparison, folder, as_json=arguments.json, columns=arguments.columns)
    if arguments.check:
        _check_heads(comparison, folder, arguments)


def _check_heads(comparison: "Comparison", folder: Path, arguments: argparse.Namespace) -> None:
    """Predict test images from their files with every saved head; BadDataError if one differs."""
    import numpy as np

    from pipeline.models.bundle import load_bundle
    from pipeline.models.parity import check_parity
    from pipeline.models.runs import MODELS_FOLDER

    bundles = {path: load_bundle(path) for path in sorted((folder / MODELS_FOLDER).glob("*"))}
    if not bundles:
        raise UsageError("--check needs saved heads; none could be saved: see results.json")
    keys = np.concatenate([outcome.test.keys for outcome in comparison.outcomes])
    with cli.ProgressBar("checking", unit="image") as bar:
        parities = check_parity(
            list(bundles.values()),
            cache_dir=arguments.cache_dir,
            images=arguments.images,
            keys=keys,
            max_images=arguments.check_images,
            progress=bar,
        )
    show = log.info if arguments.json else print
    total = counted(len(np.unique(keys)), "test image")
    show(f"checked {parities[0].count:,} of {total}, from their files:")
    for path, parity in zip(bundles, parities, strict=True):
        show(f"  {printable(path.stem)}: {parity}")
    for path, parity in zip(bundles, parities, strict=True):
        parity.raise_for_difference(printable(path))


def _dense_grid(arguments: argparse.Namespace) -> list[DenseConfig]:
    """Return every combination of the dense head's options."""
    names = [field.name for field in fields(DenseConfig)]
    lists = [getattr(arguments, f"dense_{name}") for name in names]
    return [DenseConfig(**dict(zip(names, values, strict=True))) for values in product(*lists)]


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        command="classify",
        summary="Train and compare classifiers on cached features.",
        example="python -m pipeline.classify cache/pets-vgg16-*.h5 --heads logistic,dense",
    )
    parser.add_argument(
        "caches",
        nargs="*",
        type=path_argument,
        metavar="CACHE",
        help="cache files, image folders or sets (default: the cache of the last extract)",
    )
    parser.add_argument(
        "--cache-dir",
        type=path_argument,
        default=Path("cache"),
        metavar="FOLDER",
        help="folder of caches",
    )
    parser.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="MODULE:FACTORY",
        help="custom head, repeatable: a function that returns a scikit-learn estimator or, called "
        "with the numbers of features and classes, a Keras model",
    )
    cli.add_options(parser, ClassifyConfig)
    parser.add_argument("--verbose", action="store_true", help="show each epoch of the dense head")
    cli.add_options(parser, cli.RunConfig)
    check = parser.add_argument_group("check of saved heads")
    check.add_argument(
        "--check",
        action="store_true",
        help="predict test images from their files and compare with the evaluation",
    )
    check.add_argument(
        "--check-images",
        type=whole_number,
        default=200,
        metavar="N",
        help="maximum number of images, evenly spread",
    )
    check.add_argument(
        "--images", type=Path, metavar="FOLDER", help="folder with the images, if moved or renamed"
    )
    dense = parser.add_argument_group(
        "dense head", "defaults: Deep Learning with Python, 5.3; comma lists make a grid"
    )
    for field in fields(DenseConfig):
        dense.add_argument(
            flag_of(field),
            dest=f"dense_{field.name}",
            type=list_of(field.metadata["type"]),
            default=[field.default],
            metavar=field.metadata["metavar"],
            help=field.metadata["help"],
        )
    return parser


def list_of(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a function that parses a comma list: ``list_of(int)("1,2")`` -> ``[1, 2]``."""

    def parse(text: str) -> list[T]:
        return [kind(word) for word in text.split(",")]

    return parse


def _find_caches(names: Sequence[Path], folder: Path) -> list[Path]:
    """Return the named cache files, or those of named sets; by default that of the last extract."""
    from pipeline.cache.find import find_caches, latest_cache

    if names:
        return find_caches(folder, names)
    latest = latest_cache(folder)
    log.info("using the newest cache: %s", printable(latest))
    return [latest]


if __name__ == "__main__":
    cli.run(main)
