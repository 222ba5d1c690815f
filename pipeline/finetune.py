"""``python -m pipeline.finetune``: train the last layers of a base, too, reading only a cache."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.finetuning.settings import FINE_TUNING, HEAD, SCRATCH, Plan, Schedule
from pipeline.heads.settings import DenseSettings
from pipeline.text import printable


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, report."""
    arguments = _parser().parse_args(argv)
    from pipeline.finetuning.asked import FineTuning
    from pipeline.images.scan import scan_folder

    asked = FineTuning(
        data=arguments.data,
        method=arguments.method,
        base=arguments.base,
        unfreeze=arguments.unfreeze,
        image_size=arguments.image_size,
        weights=arguments.weights,
        preprocessing=arguments.preprocessing,
        resize=arguments.resize,
        views=arguments.views,
        augmentation=cli.augmentation_of(arguments, seed=arguments.view_seed),
        engine=arguments.engine,
        split=arguments.split,
        split_seed=arguments.split_seed,
        group=arguments.group,
        seed=arguments.seed,
        repeats=arguments.repeats,
        plan=_plan(arguments),
        cache_dir=arguments.cache_dir,
    )
    scan_folder(asked.data)  # a mistake there is told before TensorFlow is loaded
    from pipeline.finetuning.run import finetune

    words = sys.argv[1:] if argv is None else argv
    with (
        cli.ProgressBar("extracting", unit="row") as extracting,
        cli.StagedProgress(unit="row") as training,
    ):
        comparison, folder = finetune(
            asked,
            results=arguments.out,
            command=printable(shlex.join(["python", "-m", "pipeline.finetune", *words])),
            smoothing=arguments.smooth,
            save=arguments.save,
            extracting=extracting,
            training=training,
        )
    if arguments.json:
        cli.print_json(json.loads((folder / "results.json").read_text("utf-8")))
        return
    for notice in comparison.notices:
        print(f"note: {notice}")
    cli.print_table(comparison.results)
    print(f"\n{comparison.recommendation}\n")
    print(f"open {printable(folder / 'report.html')}")
    print(f"written to {printable(folder)}")


def _plan(arguments: argparse.Namespace) -> Plan:
    """How each stage is trained."""
    network = DenseSettings(units=arguments.units, dropout=arguments.dropout)
    stages = {
        name: Schedule(
            epochs=getattr(arguments, f"{flag}epochs") or usual.epochs,
            learning_rate=getattr(arguments, f"{flag}learning_rate") or usual.learning_rate,
            batch_size=arguments.batch_size,
            patience=arguments.patience,
        )
        for name, flag, usual in (
            ("head", "head_", HEAD),
            ("joint", "", FINE_TUNING),
            ("scratch", "", SCRATCH),
        )
    }
    return Plan(network=network, **stages)


def _parser() -> argparse.ArgumentParser:
    made = cli.parser(
        command="finetune",
        summary="Train the last layers of a base together with a head, from the cache of the maps "
        "that lie before them.",
        example="python -m pipeline.finetune data/pets --unfreeze block5_conv1 --views 4",
    )
    made.add_argument("data", type=Path, help="image folder, as for pipeline.extract")
    made.add_argument(
        "--method",
        default="boundary",
        choices=("boundary", "end_to_end", "scratch"),
        help="boundary: from the cache; the references: end_to_end, from the images, augmented "
        "anew in every epoch (the head alone, unless --unfreeze); scratch, the book's small "
        "convnet without a base (default: %(default)s)",
    )
    made.add_argument(
        "--unfreeze",
        metavar="LAYER",
        help="the first layer that learns (default: block5_conv1 of VGG16 and VGG19)",
    )
    made.add_argument(
        "--views",
        type=cli.count,
        metavar="K",
        help="augmented views of each training image, cached (default: none); the references draw "
        "a new one in every epoch, unless K is 0",
    )
    cli.add_base_options(made)
    cli.add_augmentation_options(made)
    training = made.add_argument_group("training", "defaults: Deep Learning with Python, 5.3")
    for flag, kind, metavar, text in (
        ("--head-epochs", cli.whole_number, "N", f"of the head alone ({HEAD.epochs})"),
        ("--epochs", cli.whole_number, "N", f"of all that learns ({FINE_TUNING.epochs})"),
        (
            "--head-learning-rate",
            cli.positive_number,
            "R",
            f"of the head alone ({HEAD.learning_rate:g})",
        ),
        (
            "--learning-rate",
            cli.positive_number,
            "R",
            f"of all that learns ({FINE_TUNING.learning_rate:g}; scratch "
            f"{SCRATCH.learning_rate:g})",
        ),
    ):
        training.add_argument(flag, type=kind, metavar=metavar, help=text)
    for flag, kind, default, text in (
        ("--patience", cli.whole_number, HEAD.patience, "epochs without a lower validation loss"),
        ("--batch-size", cli.whole_number, HEAD.batch_size, "rows a step"),
        ("--units", cli.whole_number, DenseSettings().units, "of the head's hidden layer"),
        ("--dropout", cli.fraction, DenseSettings().dropout, "before the head's output"),
    ):
        training.add_argument(
            flag, type=kind, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    training.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of initial weights, order and dropout"
    )
    training.add_argument(
        "--view-seed", type=int, default=0, metavar="N", help="another one draws other views"
    )
    training.add_argument(
        "--repeats", type=cli.whole_number, default=1, metavar="R", help="so many seeds"
    )
    judging = made.add_argument_group("how it is judged")
    judging.add_argument(
        "--split",
        metavar="A/B/C",
        help="train/validation/test shares of a set without such folders (60/20/20)",
    )
    judging.add_argument("--split-seed", type=int, default=0, metavar="N")
    judging.add_argument("--group", metavar="RULE", help="as for pipeline.classify")
    made.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="FOLDER")
    made.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s"
    )
    made.add_argument(
        "--save", choices=("all", "best", "none"), default="all", help="which models to keep"
    )
    made.add_argument(
        "--smooth",
        type=cli.fraction,
        default=0.8,
        metavar="F",
        help="moving average in the curves, 0 for none (default: %(default)s)",
    )
    made.add_argument("--json", action="store_true", help="print the results as JSON instead")
    return made


if __name__ == "__main__":
    cli.run(
        main,
        when_interrupted="interrupted; checkpoints are kept: run the same again to go on",
    )
