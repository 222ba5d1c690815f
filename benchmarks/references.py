"""``python -m benchmarks.references``: train the book's slow methods, for comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline import cli
from pipeline.config import count, documented, option
from pipeline.errors import UsageError
from pipeline.finetune import add_options, extract_config
from pipeline.finetuning.config import FinetuneConfig, Plan

if TYPE_CHECKING:
    from pipeline.images.views import Augmentation

SCRATCH_LEARNING_RATE = 1e-4  # Deep Learning with Python, listing 5.14


@documented
@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(FinetuneConfig):
    """Options of the reference methods."""

    method: str = option(
        "end_to_end",
        choices=("end_to_end", "scratch"),
        help="end_to_end: a head on the whole base, with --unfreeze also its last layers; scratch: "
        "the book's small convnet without a base",
    )
    unfreeze: str | None = option(
        None, metavar="LAYER", help="first layer to train (default: the head alone)"
    )
    views: int = option(
        1,
        type=count,
        metavar="K",
        help="0: no augmentation (default: a new view per image and epoch)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "scratch" and self.unfreeze:
            raise UsageError("--method scratch has no base; leave out --unfreeze")

    @property
    def augmentation(self) -> "Augmentation | None":
        """Augmentation of the training images; None if unaugmented."""
        return self.extract.augmentation_ranges if self.views else None

    @property
    def first_unfrozen(self) -> str:
        """First layer to train; empty for the head alone."""
        return self.unfreeze or ""

    @property
    def plan(self) -> Plan:
        """Schedule of each stage; a convnet from scratch uses the joint one."""
        plan = super().plan
        if self.method == "scratch" and self.learning_rate is None:
            return replace(plan, joint=replace(plan.joint, learning_rate=SCRATCH_LEARNING_RATE))
        return plan


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train, print the results."""
    parser = cli.parser(
        command="references",
        package="benchmarks",
        summary="Train on images with new views in every epoch: the book's slow methods, for "
        "comparison with pipeline.finetune. No model is saved.",
        example="python -m benchmarks.references data/pets --method scratch --epochs 30",
    )
    add_options(parser, ReferenceConfig)
    arguments = parser.parse_args(argv)
    from pipeline.images.scan import scan_folder

    config = cli.config_from(arguments, ReferenceConfig, extract=extract_config(arguments))
    scan_folder(arguments.data)  # reports mistakes before TensorFlow is loaded
    from benchmarks.reference_training import train_reference
    from pipeline.durable import check_writable
    from pipeline.finetuning.run import write_results

    check_writable(arguments.out)
    with cli.StageProgressBar(unit="row") as training:
        result = train_reference(arguments.data, config, training=training)
    augmentation = config.augmentation.to_dict() if config.augmentation else None
    comparison, folder = write_results(
        result,
        config,
        {"method": config.method, "views": bool(config.views), "augmentation": augmentation},
        results=arguments.out,
        command=cli.command_line("benchmarks.references", argv),
        smoothing=arguments.smooth,
        save=arguments.save,
    )
    cli.print_comparison(comparison, folder, as_json=arguments.json, columns=arguments.columns)


if __name__ == "__main__":
    cli.run(
        main, when_interrupted="interrupted; checkpoints are kept: run the same command to continue"
    )
