"""Split images into train, validation and test: by folders, by content digest, or by folds."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import Columns
from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.tasks import strata_of
from pipeline.images.scan import SPLIT_FOLDERS, SPLIT_NAMES
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION
from pipeline.text import counted, printable

NONE, TRAIN, VALIDATION, TEST = range(len(SPLIT_NAMES))  # as in the cache's `splits`
USED_SPLITS = SPLIT_NAMES[TRAIN:]
DEFAULT_FOLDS = 5
MIN_FOLDS = 3  # one each for test, validation and training
LARGEST = 1e100  # of a regression: sums of squares stay finite and above 0 in float64

IMAGES = ("images",)  # what is counted in each split of a set without classes
Images = npt.NDArray[np.int64]  # image numbers: indices among a cache's rows of view 0


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the images for training, validation and test; they sum to 1."""

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
                f"--split: expected shares of train, validation and test, three positive numbers "
                f"such as 60/20/20; received {text!r}"
            )
        train, validation, test = (part / sum(parts) for part in parts)
        return cls(train=train, validation=validation, test=test)

    def __str__(self) -> str:
        return "/".join(f"{100 * share:.4g}" for share in (self.train, self.validation, self.test))


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Ascending image numbers (n,) of each split.

    ``source`` is a sentence on the method; ``counts`` maps split -> class -> number of images; for
    a set without classes, split -> ``images`` -> their number.
    """

    train: Images
    validation: Images
    test: Images
    source: str
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Trial:
    """One split of the images, and the seeds that heads are fitted with on it."""

    splits: Splits
    seeds: tuple[int, ...]


def make_splits(
    columns: Columns,
    classes: Sequence[str],
    *,
    shares: Shares | None = None,
    seed: int = 0,
    identities: npt.NDArray[np.void] | None = None,
    task: str = CLASSES,
    required: int | None = None,
) -> Splits:
    """Return the splits of the folders; fill missing splits by content digest.

    Each split needs images of the first ``required`` classes (None: of all).

    An image's split depends only on its identity (see `pipeline.evaluation.groups`; by default its
    digest): adding images moves no other, and only folders divide images of one identity.

    Raises BadDataError if there is only one class, a split lacks a class, or there are folders but
    none to train on.
    """
    identities = columns.digests if identities is None else identities
    classes = check_labels(columns, classes, identities, task)
    splits = columns.splits.copy()
    most, _ = max_folds(columns, classes[:required], identities)
    cross_validate = ""
    if most >= MIN_FOLDS:
        instead = " instead of --split" if shares else ""
        ignored = ", which ignores the split folders" if columns.splits.max() > TRAIN else ""
        folds = min(DEFAULT_FOLDS, most)
        cross_validate = f", or cross-validate with --cv {folds}{instead}{ignored}"
    draws = uniform_draws(identities, seed=seed)
    source = _fill_splits(splits, draws, shares or Shares(), identities)
    _check_class_folders(columns, classes[:required], identities, cross_validate)
    cure = f"try another --split-seed{cross_validate}"
    return split_rows(
        splits,
        columns,
        classes,
        source=source,
        cure=cure,
        identities=identities,
        required=required,
    )


def _check_class_folders(
    columns: Columns,
    classes: Sequence[str],
    identities: npt.NDArray[np.void],
    cross_validate: str,
) -> None:
    """Raise BadDataError if a split folder lacks a class, or train/ has too few to draw from."""
    folders = [split for split in (TRAIN, VALIDATION, TEST) if (columns.splits == split).any()]
    for split in folders:
        in_folder = columns.splits == split
        counts = [
            len(np.unique(identities[in_folder & (columns.labels == label)]))
            for label in range(len(classes))
        ]
        needed = 2 if split == TRAIN and len(folders) == 2 else 1  # one stays in train
        lacking = [label for label, count in enumerate(counts) if count < needed]
        for label in lacking:
            check_class_size(classes[label], label, columns, identities)
        if lacking:
            folder = printable(bytes(columns.paths[in_folder][0]).partition(b"/")[0])
            if folder.lower() not in SPLIT_FOLDERS:  # of a manifest or an archive
                folder = SPLIT_NAMES[split]
            few = "only one image" if counts[lacking[0]] else "no image"
            present = [name for name, count in zip(classes, counts, strict=True) if count]
            learn = ""
            if len(present) == 1 and split == TRAIN and len(classes) > 1:
                normal = printable(present[0])
                learn = f", or learn from {normal} alone with --normal {normal}"
            raise BadDataError(
                f"{folder}/ has {few} of {_join_names(classes, lacking)}: add images in "
                f"{folder}/{printable(classes[lacking[0]])}{cross_validate}{learn}"
            )


def _join_names(classes: Sequence[str], labels: Sequence[int] | npt.NDArray[np.int64]) -> str:
    shown = ", ".join(printable(classes[label]) for label in labels[:3])
    return shown + (" and others" if len(labels) > 3 else "")


def check_labels(
    columns: Columns, classes: Sequence[str], identities: npt.NDArray[np.void], task: str
) -> Sequence[str]:
    """Raise BadDataError if there is nothing to learn; return the classes that splits need."""
    if task == CLASSES:
        check_two_classes(classes)
        return classes
    if task == MULTILABEL and len(classes) < 2:
        name = printable(classes[0])
        raise BadDataError(
            f"several labels are needed; the cache has one, {name}: extract with --label-column "
            f"{name} and without --label-columns, for classes"
        )
    for name, values in zip(classes, columns.targets.T, strict=True):
        if len(values) and np.ptp(values) == 0:
            raise BadDataError(
                f"{printable(name)} is {values[0]:g} for every image: there is nothing to learn; "
                f"remove it from the labels"
            )
        if task == REGRESSION and (np.abs(values).max() > LARGEST or np.ptp(values) < 1 / LARGEST):
            raise BadDataError(
                f"{printable(name)} is from {values.min():g} to {values.max():g}: squares of such "
                f"numbers overflow; change their unit and extract again"
            )
    if (count := len(np.unique(identities))) < len(USED_SPLITS):
        raise BadDataError(
            f"train, validation and test need an image or group each; the cache has {count}: add "
            f"images"
        )
    return IMAGES


def check_two_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        name = printable(classes[0]) if classes else "none"
        raise BadDataError(
            f"a classifier needs two classes or more; the set has one: {name}; to learn from it "
            f"alone, classify --normal {name}"
        )


def uniform_draws(digests: npt.NDArray[np.void], *, seed: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) per digest (N,): the first 8 bytes of SHA-256(seed, digest)."""
    salt = str(seed).encode()
    heads = [hashlib.sha256(salt + digest).digest()[:8] for digest in digests.tolist()]
    return np.frombuffer(b"".join(heads), ">u8") / 2.0**64


