"""The images of a run whose labels a person should look at first."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["label", "mistake", "duplicate"]


@dataclass(frozen=True, kw_only=True)
class QueueItem:
    """An image to review.

    Attributes
    ----------
    row : in the review's table.
    kind : ``label``: its label is likely wrong; ``mistake``: the head is confident of another
        class; ``duplicate``: another image shows the same picture, with another label or in
        another split.
    suggested : class number, -1 for none.
    other : row of the duplicate, -1 for none.
    reason : one sentence.
    """

    row: int
    kind: Kind
    reason: str
    suggested: int = -1
    other: int = -1
