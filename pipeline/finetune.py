"""``python -m pipeline.finetune``: train the last layers of a base on cached feature maps."""

import argparse
from collections.abc import Sequence

from pipeline import cli
from pipeline.bases.config import BATCH_SIZE, BaseConfig
from pipeline.cache.config import AugmentConfig, ExtractConfig
from pipeline.config import path_argument
from pipeline.errors import UsageError
from pipeline.finetuning.config import FinetuneConfig, check_trainable
from pipeline.images.config import LabelConfig
from pipeline.spec import CLASSES
from pipeline.text import printable


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train, print the results."""
    parser = cli.parser(
        command="finetune",
        summary="Train a head and the last layers of a base on cached feature maps.",
        example="python -m pipeline.finetune data/pets --unfreeze block5_conv1 --views 4",
    )
    add_options(parser, FinetuneConfig)
    arguments = parser.parse_args(argv)
    from pipeline.evaluation.table import named_columns
    from pipeline.images.sets import open_set

    config = cli.config_from(arguments, FinetuneConfig, extract=extract_config(arguments))
    # Mistakes are reported before TensorFlow is loaded.
    images = open_set(arguments.data, config.extract)
    if images.task != CLASSES:
        raise UsageError(f"finetune needs classes; {printable(images.root)} is {images.task}")
    named_columns(arguments.columns)  # so does this
    from pipeline.finetuning.run import finetune

    with (
        cli.ProgressBar("extracting", unit="row") as extract_progress,
        cli.StageProgressBar(unit="row") as train_progress,
    ):
        comparison, folder = finetune(
            arguments.data,
            config,
            results=arguments.out,
            command=cli.command_line("pipeline.finetune", argv),
            smoothing=arguments.smooth,
            save=arguments.save,
            extract_progress=extract_progress,
            train_progress=train_progress,
        )
    cli.print_comparison(comparison, folder, as_json=arguments.json, columns=arguments.columns)


def extract_config(arguments: argparse.Namespace) -> ExtractConfig:
    """Return the base and the augmentation of parsed arguments."""
    check_trainable(arguments.base)  # before its file is opened
    base = cli.config_from(arguments, BaseConfig, batch_size=BATCH_SIZE, seed=0)
    augmentation = cli.augmentation_of(arguments, seed=arguments.view_seed)
    labels = cli.config_from(arguments, LabelConfig)
    return ExtractConfig(**vars(base), **vars(labels), augmentation=augmentation)


def add_options(parser: argparse.ArgumentParser, config: type[FinetuneConfig]) -> None:
    """Add the image folder and every option of a training to a parser."""
    parser.add_argument(
        "data", type=path_argument, help="image folder or manifest, as for pipeline.extract"
    )
    cli.add_options(parser, config)
    cli.add_options(parser, BaseConfig, exclude=("batch_size", "seed"))
    cli.add_options(parser, LabelConfig)
    cli.add_options(parser, AugmentConfig)
    parser.add_argument("--view-seed", type=int, default=0, metavar="N", help="seed of views")
    cli.add_options(parser, cli.RunConfig)


if __name__ == "__main__":
    cli.run(
        main, when_interrupted="interrupted; checkpoints are kept: run the same command to continue"
    )
