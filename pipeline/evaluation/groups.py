"""Which images must not be parted: one file under several names, photographs of one object."""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.cache.file import DIGEST_DTYPE, Columns
from pipeline.errors import UsageError
from pipeline.evaluation.image_lookup import ImageLookup, assign, read_records
from pipeline.images.scan import SPLIT_FOLDERS
from pipeline.text import counted, printable

Rows = npt.NDArray[np.int64]
GroupOf = Callable[[Columns], list[str | None]]  # the name of each row's group

log = logging.getLogger("pipeline")


def parse_group_rule(text: str) -> GroupOf:
    """Read ``folder``, a CSV file with the columns path and group, or a regular expression.

    ``folder``: the folders below the class folder, ``cats/1`` and ``dogs/1`` being two groups;
    where they are one, ``/([^/]+)/[^/]+$`` joins them. An expression is searched in the path; its
    first group, or all that it matches, names the group. A file names images as that of
    ``--labels`` does (see `ImageLookup`).

    Raises UsageError, NoInputError or BadDataError in one line.
    """
    if text == "folder":
        return _by_path(_folder_below_class)
    if text.lower().endswith(".csv"):
        return _GroupFile(Path(text))
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(
            f"--group is folder, a .csv file or a regular expression; {text!r} is none: {error}"
        ) from error

    def matched(path: str) -> str | None:
        match = pattern.search(path)
        return None if match is None else match[1 if pattern.groups else 0]

    return _by_path(matched)


def check_group_rule(group_of: GroupOf | None, tables: Sequence[Columns]) -> None:
    """Raise BadDataError for a file of groups that names an image which no unedited table holds."""
    if isinstance(group_of, _GroupFile):
        finder = ImageLookup(tables)
        for place, record in group_of.records:
            finder.find_or_raise(record, place)


def _by_path(name_of: Callable[[str], str | None]) -> GroupOf:
    return lambda columns: [name_of(os.fsdecode(path)) for path in columns.paths.tolist()]


def _folder_below_class(path: str) -> str | None:
    parts = PurePosixPath(path).parts[:-1]
    if len(parts) > 1 and parts[0].lower() in SPLIT_FOLDERS:
        parts = parts[1:]
    return "/".join(parts) if len(parts) > 1 else None


class _GroupFile:
    """The groups that a CSV file names; images that it does not name have none."""

    def __init__(self, path: Path) -> None:
        records = read_records(path, option="--group", values=("group",))
        self.records = [(place, record) for place, record in records if record["group"]]

    def __call__(self, columns: Columns) -> list[str | None]:
        finder = ImageLookup([columns])
        groups: dict[int, tuple[str, str]] = {}
        for place, record in self.records:
            (rows,) = finder.find(record, place)
            assign(record["group"], rows, place, groups, columns)
        return [groups[row][0] if row in groups else None for row in range(len(columns))]


def identities_of(columns: Columns, group_of: GroupOf | None = None) -> npt.NDArray[np.void]:
    """What must not be parted (N,) V32: rows of one identity stand on one side.

    It is the content digest, or the SHA-256 of the name of the group that the rule finds, if any.
    Groups that share an identical file are one, under the name that sorts first.
    """
    if group_of is None:
        return columns.digests
    names = group_of(columns)
    ungrouped = sum(name is None for name in names)
    if ungrouped == len(names):
        raise UsageError(
            f"--group places none of {counted(len(names), 'image')}; "
            f"the first is {printable(columns.paths[0])}"
        )
    if ungrouped:
        log.warning("--group places all but %s, which stand alone", counted(ungrouped, "image"))
    named = np.frombuffer(
        b"".join(
            digest.tobytes() if name is None else hashlib.sha256(os.fsencode(name)).digest()
            for name, digest in zip(names, columns.digests, strict=True)
        ),
        DIGEST_DTYPE,
    )
    # rows are linked with the first of their group and the first of their file
    uniques = [np.unique(each, True, True) for each in (named, columns.digests)]
    firsts = np.concatenate([first_row[entry] for _, first_row, entry in uniques])
    component = linked(firsts, np.tile(np.arange(len(names)), 2), len(names))
    log.info("%s in %s", counted(len(names), "image"), counted(component.max() + 1, "group"))
    smallest = np.empty(component.max() + 1, DIGEST_DTYPE)
    descending = np.argsort(named)[::-1]
    smallest[component[descending]] = named[descending]  # the smallest of each is written last
    return smallest[component]


def linked(first: Sequence[int] | Rows, second: Sequence[int] | Rows, count: int) -> Rows:
    """Number (count,), from 0, the sets of rows that are linked by pairs first[i], second[i]."""
    links = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)
