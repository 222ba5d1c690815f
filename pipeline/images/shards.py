"""Sets in a few large files, the shards: their names and splits, and the classes of labels."""

import glob
import itertools
import os
import re
from collections.abc import Mapping, Sequence

from pipeline.errors import BadDataError, UsageError
from pipeline.images.scan import (
    NO_SPLIT,
    SPLIT_FOLDERS,
    TEST,
    TRAIN,
    FoundFile,
    ImageSet,
    Skipped,
    is_hidden,
)
from pipeline.images.source import ImageSource
from pipeline.text import counted, printable

TAR, TABLES = (".tar",), (".parquet", ".arrow")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
SUFFIXES = (*TAR, *TABLES, *COMPRESSED)
# Files of any kind beside shards; other files mean that the set is not one of shards
COMPANIONS = (".txt", ".json", ".jsonl", ".md", ".csv", ".tsv", ".yaml", ".yml", ".idx", ".lock",
              ".py", "license", "_success")  # fmt: skip
MAX_SHARDS = 100_000  # of a pattern
MAX_UNIQUE = 10  # labels that occur once: more, and half of all, are captions or numbers
SPLIT_WORDS = {**SPLIT_FOLDERS, "training": TRAIN, "testing": TEST}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern as in a shell: ``{0..3}``, ``{000..127}``, ``{train,test}``."""
    parts: list[list[str]] = []
    end = 0
    for found in BRACES.finditer(pattern):
        first, last, names = found.groups()
        parts.append([pattern[end : found.start()]])
        if names is not None:
            parts.append(names.split(","))
        else:
            if int(last) - int(first) >= MAX_SHARDS:
                raise UsageError(f"{printable(pattern)} names more than {MAX_SHARDS:,} files")
            numbers = range(int(first), int(last) + 1)
            parts.append([str(number).zfill(len(first)) for number in numbers])
        end = found.end()
    parts.append([pattern[end:]])
    return ["".join(words) for words in itertools.product(*parts)]


def expand_files(pattern: str) -> list[str]:
    """Return the local files of a pattern with braces or ``*``; one of braces may be missing."""
    names = expand_braces(pattern)
    return [
        path
        for name in names
        for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])  # noqa: PTH207
    ]


def is_shard_set(paths: Sequence[str]) -> bool:
    """Return whether files are shards, beside nothing but texts."""
    names = [path.lower() for path in paths if not is_hidden(os.fsencode(path))]
    shards = [name for name in names if name.endswith(SUFFIXES)]
    return bool(shards) and all(name.endswith((*SUFFIXES, *COMPANIONS)) for name in names)


def splits_of_shards(root: str, paths: Sequence[str]) -> dict[str, int]:
    """Return the split of each shard by its name or folder: ``train-0000.tar``, ``test/0.tar``.

    Without a shard for training none has a split. Raises BadDataError if only some have one.
    """
    splits = {}
    for path in paths:
        words = [word for word in re.findall("[a-z]+", path.lower()) if word in SPLIT_WORDS]
        splits[path] = SPLIT_WORDS[words[-1]] if words else NO_SPLIT
    if TRAIN not in splits.values():
        return dict.fromkeys(paths, NO_SPLIT)
    if without := [path for path, split in splits.items() if split == NO_SPLIT]:
        other = next(path for path, split in splits.items() if split != NO_SPLIT)
        raise BadDataError(
            f"{printable(root)}: the name of {printable(without[0])} has no split, that of "
            f"{printable(other)} has one: expected train, validation or test in all names or none"
        )
    return splits


def labelled_set(
    source: ImageSource,
    name: str,
    labels: Mapping[bytes, tuple[int | str, int]],
    *,
    class_names: Sequence[str] = (),
    skipped: Sequence[Skipped] = (),
    groups: Mapping[bytes, bytes] | None = None,
) -> ImageSet:
    """Return a set from labels, path -> (label, split).

    Classes that occur are in the order of their numbers, which ``class_names`` may name, or of
    their names. Raises BadDataError for no classes, or labels that are none.
    """
    found = {label for label, _ in labels.values()}
    if all(re.fullmatch(r"-?\d{1,18}", str(label)) for label in found):
        numbers = sorted({int(label) for label in found})
        if class_names and not (numbers and 0 <= numbers[0] <= numbers[-1] < len(class_names)):
            raise BadDataError(
                f"{printable(source.root)} has labels from {numbers[0]} to {numbers[-1]}, but "
                f"{len(class_names)} class names"
            )
        classes = [class_names[number] if class_names else str(number) for number in numbers]
        index = {label: numbers.index(int(label)) for label in found}
    else:
        classes = sorted(map(str, found))
        index = {label: classes.index(str(label)) for label in found}
    if 2 * len(classes) > max(2 * MAX_UNIQUE, len(labels)):
        raise BadDataError(
            f"{printable(source.root)} has {len(classes):,} different labels for "
            f"{counted(len(labels), 'image')}, e.g. {printable(str(next(iter(found)))[:40])}: "
            f"captions or numbers, not classes; use a manifest"
        )
    if not classes:
        raise BadDataError(f"{printable(source.root)} has no labels")
    files = [
        FoundFile(path, index[label], split, group=(groups or {}).get(path, b""))
        for path, (label, split) in labels.items()
    ]
    return ImageSet(
        source=source,
        name=name,
        classes=tuple(os.fsencode(each).decode("utf-8", "backslashreplace") for each in classes),
        files=tuple(sorted(files, key=lambda file: (file.split, file.path))),
        skipped=tuple(skipped),
    )
