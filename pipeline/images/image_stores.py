"""Open sets that are not folders of this machine: tar and Parquet files, and object storage."""

import errno
import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.config import LabelConfig
from pipeline.images.object_storage import StorageSource, as_url
from pipeline.images.parquet_images import TableSource, image_column, open_tables
from pipeline.images.scan import NO_SPLIT, FoundFile, ImageSet, is_hidden, is_junk, scan_paths
from pipeline.images.shards import (
    COMPRESSED,
    SUFFIXES,
    TAR,
    expand_braces,
    expand_files,
    is_shard_set,
)
from pipeline.images.source import FileStore, FolderSource, ImageSource
from pipeline.images.tar_shards import TarSource, open_tars
from pipeline.spec import UNLABELLED
from pipeline.text import printable

LISTED = 100  # entries of a folder that decide whether it contains shards
NO_IMAGES = (".cls", ".json", ".jsonl", ".txt", ".md", ".csv")
MANIFESTS = (".csv", ".tsv", ".jsonl")


def open_store(name: str | os.PathLike[str], options: LabelConfig | None = None) -> ImageSet | None:
    """Find the images of a tar or Parquet file, of a folder or pattern of them, or of an address.

    ``options`` may name the columns of labels, splits and groups in Parquet files. Returns None
    for another folder or file. Raises a PipelineError for one that cannot be read.
    """
    url = as_url(name)
    with _readable(name):
        if (place := _find_store(url or os.fspath(name))) is None:
            return None
        root, store, shards = place
        if shards and not shards[0].lower().endswith(TAR):
            return open_tables(root, _set_name(root), store, shards, options)
        if options and options.first_of("label_column", "split_column", "group_column"):
            return None
        if shards:
            return open_tars(root, _set_name(root), store, shards)
        paths = {os.fsdecode(path): path for path in store.list()}
        if not paths:
            raise NoInputError(f"{printable(url)} does not exist, or is empty")
        return scan_paths(store, _set_name(root), paths)


def is_store(name: str | os.PathLike[str]) -> bool:
    """Return whether `open_store` finds images under a name."""
    with _readable(name):
        return _find_store(as_url(name) or os.fspath(name)) is not None


def list_store(name: str | os.PathLike[str]) -> ImageSet | None:
    """Find the images as `open_store`, without their labels."""
    with _readable(name):
        root = as_url(name) or os.fspath(recorded_root(name))
        if (source := reopen_store(root)) is None:
            return None
        paths = [
            path
            for path in source.list()
            if not is_hidden(path) and not os.fsdecode(path).lower().endswith(NO_IMAGES)
        ]
    if not paths:
        raise NoInputError(f"{printable(root)} contains no images, or does not exist")
    return ImageSet(
        source=source,
        name=f"{_set_name(root)}-{UNLABELLED}",
        classes=(),
        files=tuple(FoundFile(path, 0, NO_SPLIT) for path in sorted(paths)),
        skipped=(),
        task=UNLABELLED,
    )


@contextmanager
def _readable(name: str | os.PathLike[str]) -> Iterator[None]:
    """Raise NoInputError for an address or archive that cannot be read."""
    try:
        yield
    except OSError as error:
        url = as_url(name)
        if not url and not is_shard(os.fspath(name)):
            raise
        problem = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        at = f": {printable(error.filename)}" if isinstance(error.filename, str) else ""
        raise NoInputError(f"{printable(url or name)} {problem}{at}") from error


def reopen_store(root: str) -> ImageSource | None:
    """Return the source that a cache's ``root`` names, or None for another folder.

    Raises as `open_store`.
    """
    if (place := _find_store(root)) is None:
        return None
    _, store, shards = place
    if not shards:
        return store
    if shards[0].lower().endswith(TAR):
        return TarSource(root, store, [os.fsencode(shard) for shard in shards])
    return TableSource(root, store, shards)


def recorded_root(name: str | os.PathLike[str]) -> Path:
    """Return what a cache records as ``root`` for a folder, file or address, as a path."""
    if url := as_url(name):
        return Path(url)
    path = Path(name)
    return path.parent.resolve() / path.name if is_shard(os.fspath(name)) else path.resolve()


def exists(root: str) -> bool:
    """Return whether the place of a set exists; that of an address is not looked up."""
    return bool(as_url(root)) or any(Path(path).exists() for path in (root, *expand_files(root)))