def _fill_splits(
    splits: npt.NDArray[np.uint8],
    draws: npt.NDArray[np.float64],
    shares: Shares,
    identities: npt.NDArray[np.void],
) -> str:
    """Assign images to missing splits, in place; return a sentence on the method."""
    present = set(np.unique(splits).tolist())
    if present in ({NONE}, {TRAIN}):
        splits[:] = np.where(
            draws < shares.train,
            TRAIN,
            np.where(draws < shares.train + shares.validation, VALIDATION, TEST),
        )
        folders = "no split folders" if present == {NONE} else "only a train folder"
        return f"{folders}: split {shares} by content digest"
    if NONE in present:
        raise BadDataError("some images are in split folders and some are not; move all into them")
    if TRAIN not in present:
        others = " and ".join(SPLIT_NAMES[split] for split in sorted(present))
        raise BadDataError(
            f"there are images for {others} but none in train/; add that folder, or cross-validate "
            f"with --cv {DEFAULT_FOLDS}, which ignores the split folders"
        )
    # Identities that are also in another folder stay in train: filling divides no identity.
    movable = (splits == TRAIN) & ~np.isin(identities, identities[splits != TRAIN])
    if {VALIDATION, TEST} <= present:
        return "split as in the set"
    if VALIDATION in present:
        share = shares.test / (shares.train + shares.test)
        splits[movable & (draws >= 1 - share)] = TEST
        return f"no test folder: {100 * share:.3g} % of train, by content digest, are test"
    share = shares.validation / (shares.train + shares.validation)
    splits[movable & (draws >= 1 - share)] = VALIDATION
    return f"no validation folder: {100 * share:.3g} % of train, by content digest, are validation"


def split_rows(
    splits: npt.NDArray[np.uint8],
    columns: Columns,
    classes: Sequence[str],
    *,
    source: str,
    cure: str,
    identities: npt.NDArray[np.void],
    required: int | None = None,
) -> Splits:
    """Return the splits of split numbers (N,).

    Raises BadDataError if a split lacks one of the first ``required`` classes (None: of all).
    """
    images: dict[str, Images] = {}
    counts: dict[str, dict[str, int]] = {}
    for number, name in enumerate(USED_SPLITS, TRAIN):
        images[name] = np.flatnonzero(splits == number)
        of_class = np.bincount(columns.labels[images[name]], minlength=len(classes)).tolist()
        counts[name] = dict(zip(classes, of_class, strict=True))
        lacking = [label for label, count in enumerate(of_class[:required]) if count == 0]
        for label in lacking:
            check_class_size(classes[label], label, columns, identities)
        if lacking:
            share = f"{len(images[name]):,} of {counted(len(columns), 'image')}"
            of_classes = "" if classes == IMAGES else f" of {_join_names(classes, lacking)}"
            raise BadDataError(f"the {name} split ({share}) has no image{of_classes}: {cure}")
    return Splits(source=source, counts=counts, **images)


