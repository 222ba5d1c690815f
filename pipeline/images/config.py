"""`LabelConfig`: the options that say what the labels of a set are, and where they stand."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from pipeline.config import Config, flag_of, option
from pipeline.errors import UsageError
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION, UNLABELLED

ALL_COLUMNS = "all"  # of --label-columns

_labels = partial(option, group="labels: columns of a manifest (CSV, TSV, JSON Lines, Parquet)")
_column = partial(_labels, metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class LabelConfig(Config):
    """Options of `pipeline.images.sets.open_set`; raises UsageError for contradictions."""

    task: str | None = _labels(
        None,
        choices=(CLASSES, MULTILABEL, REGRESSION),
        help="multilabel: labels separated by |, or --label-columns; regression: a number "
        "(default: classes)",
    )
    unlabeled: bool = _labels(False, help="read no labels: features only, folders of any depth")
    root: Path | None = _labels(
        None, type=Path, metavar="FOLDER", help="folder of the paths (default: the manifest's)"
    )
    path_column: str | None = _column(None, help="image paths, or names without suffix")
    label_column: str | None = _column(None, help="labels (default: label)")
    label_columns: str | Sequence[str] | None = _labels(
        None, metavar="LIST", help="columns of 0 and 1, one per class: a comma list, or all"
    )
    split_column: str | None = _column(
        None, help="train, validation or test (default: split, if it exists; '' for none)"
    )
    group_column: str | None = _column(
        None, help="groups that a split keeps together (default: group, if it exists)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unlabeled and (flag := self.first_of("task", "label_column", "label_columns")):
            raise UsageError(f"--unlabeled reads no labels; received {flag}: omit one")
        if self.label_columns is not None and self.label_column is not None:
            raise UsageError("--label-column and --label-columns exclude each other: omit one")
        if self.label_columns is not None and self.task not in (None, MULTILABEL):
            raise UsageError(f"--label-columns needs --task multilabel; received {self.task}")

    @property
    def labels_are(self) -> str:
        """The task, one of `pipeline.spec.TASKS`."""
        if self.unlabeled:
            return UNLABELLED
        return self.task or (CLASSES if self.label_columns is None else MULTILABEL)

    def first_of(self, *names: str) -> str:
        """Return the option of the first of these fields that is set, or an empty string."""
        flags = {field.name: flag_of(field) for field in fields(self)}
        return next((flags[name] for name in names if getattr(self, name) is not None), "")