def as_pattern(names: Sequence[str]) -> str:
    """Return one pattern of shards that a shell has expanded, or an empty string for others."""
    if len(names) < 2 or not all(name.lower().endswith(SUFFIXES) for name in names):
        return ""
    folder = os.path.commonprefix(names).rpartition("/")[0]  # noqa: RUF071
    below = ",".join(sorted(name[len(folder) :].lstrip("/") for name in names))
    return f"{folder}/{{{below}}}" if folder else f"{{{below}}}"


def _find_store(name: str) -> tuple[str, FileStore, list[str]] | None:
    """Return root and store of a set, and the sorted paths of its shards, if it has some.

    Returns None for a folder of images or a manifest on this machine.
    """
    url = as_url(name)
    if not is_shard(name):
        found = _in_storage(url) if url else _in_folder(Path(name))
    else:
        found = _matching(url or name, is_url=bool(url))
    if found is None:
        return None
    root, store, shards = found
    if compressed := [shard for shard in shards if shard.lower().endswith(COMPRESSED)]:
        raise BadDataError(
            f"{printable(compressed[0])} in {printable(root)} is compressed; images are read in "
            f"place, from a plain tar file: decompress it first"
        )
    kinds = {Path(shard).suffix.lower() for shard in shards}
    if len(kinds) > 1:
        raise BadDataError(
            f"{printable(root)} contains {' and '.join(sorted(kinds))} files: expected one kind"
        )
    if kinds == {".parquet"} and not url and not _has_images(store, shards[0]):
        return None  # a manifest
    return root, store, shards


def _has_images(store: FileStore, path: str) -> bool:
    try:
        return image_column(store, path) is not None
    except BadDataError:
        return False


def is_shard(name: str) -> bool:
    """Return whether a name is that of a tar or Parquet file, or of several: a pattern."""
    return expand_braces(name)[0].lower().endswith(SUFFIXES) and not Path(name).is_dir()


def _matching(name: str, *, is_url: bool) -> tuple[str, FileStore, list[str]]:
    """Return the shards that a name or pattern means; raises NoInputError if one is missing."""
    if not is_url:
        name = os.fspath(recorded_root(name))
    parts = name.split("/")
    is_literal = not is_url and Path(name).is_file()
    fixed = next((i for i, part in enumerate(parts) if _is_pattern(part)), len(parts))
    fixed = len(parts) - 1 if is_literal else min(fixed, len(parts) - 1)
    folder, below = "/".join(parts[:fixed]), "/".join(parts[fixed:])
    store = StorageSource(folder) if is_url else FolderSource(Path(folder))
    shards = []
    for each in [below] if is_literal else expand_braces(below):
        if glob.has_magic(each) and not is_literal:
            found = [path for path in map(os.fsdecode, store.list()) if fnmatch(path, each)]
        else:
            found = [each]
            store.stat(os.fsencode(each))
        if not found:
            raise FileNotFoundError(errno.ENOENT, "does not exist", each)
        shards += sorted(found)
    return name, store, shards


def _is_pattern(text: str) -> bool:
    return glob.has_magic(text) or len(expand_braces(text)) > 1


def _in_folder(path: Path) -> tuple[str, FileStore, list[str]] | None:
    if not path.is_dir() or not _contains_shards(path):
        return None
    root = path.resolve()
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    shards = _shards_among(names)
    return (os.fspath(root), FolderSource(root), shards) if is_shard_set(names) else None


def _contains_shards(folder: Path) -> bool:
    """Return whether shards are in a folder or those in it, with no files of other kinds."""
    names: list[str] = []
    for entry in folder.iterdir():
        if is_junk(entry.name):
            continue
        inner = islice(entry.iterdir(), LISTED) if entry.is_dir() else (entry,)
        names += [path.name for path in inner if not path.is_dir()]
        if len(names) > LISTED:
            break
    return is_shard_set(names)


def _in_storage(url: str) -> tuple[str, FileStore, list[str]]:
    if url.lower().endswith(MANIFESTS):
        raise UsageError(f"{printable(url)}: a manifest in a storage is not read: download it")
    store = StorageSource(url)
    paths = [os.fsdecode(path) for path in store.list()]
    return url, store, _shards_among(paths) if is_shard_set(paths) else []


def _shards_among(paths: Sequence[str]) -> list[str]:
    return sorted(
        path
        for path in paths
        if path.lower().endswith(SUFFIXES) and not is_hidden(os.fsencode(path))
    )


def _set_name(root: str) -> str:
    """Return the name of a set: that of its folder or file, without suffix."""
    folder, _, last = root.rpartition("/")
    if is_shard(root):
        last = folder.rpartition("/")[2] if _is_pattern(last) else last.rpartition(".")[0]
    return last or "set"
