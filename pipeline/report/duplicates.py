"""Groups of images that show the same picture: of 60 equal frames not 1,770 pairs, but one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.audit import linked_rows
from pipeline.evaluation.findings import DuplicatePair


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Rows that pairs of duplicates link, directly or through others.

    Attributes
    ----------
    rows : ascending, two or more.
    identical : whether all the files are.
    similarity : the lowest of its pairs.
    across : whether they stand in different splits or folds.
    """

    rows: Sequence[int]
    identical: bool
    similarity: float
    across: bool


def grouped(pairs: Sequence[DuplicatePair]) -> list[DuplicateGroup]:
    """The groups that pairs make up: those across splits first, then the largest."""
    if not pairs:
        return []
    number = linked_rows(pairs, 1 + max(pair.second for pair in pairs))
    members: dict[int, list[DuplicatePair]] = {}
    for pair in pairs:
        members.setdefault(int(number[pair.first]), []).append(pair)
    groups = [
        DuplicateGroup(
            rows=np.flatnonzero(number == each).tolist(),
            identical=all(pair.kind == "exact" for pair in linked),
            similarity=min(pair.similarity for pair in linked),
            across=any(pair.across for pair in linked),
        )
        for each, linked in members.items()
    ]
    return sorted(groups, key=lambda group: (not group.across, -len(group.rows)))
