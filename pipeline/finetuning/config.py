"""`FinetuneConfig`: the options of fine-tuning, validated before anything is loaded or trained."""

from dataclasses import dataclass
from functools import partial

from pipeline.cache.config import ExtractConfig
from pipeline.config import (
    Config,
    count,
    documented,
    fraction,
    option,
    positive_number,
    whole_number,
)
from pipeline.errors import UsageError
from pipeline.evaluation.config import ClassifyConfig
from pipeline.heads.config import DenseConfig
from pipeline.spec import check_seed

USUAL_SPLIT = "60/20/20"  # of an image folder without split folders
FIRST_UNFROZEN = {"vgg16": "block5_conv1", "vgg19": "block5_conv1"}  # the book's last block


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Training with RMSprop and early stopping; raises UsageError for impossible values."""

    epochs: int
    learning_rate: float
    batch_size: int = 20  # the book's
    patience: int = 5  # epochs without a lower validation loss

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise UsageError(f"{name}: expected a whole number from 1; received {value}")
        if not 0 < self.learning_rate < 1:
            rate = self.learning_rate
            raise UsageError(f"learning_rate: expected above 0 and below 1; received {rate}")


# Deep Learning with Python, listings 5.18, 5.21 and 5.22
HEAD = Schedule(epochs=30, learning_rate=2e-5)
FINE_TUNING = Schedule(epochs=100, learning_rate=1e-5)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The network of the head and the training of each stage."""

    network: DenseConfig
    head: Schedule
    joint: Schedule


_training = partial(option, group="training: defaults: Deep Learning with Python, 5.3")
_judging = partial(option, group="how it is judged")
_NETWORK = DenseConfig()


@documented
@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """Options of fine-tuning; raises a `pipeline.errors.PipelineError` for invalid values."""

    extract: ExtractConfig = option(
        ExtractConfig(), flag="", help="the base, and what views are drawn from"
    )
    unfreeze: str | None = option(
        None,
        metavar="LAYER",
        help="the first layer that learns (default: block5_conv1 of VGG16 and VGG19)",
    )
    views: int = option(
        0,
        type=count,
        metavar="K",
        help="augmented views of each training image, cached (default: none)",
    )
    head_epochs: int = _training(
        HEAD.epochs, type=whole_number, metavar="N", help=f"of the head alone ({HEAD.epochs})"
    )
    epochs: int | None = _training(
        None, type=whole_number, metavar="N", help=f"of all that learns ({FINE_TUNING.epochs})"
    )
    head_learning_rate: float = _training(
        HEAD.learning_rate,
        type=positive_number,
        metavar="R",
        help=f"of the head alone ({HEAD.learning_rate:g})",
    )
    learning_rate: float | None = _training(
        None,
        type=positive_number,
        metavar="R",
        help=f"of all that learns ({FINE_TUNING.learning_rate:g})",
    )
    patience: int = _training(
        HEAD.patience,
        type=whole_number,
        metavar="N",
        help="epochs without a lower validation loss (default: %(default)s)",
    )
    batch_size: int = _training(
        HEAD.batch_size, type=whole_number, metavar="N", help="rows a step (default: %(default)s)"
    )
    units: int = _training(
        _NETWORK.units,
        type=whole_number,
        metavar="N",
        help="of the head's hidden layer (default: %(default)s)",
    )
    dropout: float = _training(
        _NETWORK.dropout,
        type=fraction,
        metavar="N",
        help="before the head's output (default: %(default)s)",
    )
    seed: int = _training(0, metavar="N", help="of initial weights, order and dropout")
    repeats: int = _training(1, type=whole_number, metavar="R", help="so many seeds")
    split: str | None = _judging(
        None,
        metavar="A/B/C",
        help="train/validation/test shares of a set without such folders (60/20/20)",
    )
    split_seed: int = _judging(0, metavar="N", help="another one divides otherwise")
    group: str | None = _judging(None, metavar="RULE", help="as for pipeline.classify")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        base = self.extract.network
        if not base.module:
            raise UsageError("--base pixels has no layers to train; choose a network")
        _ = self.first_unfrozen  # raises if there is no default
        _ = self.classify_config(has_splits=self.split is None).evaluation_protocol  # may raise
        if self.views:
            from pipeline.cache.config import ViewPlan

            ViewPlan(self.views, self.extract.augmentation_ranges)

    @property
    def first_unfrozen(self) -> str:
        """The first trained layer of the base."""
        name = self.extract.network.name
        layer = self.unfreeze or FIRST_UNFROZEN.get(name)
        if not layer:
            raise UsageError(
                f"--unfreeze is missing: choose the first layer of {name} to train; "
                f"pipeline.extract --list-layers {name} lists them"
            )
        return layer

    @property
    def plan(self) -> Plan:
        """The training of each stage."""

        def stage(default: Schedule, epochs: int | None, learning_rate: float | None) -> Schedule:
            return Schedule(
                epochs=epochs or default.epochs,
                learning_rate=learning_rate or default.learning_rate,
                batch_size=self.batch_size,
                patience=self.patience,
            )

        return Plan(
            network=DenseConfig(units=self.units, dropout=self.dropout),
            head=stage(HEAD, self.head_epochs, self.head_learning_rate),
            joint=stage(FINE_TUNING, self.epochs, self.learning_rate),
        )

    def classify_config(self, *, has_splits: bool) -> ClassifyConfig:
        """Return the split of the images, without folds: each fold would need a training."""
        return ClassifyConfig(
            split=self.split or (None if has_splits else USUAL_SPLIT),
            group=self.group,
            split_seed=self.split_seed,
            seed=self.seed,
            repeats=self.repeats,
        )