def check_class_size(
    name: str, label: int, columns: Columns, identities: npt.NDArray[np.void]
) -> None:
    """Raise BadDataError for a class with too few images to be in every split."""
    count = len(np.unique(identities[columns.labels == label]))
    if not count:
        raise BadDataError(f"class {printable(name)} has no image; add some, or remove its folder")
    if count < len(USED_SPLITS):
        grouped = not np.array_equal(identities, columns.digests)
        available = counted(count, "group" if grouped else "different image")
        raise BadDataError(
            f"class {printable(name)} has {available}; train, validation and test need one each: "
            f"add images, or drop the class with --labels"
        )


def max_folds(
    columns: Columns, classes: Sequence[str], identities: npt.NDArray[np.void]
) -> tuple[int, str]:
    """Return the maximum number of folds, the identities of the rarest class, and this class."""
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
    task: str = CLASSES,
    required: int | None = None,
) -> Iterator[Splits]:
    """Yield a split per fold: fold i is test, the next one validation, the others train.

    Folds are stratified by class and divide no identity.

    Raises BadDataError if one of the first ``required`` classes (None: of all) has fewer identities
    than there are folds.
    """
    classes = check_labels(columns, classes, identities, task)
    most, rarest = max_folds(columns, classes[:required], identities)
    if most < folds:
        check_class_size(rarest, classes.index(rarest), columns, identities)
        raise BadDataError(
            f"{'the set' if classes == IMAGES else f'class {printable(rarest)}'} has "
            f"{counted(most, 'image or group', 'images or groups')}, "
            f"too few for {folds} folds; try --cv {most}"
        )
    fewer = f"--cv {folds - 1} or " if folds > MIN_FOLDS else ""
    if task == CLASSES:
        fold = _folds_by_class(columns.labels, folds, seed, identities)
    else:
        fold = spread_over_folds(strata_of(columns, task), folds, seed, identities)
    for number in range(folds):
        splits = np.full(len(columns), TRAIN, np.uint8)
        splits[fold == (number + 1) % folds] = VALIDATION
        splits[fold == number] = TEST
        yield split_rows(
            splits,
            columns,
            classes,
            source=f"fold {number + 1} of {folds}",
            cure=f"groups stay together; try {fewer}another --split-seed, or add groups",
            identities=identities,
            required=required,
        )


def _folds_by_class(
    labels: npt.NDArray[np.int64], folds: int, seed: int, identities: npt.NDArray[np.void]
) -> npt.NDArray[np.int64]:
    """Return the fold (N,) of each row, stratified by class."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    groups, first_rows, members = np.unique(identities, return_index=True, return_inverse=True)
    if len(groups) == len(labels):  # without groups, folds are exactly stratified
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        parts, row_of = splitter.split(first_rows, labels[first_rows]), first_rows
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts, row_of = splitter.split(members, labels, members), np.arange(len(labels))
    fold = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # not required
        for number, (_, test) in enumerate(parts):
            fold[row_of[test]] = number
    return fold


def spread_over_folds(
    strata: npt.NDArray[np.bool_], folds: int, seed: int, identities: npt.NDArray[np.void]
) -> npt.NDArray[np.int64]:
    """Return the fold (N,) of each row: iterative stratification (Sechidis et al. 2011).

    A row may have several of the ``strata`` (N, T). The rarest stratum comes first: each of its
    groups goes to the fold that lacks most rows of it, then most rows of any.
    """
    groups, members = np.unique(identities, return_inverse=True)
    counts = np.zeros((len(groups), strata.shape[1] + 1))  # the last: all rows
    np.add.at(counts, members, np.hstack([strata, np.ones((len(strata), 1))]))
    lacking = np.tile(counts.sum(axis=0) / folds, (folds, 1))
    fold = np.full(len(groups), -1)
    left = np.random.default_rng(seed).permutation(len(groups))
    while len(left):
        rows = counts[left].sum(axis=0)
        rarest = np.where(rows > 0, rows, np.inf).argmin()
        chosen = left[counts[left, rarest] > 0]
        for group in chosen[np.argsort(-counts[chosen, rarest], kind="stable")]:
            fold[group] = np.lexsort((lacking[:, -1], lacking[:, rarest]))[-1]
            lacking[fold[group]] -= counts[group]
        left = left[fold[left] < 0]
    return fold[members]
