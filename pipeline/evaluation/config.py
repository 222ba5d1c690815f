"""`ClassifyConfig`: the options of a comparison, checked before anything is loaded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config, count, documented, option, positive_number, whole_number
from pipeline.errors import NoInputError, UsageError
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import PROTOCOLS, HeadRequest, groups, parse_heads
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.evaluation.protocol import EvaluationProtocol

STANDARD = "standard"  # the other protocols compare one head only

_heads = partial(option, group="heads")
_splitting = partial(option, group="train, validation and test split")
_evaluation = partial(option, group="evaluation")

DenseGrid = DenseConfig | Sequence[DenseConfig]
LabelFiles = Path | str | Sequence[Path | str]


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Config):
    """Options of the split, which a comparison and fine-tuning share."""

    split: str | None = _splitting(
        None, metavar="A/B/C", help="shares of train, validation and test, such as 60/20/20"
    )
    split_seed: int = _splitting(0, type=int, help="seed of the split or folds")
    group: str | None = _splitting(
        None,
        metavar="RULE",
        help="keep groups of images in one split: folder (below the class), a regular expression "
        "on the path, or a CSV file with the columns path and group (default: those of the cache)",
    )


@documented
@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(SplitConfig):
    """Options of a comparison: which heads, and how they are evaluated.

    Raises a `pipeline.errors.PipelineError` for invalid values.
    """

    heads: str | Iterable[str] | None = _heads(
        None,
        metavar="LIST",
        help=f"comma list of {', '.join(groups()['all'])}, fast or all (default: all); "
        "NAME:flat or NAME:pooled selects the input; docs/TASKS.md has those of labels and numbers",
    )
    normal: str | None = _heads(
        None,
        type=str,
        metavar="CLASS",
        help="class of normal images: all others become one class, 'not CLASS', and the head "
        "novelty, which learns from normal images alone, joins (docs/INSPECTION.md)",
    )
    layers: Sequence[str] = _heads(
        (), flag="--layer", metavar="NAME", help="cached layer to use, repeatable (default: all)"
    )
    views: int | None = _heads(
        None,
        type=count,
        metavar="K",
        help="cached augmented views per training image (default: all)",
    )
    balance: bool = _heads(False, help="weight classes equally, regardless of their size")
    timeout: float | None = _heads(
        None, type=positive_number, metavar="SECONDS", help="maximum time for one head on one split"
    )
    memory: float | None = _heads(
        None,
        type=positive_number,
        metavar="GB",
        help="maximum memory; features and fits that need more are read in blocks, fitted on a "
        "sample, or left out (default: three quarters of what is available)",
    )
    dense: DenseGrid = _heads(
        (), flag="", help="config or configs of the dense head (default: the book's)"
    )
    cv: int | None = _evaluation(
        None,
        type=whole_number,
        metavar="K",
        help="number of cross-validation folds (default: 5 for fewer than 2,000 images without "
        "split folders, else a single split)",
    )
    repeats: int = _evaluation(
        1, type=whole_number, metavar="R", help="number of seeds for stochastic heads and for folds"
    )
    refit: bool = _evaluation(False, help="retrain on train and validation before the test")
    protocol: str = _evaluation(
        STANDARD,
        choices=(STANDARD, *PROTOCOLS),
        help="kornblith: L2 logistic regression, 45 penalties, refit (Kornblith et al. 2019)",
    )
    tta: bool = _evaluation(
        False, help="test-time augmentation: average probabilities over cached views"
    )
    seed: int = _evaluation(0, type=int, help="seed of stochastic heads")
    labels: LabelFiles = _evaluation(
        (),
        metavar="FILE",
        help="corrected labels, an edited suspects.csv (columns new_label and drop); repeatable, "
        "later files override earlier ones",
    )
    audit: bool = _evaluation(
        True,
        flag="--no-audit",
        help="skip duplicates, label errors, learning curve and classes that are left out",
    )
    keep: bool = option(
        True, flag="", help="keep each row's classifier; after folds, one fitted on all images"
    )
    task: str | None = option(
        None,
        choices=(CLASSES, MULTILABEL, REGRESSION),
        help="expected task; stop if the caches are of another (default: that of the caches)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol in PROTOCOLS:
            if self.heads is not None:
                raise UsageError(
                    f"--protocol {self.protocol} compares one head, {self.protocol}; omit --heads"
                )
            object.__setattr__(self, "refit", True)
        if self.task not in (None, CLASSES):
            for flag, is_set in (
                ("--balance", self.balance),
                (f"--protocol {self.protocol}", self.protocol in PROTOCOLS),
                ("--labels", self.label_files),
                ("--normal", self.normal is not None),
            ):
                if is_set:
                    raise UsageError(f"{flag} is for classes; the cache is of {self.task}: omit it")
        if self.timeout is not None and self.timeout <= 0:
            raise UsageError(f"--timeout: expected above 0 seconds; received {self.timeout:g}")
        if self.memory is not None and self.memory <= 0:
            raise UsageError(f"--memory: expected above 0 GB; received {self.memory:g}")
        for path in self.label_files:
            if not path.exists():
                raise NoInputError(f"--labels {printable(path)} does not exist")
        if self.heads is not None and not isinstance(self.heads, str):
            object.__setattr__(self, "heads", tuple(self.heads))

    @property
    def dense_grid(self) -> tuple[DenseConfig, ...]:
        grid = (self.dense,) if isinstance(self.dense, DenseConfig) else tuple(self.dense)
        return grid or (DenseConfig(),)

    @property
    def label_files(self) -> list[Path]:
        files = [self.labels] if isinstance(self.labels, str | Path) else self.labels
        return [Path(each) for each in files]

    @property
    def requests(self) -> list[HeadRequest]:
        """The heads that are compared; raises UsageError for a name that is not of the task."""
        names = self.protocol if self.protocol in PROTOCOLS else self.heads or "all"
        return parse_heads(names, self.task, has_normal=self.normal is not None)

    @property
    def evaluation_protocol(self) -> "EvaluationProtocol":
        """How images are split; raises a PipelineError for invalid rules."""
        from pipeline.evaluation.protocol import EvaluationProtocol

        return EvaluationProtocol(
            folds=self.cv,
            split=self.split,
            group=self.group,
            split_seed=self.split_seed,
            seed=self.seed,
            repeats=self.repeats,
            has_normal=self.normal is not None,
        )
