"""The images of a run whose labels a person should look at first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.evaluation.groups import connected_sets
from pipeline.images.scan import SPLIT_NAMES
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.evaluation.suspects import Suspect
    from pipeline.review.review import Review

Kind = Literal["label", "mistake", "duplicate"]
Pair = tuple[int, int, bool]  # two rows, and whether they are one file


@dataclass(frozen=True, kw_only=True)
class QueueItem:
    """An image to review.

    Attributes
    ----------
    row : in the review's table.
    kind : ``label``: its label is likely wrong; ``mistake``: the head predicts another class;
        ``duplicate``: another image shows the same picture, with another label or in another split.
    suggested : class number, -1 for none.
    other : row of the duplicate, -1 for none.
    reason : one sentence.
    """

    row: int
    kind: Kind
    reason: str
    suggested: int = -1
    other: int = -1


def build_queue(review: "Review") -> list[QueueItem]:
    """Return likely label errors, mistakes, then duplicates; each image once.

    Label errors are those of `pipeline.evaluation.suspects.find_doubtful`; mistakes are sorted by
    the difference of the probabilities of the predicted class and the label. Of more than 20,000
    images, label errors are those of `find_suspects`, 100 at most.
    """
    from pipeline.evaluation.audit_features import open_features
    from pipeline.evaluation.duplicates import find_duplicates
    from pipeline.evaluation.suspects import MAX_DOUBTED, find_doubtful, find_suspects

    table, columns = review.table, review.table.columns
    pairs = _identical_files(columns.digests)
    with threadpool_limits(limits=1, user_api="blas"):
        features = open_features(table, review.layer, np.arange(len(table)))
        near = find_duplicates(features, columns.digests, review.splits)
        pairs += [(pair.first, pair.second, False) for pair in near if not pair.exact]
        firsts, seconds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        groups = connected_sets(firsts, seconds, len(table))
        find = find_doubtful if len(table) <= MAX_DOUBTED else find_suspects
        found = find(features, columns.labels, groups, len(table.classes))
    items = [*(_doubt(review, each) for each in found), *_mistakes(review)]
    by_row: dict[int, QueueItem] = {}
    for item in items:
        by_row.setdefault(item.row, item)
    return [*by_row.values(), *_duplicates(review, pairs, set(by_row))]


def _doubt(review: "Review", suspect: "Suspect") -> QueueItem:
    label, other = (printable(review.classes[each]) for each in (suspect.label, suspect.suggested))
    reason = (
        f"{label} {100 * suspect.label_probability:.0f} %, {other} "
        f"{100 * suspect.suggested_probability:.0f} %, by a model fitted without this image"
    )
    return QueueItem(row=suspect.row, kind="label", suggested=suspect.suggested, reason=reason)


def _mistakes(review: "Review") -> Iterator[QueueItem]:
    for row in review.mistakes(review.table.columns.labels).tolist():
        predicted = int(review.predicted[row])
        reason = (
            f"the head predicts {printable(review.classes[predicted])} with "
            f"{100 * review.probability[row]:.0f} %"
        )
        yield QueueItem(row=row, kind="mistake", suggested=predicted, reason=reason)


def _duplicates(review: "Review", pairs: list[Pair], listed: set[int]) -> Iterator[QueueItem]:
    """Yield an image of each pair of another label, then of another split, that is not listed.

    Of a pair in train and test it is the one in train: dropping it leaves the test as it is.
    """
    columns = review.table.columns
    labels, splits = columns.labels, review.splits
    differing = [pair for pair in pairs if labels[pair[0]] != labels[pair[1]]]
    across = [pair for pair in pairs if splits[pair[0]] != splits[pair[1]]]
    for first, second, exact in differing + across:
        one, other = sorted((first, second), key=lambda row: (row in listed, splits[row]))
        if one in listed:
            continue
        listed.add(one)
        reason = (
            f"{'the same file as' if exact else 'looks like'} {printable(columns.paths[other])}, "
            f"{printable(review.classes[labels[other]])} in {SPLIT_NAMES[splits[other]]}"
        )
        yield QueueItem(row=one, kind="duplicate", other=other, reason=reason)


def _identical_files(digests: npt.NDArray[np.void]) -> list[Pair]:
    """Return pairs of the first row of each file and its copies."""
    _, first, member = np.unique(digests, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[member] != np.arange(len(digests)))
    return [(int(first[member[row]]), int(row), True) for row in copies]
