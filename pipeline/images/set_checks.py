"""Warn of image sets whose scores would mislead: classes that a split lacks, copies of images."""

import difflib
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from pipeline.images.scan import NO_SPLIT, SPLIT_NAMES, TEST, TRAIN, VALIDATION, FoundFile, ImageSet
from pipeline.images.source import FolderSource
from pipeline.text import counted, printable

MAX_LISTED = 10  # classes or groups of duplicates in a warning

log = logging.getLogger("pipeline")


def warn_of_missing_classes(images: ImageSet) -> None:
    """Log the classes that a split folder lacks, and similar names that may be the same class."""
    splits = {file.split for file in images.files} - {NO_SPLIT}
    classes: dict[int, set[str]] = {
        split: {images.classes[file.label] for file in images.files if file.split == split}
        for split in splits
    }
    slash = _slash(images)
    if len(images.classes) == 1:
        name = printable(images.classes[0])
        log.warning(
            "%s%s is the only class: to learn from it alone, classify --normal %s",
            name, slash, name,
        )  # fmt: skip
    common = set(images.classes).intersection(*classes.values())
    for split in sorted(splits):
        lacking = sorted(set(images.classes) - classes[split])
        if not lacking:
            continue
        hints = []
        for name in lacking:
            similar = difflib.get_close_matches(name, sorted(classes[split] - common), 1, 0.75)
            if similar:
                hints.append(f"{printable(similar[0])}{slash} is there: the same class?")
        if split == TRAIN and len(classes[split]) == 1:
            normal = printable(next(iter(classes[split])))
            hints.append(f"to learn from {normal} alone, classify --normal {normal}")
        names = ", ".join(f"{printable(name)}{slash}" for name in lacking[:MAX_LISTED])
        names += ", …" if len(lacking) > MAX_LISTED else ""
        log.warning(
            "%s%s has no %s; %s",
            SPLIT_NAMES[split],
            slash,
            names,
            " ".join(hints[:MAX_LISTED])
            or "add its images, or cross-validate with classify --cv, which ignores the splits",
        )


def warn_of_nested_classes(images: ImageSet) -> None:
    """Log if the folders look like image sets: they contain only folders, and few.

    Images in folders below a class are usual, too, such as one folder per patient.
    """
    inner: dict[bytes, set[bytes]] = defaultdict(set)
    if not isinstance(images.source, FolderSource):
        return  # the first folder may be an archive
    for file in images.files:
        name, *deeper = file.path.split(b"/")
        if file.split != NO_SPLIT or len(deeper) < 2:
            return
        inner[name].add(deeper[0])
    names = [name for folders in inner.values() for name in folders]
    if len(names) == len(set(names)) and all(
        1 < len(each) <= MAX_LISTED for each in inner.values()
    ):
        name, folders = next(iter(inner.items()))
        log.warning(
            "the classes contain only folders (%s: %s): if these are the classes, extract %s",
            printable(name), printable(b", ".join(sorted(folders))),
            printable(f"{images.root}/{os.fsdecode(name)}"),
        )  # fmt: skip


def warn_of_duplicates(images: ImageSet, digests: Mapping[bytes, bytes]) -> None:
    """Log identical files with several labels or in several splits: they bias scores."""
    by_digest = defaultdict(list)
    of_split = defaultdict(set)
    for file in images.files:
        if file.path in digests:
            by_digest[digests[file.path]].append(file)
            of_split[file.split].add(digests[file.path])
    slash = _slash(images)
    for split in (VALIDATION, TEST):
        if of_split[split] and of_split[split] <= of_split[TRAIN]:
            same = "the same images as" if of_split[split] == of_split[TRAIN] else "only images of"
            log.warning(
                "%s%s contains %s train%s: its scores measure memory, not classification",
                SPLIT_NAMES[split], slash, same, slash,
            )  # fmt: skip
    copies = [group for group in by_digest.values() if len(group) > 1]
    for column, name in (("label", "label"), ("targets", "label"), ("split", "split")):
        groups = [group for group in copies if len({getattr(file, column) for file in group}) > 1]
        if groups:
            listed = "; ".join(map(_equal_paths, groups[:MAX_LISTED]))
            rest = len(groups) - MAX_LISTED
            more = f" and {rest:,} more" if rest > 0 else ""
            count = counted(len(groups), "image has", "images have")
            log.warning("%s several %ss: %s%s", count, name, listed, more)


def _equal_paths(group: Sequence[FoundFile]) -> str:
    paths = " = ".join(printable(file.path) for file in group[:MAX_LISTED])
    return paths + " = …" * (len(group) > MAX_LISTED)


def _slash(images: ImageSet) -> str:
    """Return what ends the name of a split or class: a slash, if they are folders."""
    return "" if "" in images.folders else "/"
