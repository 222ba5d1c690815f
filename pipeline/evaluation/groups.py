"""Groups of images that stay in one split: copies of one file, photographs of one object."""

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import DIGEST_DTYPE, Columns
from pipeline.errors import UsageError
from pipeline.evaluation.image_lookup import ImageLookup, assign, read_records
from pipeline.images.scan import SPLIT_FOLDERS
from pipeline.text import counted, printable

Rows = npt.NDArray[np.int64]
# Columns and classes of a set -> the group of each row; None for no group
GroupOf = Callable[[Columns, Sequence[str]], list[str | None]]

log = logging.getLogger("pipeline")


def parse_group_rule(text: str) -> GroupOf:
    """Parse ``folder``, a CSV file with the columns path and group, or a regular expression.

    ``folder`` means the folders below the class folder, or, if paths contain no class, all folders;
    ``cats/1`` and ``dogs/1`` are two groups,
    which the expression ``/([^/]+)/[^/]+$`` joins. An expression is searched in the path; its first
    group, or the whole match, names the group. A file names images as that of ``--labels`` does
    (see `ImageLookup`).

    Raises UsageError, NoInputError or BadDataError.
    """
    if text == "folder":
        return lambda columns, classes: [
            _folder_below_class(path, classes) for path in columns.paths.tolist()
        ]
    if text.lower().endswith(".csv"):
        return _GroupFile(Path(text))
    if re.fullmatch(r"[\w -]*", text):
        hint = "; did you mean folder?" if difflib.get_close_matches(text, ["folder"]) else ""
        raise UsageError(
            f"--group: expected folder, FILE.csv or an expression that matches several groups, "
            f"such as '/([^/]+)/[^/]+$'; received {text!r}{hint}"
        )
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(
            f"--group: expected folder, FILE.csv or regular expression; received {text!r}: {error}"
        ) from error

    def match_path(path: bytes) -> str | None:
        match = pattern.search(os.fsdecode(path))
        return None if match is None else match[1 if pattern.groups else 0]

    return lambda columns, classes: [match_path(path) for path in columns.paths.tolist()]


def check_group_rule(group_of: GroupOf | None, tables: Sequence[Columns]) -> None:
    """Raise BadDataError if a file of groups names an image of no table (before label edits)."""
    if isinstance(group_of, _GroupFile):
        lookup = ImageLookup(tables)
        for line, record in group_of.records:
            lookup.find_or_raise(record, line)


def _folder_below_class(path: bytes, classes: Sequence[str]) -> str | None:
    parts = PurePosixPath(path.decode("utf-8", "backslashreplace")).parts[:-1]
    place = next((place for place, part in enumerate(parts) if part in classes), -1)
    if place < 0:
        return "/".join(parts) or None
    above = [part for part in parts[:place] if part.lower() not in SPLIT_FOLDERS]
    return "/".join([*above, *parts[place:]]) if len(parts) > place + 1 else None


class _GroupFile:
    """The groups that a CSV file names; other images have none."""

    def __init__(self, path: Path) -> None:
        records = read_records(path, option="--group", values=("group",))
        self.records = [(line, record) for line, record in records if record["group"]]

    def __call__(self, columns: Columns, classes: Sequence[str]) -> list[str | None]:
        lookup = ImageLookup([columns])
        groups: dict[int, tuple[str, str]] = {}
        for line, record in self.records:
            (rows,) = lookup.find(record, line)
            assign(record["group"], rows, line, groups, columns)
        return [groups[row][0] if row in groups else None for row in range(len(columns))]


def identities_of(
    columns: Columns, group_of: GroupOf | None = None, classes: Sequence[str] = ()
) -> npt.NDArray[np.void]:
    """Return identities (N,) V32; rows of one identity are in one split.

    An identity is the content digest, or the SHA-256 of the group's name: by ``group_of``, else the
    cache's. Groups that share an identical file are one group, whose identity is the smallest of
    theirs.
    """
    if group_of is None and not columns.groups.any():
        return columns.digests
    names = [os.fsdecode(group) or None for group in columns.groups.tolist()]
    if group_of:
        names = group_of(columns, classes)
    ungrouped = sum(name is None for name in names)
    if ungrouped == len(names):
        raise UsageError(
            f"--group matches none of {counted(len(names), 'image')}; "
            f"the first is {printable(columns.paths[0])}"
        )
    if ungrouped:
        log.warning("%s without a group: each is its own group", counted(ungrouped, "image"))
    named = np.frombuffer(
        b"".join(
            digest.tobytes() if name is None else hashlib.sha256(os.fsencode(name)).digest()
            for name, digest in zip(names, columns.digests, strict=True)
        ),
        DIGEST_DTYPE,
    )
    # link each row with the first row of its group and the first row of its file
    uniques = [np.unique(keys, True, True) for keys in (named, columns.digests)]
    firsts = np.concatenate([first_rows[inverse] for _, first_rows, inverse in uniques])
    component = connected_sets(firsts, np.tile(np.arange(len(names)), 2), len(names))
    log.info("%s in %s", counted(len(names), "image"), counted(component.max() + 1, "group"))
    smallest = np.empty(component.max() + 1, DIGEST_DTYPE)
    descending = np.argsort(named)[::-1]
    smallest[component[descending]] = named[descending]  # the smallest is written last
    return smallest[component]


def connected_sets(first: Sequence[int] | Rows, second: Sequence[int] | Rows, count: int) -> Rows:
    """Return the number (count,), from 0, of each row's set; first[i] and second[i] share one."""
    from scipy.sparse import coo_array  # 0.3 s, which errors in options need not wait for
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)
