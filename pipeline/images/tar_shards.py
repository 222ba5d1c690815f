"""Sets in tar files, as WebDataset writes them, or with class folders; read without unpacking.

A sample is the members of one key: ``000012.jpg`` with ``000012.cls``, ``.json`` or ``.txt``.
"""

import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipeline.errors import BadDataError
from pipeline.images.scan import (
    NO_SPLIT,
    SPLIT_FOLDERS,
    SPLIT_NAMES,
    ImageSet,
    Skipped,
    is_junk,
    scan_paths,
)
from pipeline.images.shards import labelled_set, splits_of_shards
from pipeline.images.source import FileStat, FileStore, ImageSource
from pipeline.text import printable

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "heic", "heif",
          "avif", "jfif", "jp2")  # fmt: skip
LABELS = ("cls", "json", "txt")  # preferred first; texts are often captions
LABEL_KEYS = ("class_name", "label_name", "label", "class", "cls", "category")  # of JSON
MAX_LABEL = 1_000_000  # bytes of a label's member
CLASS_NAMES = "classnames.txt"  # beside the shards: the name of each number, one per line
BLOCK = 512  # bytes of a tar header


class _Member(NamedTuple):
    shard: bytes
    offset: int
    size: int


class TarSource(ImageSource):
    """The regular files in tar files; paths begin with the file's, if there are several.

    Raises BadDataError for a file that is no plain tar, or damaged.
    """

    def __init__(self, root: str, store: FileStore, shards: Sequence[bytes]) -> None:
        self._root, self._store = root, store
        self._stats = {shard: store.stat(shard) for shard in shards}
        self._members: dict[bytes, _Member] = {}
        self.labels: dict[bytes, str] = {}  # path of a label's member -> the label, if it has one
        self.skipped: list[Skipped] = []
        for shard in shards:
            place = f"{root}/{os.fsdecode(shard)}" if len(shards) > 1 else root
            self._index(shard, shard + b"/" if len(shards) > 1 else b"", place)

    @property
    def root(self) -> str:
        return self._root

    def list(self) -> Iterator[bytes]:
        yield from self._members

    def stat(self, path: bytes) -> FileStat:
        member = self._member(path)
        _, version, changed_ns = self._stats[member.shard]
        return FileStat(member.size, version and (*version, member.offset), changed_ns)

    def read(self, path: bytes) -> bytes:
        return self._store.read_range(*self._member(path))

    def shard_of(self, path: bytes) -> bytes:
        return self._members[path].shard

    def _member(self, path: bytes) -> _Member:
        if path not in self._members:
            raise FileNotFoundError("it is not in the archive any more")
        return self._members[path]

    def _index(self, shard: bytes, prefix: bytes, place: str) -> None:
        with self._store.open(shard) as file:
            try:
                tar = tarfile.open(fileobj=file, mode="r:", errors="surrogateescape")  # noqa: SIM115
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # it would keep them all
                    name = PurePosixPath(member.name)
                    path = prefix + os.fsencode(name)
                    if reason := _reason_to_skip(member, name):
                        self.skipped.append(Skipped(path, reason))
                    elif member.isreg() and not any(map(is_junk, name.parts)):
                        self._members[path] = _Member(shard, member.offset_data, member.size)
                        if name.suffix[1:].lower() in LABELS and member.size <= MAX_LABEL:
                            file.seek(member.offset_data)
                            label = _parse_label(file.read(member.size), name.suffix.lower())
                            if label is not None:
                                self.labels[path] = label
            except (tarfile.TarError, ValueError, OverflowError) as error:
                raise BadDataError(
                    f"{printable(place)} cannot be read as a plain tar file "
                    f"({printable(str(error))}): copy it again, or decompress it"
                ) from error
            file.seek(tar.offset)
            if file.read(BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise BadDataError(
                    f"{printable(place)} is damaged at byte {tar.offset:,}: copy it again"
                )


def _reason_to_skip(member: tarfile.TarInfo, name: PurePosixPath) -> str:
    """Return why a member is not read, or an empty string; folders have no reason."""
    if name.is_absolute() or ".." in name.parts:
        return "a name that leads out of the archive"
    if member.islnk() or member.issym():
        return "a link in an archive"
    if member.issparse() or not (member.isreg() or member.isdir()):
        return "neither a file nor a folder"
    return ""


def _parse_label(content: bytes, suffix: str) -> str | None:
    """Return a label as text; None if there is none."""
    text = content.decode("utf-8", "replace").strip()
    if suffix != ".json":
        return text or None
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
    if isinstance(value, dict):
        value = next((value[key] for key in LABEL_KEYS if value.get(key) is not None), None)
    return str(value) if isinstance(value, str | int) and value != "" else None


def open_tars(root: str, name: str, store: FileStore, shards: Sequence[str]) -> ImageSet:
    """Find the images, classes and splits in tar files; raises BadDataError."""
    source = TarSource(root, store, [os.fsencode(shard) for shard in shards])
    splits = splits_of_shards(root, shards)
    split_of = {path: splits[os.fsdecode(source.shard_of(path))] for path in source.list()}
    by_suffix: dict[str, dict[bytes, str]] = {suffix: {} for suffix in LABELS}
    for path, label in source.labels.items():
        key, suffix = _split_key(path)
        by_suffix[suffix][key] = label
    images = [path for path in split_of if _split_key(path)[1] in IMAGES]
    if not images:
        raise BadDataError(f"{printable(root)} contains no images, and {len(split_of):,} files")
    keys = {path: _split_key(path)[0] for path in images}
    if not any(key in labels for labels in by_suffix.values() for key in keys.values()):
        first = {path: _first_key(path) for path in images}  # 12.left.jpg, 12.cls
        keys = first if len(set(first.values())) == len(first) else keys
    for suffix in LABELS:
        labels = by_suffix[suffix]
        labelled = {
            path: (labels[key], split_of[path]) for path, key in keys.items() if key in labels
        }
        if labelled:
            without = [
                Skipped(path, f"has no label: no .{suffix} of this key")
                for path in images
                if path not in labelled and _first_key(path) not in labels
            ]
            return labelled_set(
                source,
                name,
                labelled,
                class_names=_read_class_names(store, shards),
                skipped=[*source.skipped, *without],
            )
    places: dict[str, bytes] = {}
    for path, below in _inner_paths(source, split_of, with_shard=len(shards) > 1).items():
        split = split_of[path]
        place = below if split == NO_SPLIT else f"{SPLIT_NAMES[split]}/{below}"
        while place in places:  # the same name in several shards
            place += "+"
        places[place] = path
    found = scan_paths(source, name, places)
    return replace(found, skipped=tuple(source.skipped))


def _inner_paths(
    source: TarSource, split_of: Mapping[bytes, int], *, with_shard: bool
) -> dict[bytes, str]:
    """Return the path of each file in its shard, below folders that are the split or of all files.

    Raises BadDataError if no file is in a folder.
    """
    inner = {
        path: os.fsdecode(path.removeprefix(source.shard_of(path) + b"/") if with_shard else path)
        for path in split_of
    }
    if not any("/" in path for path in inner.values()):
        raise BadDataError(
            f"{printable(source.root)} has no labels: expected class folders, or a .cls, .json or "
            f".txt with the label beside each image"
        )
    while True:
        for path, place in inner.items():
            folder, separator, below = place.partition("/")
            if separator and SPLIT_FOLDERS.get(folder.lower()) == split_of[path]:
                inner[path] = below
        folders = {place.partition("/")[0] for place in inner.values()}
        shorter = {path: place.partition("/")[2] for path, place in inner.items()}
        is_common = len(folders) == 1 and not folders & SPLIT_FOLDERS.keys()
        if not is_common or not any("/" in place for place in shorter.values()):
            return inner
        inner = shorter


def _split_key(path: bytes) -> tuple[bytes, str]:
    """Return key and suffix: ``a/cat.12.jpg`` -> ``a/cat.12``, ``jpg``."""
    key, _, suffix = path.rpartition(b".")
    return key, suffix.decode("utf-8", "replace").lower()


def _first_key(path: bytes) -> bytes:
    """Return the key of a further image of a sample: ``a/12.seg.png`` -> ``a/12``."""
    folder, slash, name = path.rpartition(b"/")
    return folder + slash + name.partition(b".")[0]


def _read_class_names(store: FileStore, shards: Sequence[str]) -> list[str]:
    """Read the class names beside the shards, or one folder up; none without the file."""
    folder = os.path.dirname(shards[0])  # noqa: PTH120 - a path in the store
    for place in dict.fromkeys((folder, os.path.dirname(folder))):  # noqa: PTH120
        path = os.fsencode(f"{place}/{CLASS_NAMES}" if place else CLASS_NAMES)
        with suppress(OSError):
            return store.read(path).decode("utf-8", "replace").strip().splitlines()
    return []
