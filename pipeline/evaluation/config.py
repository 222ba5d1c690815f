"""`ClassifyConfig`: the options of a comparison, checked before anything is loaded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config, count, documented, option, positive_number, whole_number
from pipeline.errors import UsageError
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import PROTOCOLS, HeadRequest, groups, parse_heads

if TYPE_CHECKING:
    from pipeline.evaluation.protocol import EvaluationProtocol

STANDARD = "standard"  # the other protocols compare one head only

_heads = partial(option, group="heads")
_judging = partial(option, group="how they are judged")

DenseGrid = DenseConfig | Sequence[DenseConfig]
LabelFiles = Path | str | Sequence[Path | str]


@documented
@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(Config):
    """Which heads are compared, and how they are judged.

    Raises a `pipeline.errors.PipelineError` for values that cannot be.
    """

    heads: str | Iterable[str] | None = _heads(
        None,
        metavar="LIST",
        help=f"comma list of {', '.join(groups()['all'])}, fast or all (default: all); "
        "NAME:flat or NAME:pooled chooses the input",
    )
    layers: Sequence[str] = _heads(
        (), flag="--layer", metavar="NAME", help="only this layer; repeatable (default: every one)"
    )
    views: int | None = _heads(
        None,
        type=count,
        metavar="K",
        help="learn from K cached augmented views of each training image, besides the image itself "
        "(default: all of them)",
    )
    balance: bool = _heads(False, help="every class counts the same, however rare")
    timeout: float | None = _heads(
        None,
        type=positive_number,
        metavar="SECONDS",
        help="for one head on one division; beyond it its row says so",
    )
    dense: DenseGrid = _heads(
        (), flag="", help="the dense head's config, or a grid of them (default: the book's)"
    )
    cv: int | None = _judging(
        None,
        type=whole_number,
        metavar="K",
        help="cross-validate with K folds (default: 5 for fewer than 2,000 images without split "
        "folders, else one division)",
    )
    repeats: int = _judging(
        1,
        type=whole_number,
        metavar="R",
        help="number of seeds for stochastic heads, and of divisions into folds",
    )
    split: str | None = _judging(
        None,
        metavar="A/B/C",
        help="one division by train/validation/test shares, without such folders (60/20/20)",
    )
    split_seed: int = _judging(0, type=int, metavar="N", help="another division or other folds")
    group: str | None = _judging(
        None,
        metavar="RULE",
        help="images that must not be parted: folder (below the class), a regular expression on "
        "the path, or a CSV file with the columns path and group",
    )
    refit: bool = _judging(
        False, help="retrain the chosen setting on train and validation before the test"
    )
    protocol: str = _judging(
        STANDARD,
        choices=(STANDARD, *PROTOCOLS),
        help="kornblith: L2 logistic regression with 45 penalties, refit (Kornblith et al. 2019)",
    )
    tta: bool = _judging(
        False,
        help="test-time augmentation: average the probabilities over all cached views of an image",
    )
    seed: int = _judging(0, type=int, metavar="N", help="the same seed repeats the table exactly")
    labels: LabelFiles = _judging(
        (),
        metavar="FILE",
        help="corrected labels: suspects.csv of a run, edited (columns new_label and drop); "
        "repeatable, later files win",
    )
    audit: bool = option(
        True,
        flag="--no-audit",
        help="leave out duplicates, likely label errors and the learning curve",
    )
    keep: bool = option(
        True, flag="", help="keep each row's classifier; after folds it is fitted on all rows"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol in PROTOCOLS:
            if self.heads is not None:
                raise UsageError(
                    f"--protocol {self.protocol} compares one head, {self.protocol}; omit --heads"
                )
            object.__setattr__(self, "refit", True)
        if self.timeout is not None and self.timeout <= 0:
            raise UsageError(f"--timeout is above 0 seconds; received {self.timeout:g}")
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
        """The heads that are compared; raises UsageError for an unknown name."""
        return parse_heads(self.protocol if self.protocol in PROTOCOLS else self.heads or "all")

    @property
    def evaluation_protocol(self) -> "EvaluationProtocol":
        """How images are divided; raises a PipelineError for rules that cannot be."""
        from pipeline.evaluation.protocol import EvaluationProtocol

        return EvaluationProtocol(
            folds=self.cv,
            split=self.split,
            group=self.group,
            split_seed=self.split_seed,
            seed=self.seed,
            repeats=self.repeats,
        )
