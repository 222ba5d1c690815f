"""What differs between two runs of the same images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.review.review import Review


@dataclass(frozen=True, kw_only=True)
class RowChange:
    """A head's rows of results.json in the old and the new run; None if it is in one run only."""

    head: str
    input: str
    layer: str
    cache: str
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class ImageChange:
    """An image whose label, prediction or correctness differs.

    Classes are names; None for no prediction, or for the label of an image that is not in the run.

    Attributes
    ----------
    row : in the old review's table, for its picture; -1 if it is in the new run only.
    was_correct, is_correct : None without prediction.
    """

    row: int
    path: bytes
    digest: bytes
    old_label: str | None
    new_label: str | None
    old_predicted: str | None
    new_predicted: str | None
    was_correct: bool | None
    is_correct: bool | None


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Rows in the order of the new table; images in the order of the old table.

    ``notices`` are one line each, such as that the test images differ.
    """

    rows: tuple[RowChange, ...]
    images: tuple[ImageChange, ...]
    notices: tuple[str, ...] = ()


def compare_runs(old: Review, new: Review) -> RunComparison:
    """Compare the rows of two runs, and their recommended heads image by image."""
    raise NotImplementedError
