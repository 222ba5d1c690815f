"""``python -m benchmarks.references``: train the book's slow methods, to measure against."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline import cli
from pipeline.config import count, documented, option
from pipeline.errors import UsageError
from pipeline.finetune import add_options, extract_config
from pipeline.finetuning.config import FinetuneConfig, Plan
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.images.views import Augmentation

SCRATCH_LEARNING_RATE = 1e-4  # Deep Learning with Python, listing 5.14


@documented
@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(FinetuneConfig):
    """What to train from the images themselves, and how."""

    method: str = option(
        "end_to_end",
        choices=("end_to_end", "scratch"),
        help="end_to_end: a head on the whole base, with --unfreeze its last layers, too; scratch: "
        "the book's small convnet without a base (default: %(default)s)",
    )
    unfreeze: str | None = option(
        None, metavar="LAYER", help="the first layer that learns (default: the head alone)"
    )
    views: int = option(
        1,
        type=count,
        metavar="K",
        help="0 trains without augmentation (default: a new view of "
        "each training image in every epoch)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "scratch" and self.unfreeze:
            raise UsageError("--unfreeze: --method scratch has no base; leave one of them out")

    @property
    def augmentation(self) -> "Augmentation | None":
        """What the views of training images are drawn from; None for the images as they are."""
        return self.extract.augmentation_ranges if self.views else None

    @property
    def first_unfrozen(self) -> str:
        """The first layer that learns, beside the head; empty for the head alone."""
        return self.unfreeze or ""

    @property
    def plan(self) -> Plan:
        """How each stage is trained; a convnet from scratch as all that learns."""
        plan = super().plan
        if self.method == "scratch" and self.learning_rate is None:
            return replace(plan, joint=replace(plan.joint, learning_rate=SCRATCH_LEARNING_RATE))
        return plan


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, report."""
    made = cli.parser(
        command="references",
        package="benchmarks",
        summary="Train from the images, augmented anew in every epoch: the book's slow methods, to "
        "measure pipeline.finetune against. No model is saved.",
        example="python -m benchmarks.references data/pets --method scratch --epochs 30",
    )
    add_options(made, ReferenceConfig)
    arguments = made.parse_args(argv)
    from pipeline.images.scan import scan_folder

    config = cli.config_from(arguments, ReferenceConfig, extract=extract_config(arguments))
    scan_folder(arguments.data)  # a mistake there is reported before TensorFlow is loaded
    from benchmarks.reference_training import train_reference
    from pipeline.finetuning.run import write_results
    from pipeline.report.run_folder import check_writable

    words = sys.argv[1:] if argv is None else argv
    check_writable(arguments.out)
    with cli.StageProgressBar(unit="row") as training:
        measured = train_reference(arguments.data, config, training=training)
    augmentation = config.augmentation.to_dict() if config.augmentation else None
    comparison, folder = write_results(
        measured,
        config,
        {"method": config.method, "views": bool(config.views), "augmentation": augmentation},
        results=arguments.out,
        command=printable(shlex.join(["python", "-m", "benchmarks.references", *words])),
        smoothing=arguments.smooth,
        save=arguments.save,
    )
    cli.print_comparison(comparison, folder, as_json=arguments.json)


if __name__ == "__main__":
    cli.run(
        main,
        when_interrupted="interrupted; checkpoints are kept: run the same command to continue",
    )
