"""The images of a run whose labels a person should look at first."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.errors import PipelineError
from pipeline.evaluation.image_lookup import ImageLookup, read_records
from pipeline.evaluation.label_edits import class_number
from pipeline.images.scan import SPLIT_NAMES
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.evaluation.probe import Floats
    from pipeline.review.review import Review

Kind = Literal["label", "mistake", "duplicate"]

# Cats and dogs with 20 wrong labels among 1,000, 18 draws: suspects miss one of the 20 in 3 draws;
# at most one of the ten nearest images shares its label then, as of 1 to 3 other images.
NEIGHBORS = 10
FEW = 2  # of the neighbors
MAX_COMPARED = 5000  # images whose neighbors are searched: 2 s; with more, suspects and mistakes
SUSPECTS = "suspects.csv"

log = logging.getLogger("pipeline")


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

    Label errors are those of suspects.csv or, without that file, of
    `pipeline.evaluation.suspects.find_suspects`; then, of up to 5,000 images, those of whose ten
    nearest images (cosine of centred features) at most two share the label. Mistakes are sorted by
    the difference of the probabilities of the predicted class and the label. Near duplicates are
    searched among up to 20,000 images; in more, identical files are found.
    """
    from pipeline.evaluation.audit import audit_input
    from pipeline.evaluation.duplicates import MAX_ROWS

    table = review.table
    suspects = _read_suspects(review)
    features = None
    if len(table) <= MAX_ROWS or suspects is None:
        features = audit_input(table, review.layer, np.arange(len(table)))
    with threadpool_limits(limits=1, user_api="blas"):
        items = list(_find_suspects(review, features) if suspects is None else suspects)
        if features is not None and len(table) <= MAX_COMPARED:
            items += _unlike_neighbors(review, features)
        items += _mistakes(review)
        items += _duplicates(review, features if len(table) <= MAX_ROWS else None, items)
    return list({item.row: item for item in reversed(items)}.values())[::-1]


def _read_suspects(review: "Review") -> list[QueueItem] | None:
    """Return the suspects of the run's audit; None if there is no valid file."""
    table, path, items = review.table, review.run / SUSPECTS, []
    if not path.is_file():
        return None
    lookup = ImageLookup([table.columns])
    try:
        for line, record in read_records(path, option="the run's", values=("suggested",)):
            number = class_number(record["suggested"], table.classes, line)
            shares = record.get("label_probability", ""), record.get("suggested_probability", "")
            reason = _suspect_reason(review, number, *map(float, shares))
            for row in lookup.find(record, line)[0]:
                items.append(QueueItem(row=row, kind="label", suggested=number, reason=reason))
    except (PipelineError, ValueError) as error:
        log.warning("%s is not used: %s", printable(path), printable(str(error)))
        return None
    return items


def _find_suspects(review: "Review", features: "Floats | None") -> Iterator[QueueItem]:
    from pipeline.evaluation.suspects import find_suspects

    columns = review.table.columns
    _, groups = np.unique(columns.digests, return_inverse=True)
    if features is None:
        return
    for each in find_suspects(features, columns.labels, groups, len(review.classes)):
        reason = _suspect_reason(
            review, each.suggested, each.label_probability, each.suggested_probability
        )
        yield QueueItem(row=each.row, kind="label", suggested=each.suggested, reason=reason)


def _suspect_reason(
    review: "Review", suggested: int, label_probability: float, probability: float
) -> str:
    return (
        f"the label has {100 * label_probability:.0f} %, {printable(review.classes[suggested])} "
        f"{100 * probability:.0f} %, by a model that was fitted without the image"
    )


def _unlike_neighbors(review: "Review", features: "Floats") -> Iterator[QueueItem]:
    """Yield images whose neighbors have other labels, the fewest of its label first."""
    from sklearn.neighbors import NearestNeighbors

    labels, classes = review.table.columns.labels, review.classes
    if len(labels) <= 2 * NEIGHBORS:
        return
    vectors = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
    index = NearestNeighbors(n_neighbors=NEIGHBORS, algorithm="brute").fit(vectors)
    neighbors = labels[index.kneighbors(return_distance=False)]  # (N, 10), not the image itself
    same = (neighbors == labels[:, None]).sum(axis=1)
    for row in np.argsort(same, kind="stable")[: np.count_nonzero(same <= FEW)].tolist():
        counts = np.bincount(neighbors[row], minlength=len(classes))
        suggested = int(counts.argmax())
        reason = f"{counts[suggested]} of the {NEIGHBORS} most similar images are of "
        reason += f"{printable(classes[suggested])}, {same[row]} of its label"
        yield QueueItem(row=row, kind="label", suggested=suggested, reason=reason)


def _mistakes(review: "Review") -> Iterator[QueueItem]:
    for row in review.mistakes(review.table.columns.labels).tolist():
        predicted = int(review.predicted[row])
        reason = (
            f"the head predicts {printable(review.classes[predicted])} with "
            f"{100 * review.probability[row]:.0f} %"
        )
        yield QueueItem(row=row, kind="mistake", suggested=predicted, reason=reason)


def _duplicates(
    review: "Review", features: "Floats | None", before: list[QueueItem]
) -> Iterator[QueueItem]:
    """Yield an image of each pair of another label, then of another split, that is not listed.

    Of a pair in train and test it is the one in train: dropping it leaves the test as it is.
    """
    columns, listed = review.table.columns, {item.row for item in before}
    labels, splits = columns.labels, review.splits
    pairs = _identical_files(columns.digests)
    if features is not None:
        from pipeline.evaluation.duplicates import find_duplicates

        found = find_duplicates(features, columns.digests, splits)
        pairs += [(pair.first, pair.second, False) for pair in found if not pair.exact]
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


def _identical_files(digests: npt.NDArray[np.void]) -> list[tuple[int, int, bool]]:
    """Return pairs of the first row of each file and its copies."""
    _, first, member = np.unique(digests, return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[member] != np.arange(len(digests)))
    return [(int(first[member[row]]), int(row), True) for row in copies]
