"""`FinetuneConfig`: the options of fine-tuning, validated before anything is loaded or trained."""

from dataclasses import dataclass
from functools import partial

from pipeline.bases.registry import PIXELS, check_layer, find_base
from pipeline.cache.config import ExtractConfig, ViewPlan
from pipeline.config import count, documented, fraction, option, positive_number, whole_number
from pipeline.errors import UsageError
from pipeline.evaluation.config import ClassifyConfig, SplitConfig
from pipeline.heads.config import DenseConfig
from pipeline.spec import check_seed

DEFAULT_SPLIT = "60/20/20"  # for an image folder without split folders
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
    """The network of the head, and the schedule of each stage."""

    network: DenseConfig
    head: Schedule
    joint: Schedule


def check_trainable(base: str) -> None:
    """Raise UsageError for a base without layers that can be trained."""
    if base.endswith(".onnx"):
        raise UsageError(
            f"--base {base} cannot be fine-tuned: ONNX Runtime only computes; choose a named base "
            f"or a .keras file"
        )
    if find_base(base).name == PIXELS:
        raise UsageError("--base pixels has no layers to train; choose a network")


_training = partial(option, group="training: defaults: Deep Learning with Python, 5.3")
_NETWORK = DenseConfig()


@documented
@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SplitConfig):
    """Options of fine-tuning; raises a `pipeline.errors.PipelineError` for invalid values."""

    extract: ExtractConfig = option(ExtractConfig(), flag="", help="base and augmentation")
    unfreeze: str | None = option(
        None,
        metavar="LAYER",
        help="first layer to train (default: block5_conv1 of VGG16 and VGG19)",
    )
    views: int = option(
        0, type=count, metavar="K", help="cached augmented views per training image"
    )
    head_epochs: int = _training(
        HEAD.epochs, type=whole_number, help="maximum epochs of the head alone"
    )
    epochs: int | None = _training(
        None,
        type=whole_number,
        help=f"maximum epochs of head and base (default: {FINE_TUNING.epochs})",
    )
    head_learning_rate: float = _training(
        HEAD.learning_rate,
        type=positive_number,
        metavar="R",
        help="learning rate of the head alone",
    )
    learning_rate: float | None = _training(
        None,
        type=positive_number,
        metavar="R",
        help=f"learning rate of head and base (default: {FINE_TUNING.learning_rate:g})",
    )
    patience: int = _training(
        HEAD.patience,
        type=whole_number,
        help="epochs without a lower validation loss before stopping",
    )
    batch_size: int = _training(HEAD.batch_size, type=whole_number, help="images per batch")
    units: int = _training(
        _NETWORK.units, type=whole_number, help="width of the head's hidden layer"
    )
    dropout: float = _training(
        _NETWORK.dropout, type=fraction, metavar="P", help="dropout rate before the head's output"
    )
    seed: int = _training(0, help="seed of initial weights, image order and dropout")
    repeats: int = _training(1, type=whole_number, metavar="R", help="number of seeds")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_trainable(self.extract.base)
        _ = self.first_unfrozen  # raises if there is no default
        _ = self.classify_config(has_splits=self.split is None).evaluation_protocol  # may raise
        if self.views:
            ViewPlan(self.views, self.extract.augmentation_ranges)  # raises for invalid views

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
        check_layer(self.extract.network, layer, "--unfreeze")
        return layer

    @property
    def plan(self) -> Plan:
        """The network and the schedules that these options describe."""

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
        """Return the options of the split, without folds: each fold would need a training."""
        return ClassifyConfig(
            split=self.split or (None if has_splits else DEFAULT_SPLIT),
            group=self.group,
            split_seed=self.split_seed,
            seed=self.seed,
            repeats=self.repeats,
        )
