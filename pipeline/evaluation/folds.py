"""Cross-validation: every image is tested once by a model that never saw it."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import Columns
from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    Splits,
    check_enough,
    check_every_class,
    check_two_classes,
    split_rows,
)
from pipeline.text import counted, printable

FEWEST_FOLDS = 3  # one to test on, one to choose on, one to train on


def check_fold_count(folds: int) -> None:
    """Raise UsageError for fewer folds than a rotation needs."""
    if folds < FEWEST_FOLDS:
        raise UsageError(
            f"--cv needs {FEWEST_FOLDS} folds or more (to train, to choose and to test on); "
            f"received {folds}"
        )


def most_folds(
    columns: Columns, classes: Sequence[str], identities: npt.NDArray[np.void]
) -> tuple[int, str]:
    """How many folds can each hold every class: the fewest identities of a class, and its name."""
    counts = [len(np.unique(identities[columns.labels == label])) for label in range(len(classes))]
    rarest = int(np.argmin(counts))
    return counts[rarest], classes[rarest]


def make_folds(
    columns: Columns,
    classes: Sequence[str],
    *,
    folds: int,
    seed: int,
    identities: npt.NDArray[np.void],
) -> Iterator[Splits]:
    """Rotate stratified folds: fold i is the test, the next one chooses, the others train.

    Rows of one identity are in one fold, so identical files do not straddle two.

    Raises BadDataError if a class has fewer identities than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    check_two_classes(classes)
    check_fold_count(folds)
    most, rarest = most_folds(columns, classes, identities)
    if most < folds:
        check_enough(rarest, classes.index(rarest), columns, identities)
        raise BadDataError(
            f"class {printable(rarest)} has {counted(most, 'image or group', 'images or groups')} "
            f"of its own: too few for {folds} folds; try --cv {most}"
        )
    groups, first_rows, members = np.unique(identities, return_index=True, return_inverse=True)
    if len(groups) == len(columns):  # nobody shares an identity: the exact divider will do
        divider = StratifiedKFold(folds, shuffle=True, random_state=seed)
        parts = divider.split(first_rows, columns.labels[first_rows])
        fold_of_group = np.empty(len(groups), np.int64)
        for number, (_, held_out) in enumerate(parts):
            fold_of_group[held_out] = number
        fold = fold_of_group[members]
    else:
        divider = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        fold = np.empty(len(columns), np.int64)
        for number, (_, held_out) in enumerate(divider.split(members, columns.labels, members)):
            fold[held_out] = number
    for number in range(folds):
        splits = np.full(len(columns), TRAIN, np.uint8)
        splits[fold == (number + 1) % folds] = VALIDATION
        splits[fold == number] = TEST
        check_every_class(
            splits,
            columns,
            classes,
            remedy="fewer folds, another --split-seed or more images",
            identities=identities,
        )
        yield split_rows(splits, columns, classes, source=f"fold {number + 1} of {folds}")
