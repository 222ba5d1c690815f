"""``python -m pipeline.finetune``: train the last layers of a base, too, reading only a cache."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.bases.config import BATCH_SIZE, BaseConfig
from pipeline.cache.config import AugmentConfig, ExtractConfig
from pipeline.config import fraction
from pipeline.finetuning.config import FinetuneConfig
from pipeline.text import printable


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, report."""
    made = cli.parser(
        command="finetune",
        summary="Train the last layers of a base together with a head, from the cache of the maps "
        "that lie before them.",
        example="python -m pipeline.finetune data/pets --unfreeze block5_conv1 --views 4",
    )
    add_options(made, FinetuneConfig)
    arguments = made.parse_args(argv)
    from pipeline.images.scan import scan_folder

    config = cli.config_from(arguments, FinetuneConfig, extract=extract_config(arguments))
    scan_folder(arguments.data)  # a mistake there is told before TensorFlow is loaded
    from pipeline.finetuning.run import finetune

    words = sys.argv[1:] if argv is None else argv
    with (
        cli.ProgressBar("extracting", unit="row") as extract_progress,
        cli.StageProgressBar(unit="row") as train_progress,
    ):
        comparison, folder = finetune(
            arguments.data,
            config,
            results=arguments.out,
            command=printable(shlex.join(["python", "-m", "pipeline.finetune", *words])),
            smoothing=arguments.smooth,
            save=arguments.save,
            extract_progress=extract_progress,
            train_progress=train_progress,
        )
    cli.print_comparison(comparison, folder, as_json=arguments.json)


def extract_config(arguments: argparse.Namespace) -> ExtractConfig:
    """The base and the augmentation of parsed arguments."""
    base = cli.config_from(arguments, BaseConfig, batch_size=BATCH_SIZE, seed=0)
    augmentation = cli.augmentation_of(arguments, seed=arguments.view_seed)
    return ExtractConfig(**vars(base), augmentation=augmentation)


def add_options(made: argparse.ArgumentParser, config: type[FinetuneConfig]) -> None:
    """Add the image folder and every option of a training to a parser."""
    made.add_argument("data", type=Path, help="image folder, as for pipeline.extract")
    cli.add_options(made, config)
    cli.add_options(made, BaseConfig, leave_out=("batch_size", "seed"))
    cli.add_options(made, AugmentConfig)
    made.add_argument(
        "--view-seed", type=int, default=0, metavar="N", help="another one draws other views"
    )
    made.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s"
    )
    made.add_argument(
        "--save", choices=("all", "best", "none"), default="all", help="which models to keep"
    )
    made.add_argument(
        "--smooth",
        type=fraction,
        default=0.8,
        metavar="F",
        help="moving average in the curves, 0 for none (default: %(default)s)",
    )
    made.add_argument("--json", action="store_true", help="print the results as JSON instead")


if __name__ == "__main__":
    cli.run(
        main,
        when_interrupted="interrupted; checkpoints are kept: run the same again to go on",
    )
