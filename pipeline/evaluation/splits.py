"""Which images train, which choose, which test: by folders, by content digest, or by folds."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import SPLIT_NAMES, Columns
from pipeline.errors import BadDataError, UsageError
from pipeline.text import counted, printable

NONE, TRAIN, VALIDATION, TEST = range(len(SPLIT_NAMES))  # as in the cache's `splits`
USED_SPLITS = SPLIT_NAMES[TRAIN:]

FEWEST_FOLDS = 3  # one to test on, one to choose on, one to train on

Images = npt.NDArray[np.int64]  # numbers of images: places among a cache's rows of view 0


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The parts of a set for training, validation and test; they sum to 1."""

    train: float = 0.6
    validation: float = 0.2
    test: float = 0.2

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``60/20/20``: three positive numbers of any sum."""
        try:
            parts = [float(part) for part in text.split("/")]
        except ValueError:
            parts = []
        if len(parts) != 3 or not all(0 < part < float("inf") for part in parts):
            raise UsageError(
                f"--split needs train/validation/test as three positive numbers, "
                f"such as 60/20/20; received {text!r}"
            )
        train, validation, test = (part / sum(parts) for part in parts)
        return cls(train=train, validation=validation, test=test)

    def __str__(self) -> str:
        return "/".join(f"{100 * share:.4g}" for share in (self.train, self.validation, self.test))


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Ascending image numbers (n,) of each split.

    ``source`` says where they come from; ``counts`` is split -> class -> number of images.
    """

    train: Images
    validation: Images
    test: Images
    source: str
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Trial:
    """One division of the images, and the seeds that heads are fitted with on it."""

    splits: Splits
    seeds: tuple[int, ...]


def make_splits(
    columns: Columns,
    classes: Sequence[str],
    *,
    shares: Shares | None = None,
    seed: int = 0,
    identities: npt.NDArray[np.void] | None = None,
) -> Splits:
    """The folders' splits where there are folders; what is missing is taken by content digest.

    A row's place depends on its own identity alone (see `pipeline.evaluation.groups`; by default
    its digest): adding images moves none from test to train, and only folders part an identity.

    Raises BadDataError if there is only one class, no folder to train on beside others, or a split
    that lacks a class.
    """
    shares = shares or Shares()
    identities = columns.digests if identities is None else identities
    check_two_classes(classes)
    splits = columns.splits.copy()
    source = _fill(splits, uniform_draws(identities, seed=seed), shares, identities)
    remedy = "more images"
    if not columns.splits.any():
        remedy = f"another --split, another --split-seed or {remedy}"
    return split_rows(splits, columns, classes, source=source, remedy=remedy, identities=identities)


def check_two_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        found = printable(classes[0]) if classes else "none"
        raise BadDataError(f"a classifier needs two classes or more; the cache has one: {found}")


def uniform_draws(digests: npt.NDArray[np.void], *, seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each content digest: the first 8 bytes of SHA-256(seed, digest)."""
    salt = str(seed).encode()
    heads = [hashlib.sha256(salt + digest.tobytes()).digest()[:8] for digest in digests]
    return np.frombuffer(b"".join(heads), ">u8") / 2.0**64


def _fill(
    splits: npt.NDArray[np.uint8],
    draws: npt.NDArray[np.float64],
    shares: Shares,
    identities: npt.NDArray[np.void],
) -> str:
    """Place, in ``splits``, the rows that no folder places; say what was done."""
    present = set(np.unique(splits).tolist())
    if present in ({NONE}, {TRAIN}):
        splits[:] = np.where(
            draws < shares.train,
            TRAIN,
            np.where(draws < shares.train + shares.validation, VALIDATION, TEST),
        )
        found = "no split folders" if present == {NONE} else "only a train folder"
        return f"{found}: split {shares} by content digest"
    if NONE in present:
        raise BadDataError("some images are in split folders and some are not; sort them all")
    if TRAIN not in present:
        found = " and ".join(SPLIT_NAMES[split] for split in sorted(present))
        raise BadDataError(f"there are images for {found} but none in train/; add that folder")
    # What also stands in another folder stays: nothing is parted by our doing.
    movable = (splits == TRAIN) & ~np.isin(identities, identities[splits != TRAIN])
    if {VALIDATION, TEST} <= present:
        return "split as the folders say"
    if VALIDATION in present:
        share = shares.test / (shares.train + shares.test)
        splits[movable & (draws >= 1 - share)] = TEST
        return f"no test folder: {100 * share:.3g} % of train, by content digest, are the test"
    share = shares.validation / (shares.train + shares.validation)
    splits[movable & (draws >= 1 - share)] = VALIDATION
    return f"no validation folder: {100 * share:.3g} % of train, by content digest, validate"


def split_rows(
    splits: npt.NDArray[np.uint8],
    columns: Columns,
    classes: Sequence[str],
    *,
    source: str,
    remedy: str,
    identities: npt.NDArray[np.void],
) -> Splits:
    """The images of each split number (N,); raises BadDataError where one lacks a class."""
    images: dict[str, Images] = {}
    counts: dict[str, dict[str, int]] = {}
    for number, name in enumerate(USED_SPLITS, TRAIN):
        images[name] = np.flatnonzero(splits == number)
        of_class = np.bincount(columns.labels[images[name]], minlength=len(classes)).tolist()
        counts[name] = dict(zip(classes, of_class, strict=True))
        lacking = [label for label, count in enumerate(of_class) if count == 0]
        for label in lacking:
            check_enough(classes[label], label, columns, identities)
        if lacking:
            shown = ", ".join(printable(classes[label]) for label in lacking[:3])
            shown += " and others" if len(lacking) > 3 else ""
            total = counted(len(columns), "image")
            raise BadDataError(
                f"the {name} split has no image of {shown} (of {total} in all); try {remedy}"
            )
    return Splits(source=source, counts=counts, **images)


def check_enough(name: str, label: int, columns: Columns, identities: npt.NDArray[np.void]) -> None:
    """Raise BadDataError for a class that no division can bring into every split."""
    count = len(np.unique(identities[columns.labels == label]))
    if not count:
        raise BadDataError(
            f"class {printable(name)} has no image; add some, or take its folder away"
        )
    if count < len(USED_SPLITS):
        grouped = not np.array_equal(identities, columns.digests)
        found = counted(count, "group" if grouped else "different image")
        raise BadDataError(
            f"class {printable(name)} has {found}; train, validation and test need one each at "
            f"least: add images, or leave the class out with --labels"
        )


def check_fold_count(folds: int) -> None:
    if folds < FEWEST_FOLDS:
        raise UsageError(
            f"--cv needs {FEWEST_FOLDS} folds or more (to train, to choose and to test on); "
            f"received {folds}"
        )


def most_folds(
    columns: Columns, classes: Sequence[str], identities: npt.NDArray[np.void]
) -> tuple[int, str]:
    """The fewest identities of a class, which is how many folds can hold it, and its name."""
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
    """Rotate stratified folds of identities: fold i is the test, the next chooses, the rest train.

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
        parts, row_of = divider.split(first_rows, columns.labels[first_rows]), first_rows
    else:
        divider = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts, row_of = divider.split(members, columns.labels, members), np.arange(len(columns))
    fold = np.empty(len(columns), np.int64)
    for number, (_, held_out) in enumerate(parts):
        fold[row_of[held_out]] = number
    for number in range(folds):
        splits = np.full(len(columns), TRAIN, np.uint8)
        splits[fold == (number + 1) % folds] = VALIDATION
        splits[fold == number] = TEST
        yield split_rows(
            splits,
            columns,
            classes,
            source=f"fold {number + 1} of {folds}",
            remedy="fewer folds, another --split-seed or more images",
            identities=identities,
        )
