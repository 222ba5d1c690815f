"""Find cache files by name: a file, an image folder or a set."""

import difflib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import h5py

from pipeline.cache.file import cache_files, read_all_rows
from pipeline.durable import write_durably
from pipeline.errors import (
    BadDataError,
    BusyError,
    DamagedError,
    NoInputError,
    PipelineError,
    StorageError,
    UsageError,
)
from pipeline.images.image_stores import recorded_root
from pipeline.images.manifest import is_manifest
from pipeline.images.object_storage import as_url
from pipeline.text import file_name, printable

log = logging.getLogger(__name__)

# File in a folder of caches: those that extract used, one per line, newest last. After the empty
# line are those of the last extract, that of its first base at the end.
LATEST = "latest"
BESIDE = (".lock", ".parts", ".skipped.csv")  # suffixes of what extract writes beside a cache
SHOWN = 6  # names in an error, which is one line


class _Source(NamedTuple):
    set: str
    root: Path


def record_latest(folder: Path, paths: Sequence[Path]) -> None:
    """Record the cache files of the last ``extract``, that of its first base first."""
    used = [_in_folder(folder, path.resolve()) for path in paths]
    earlier = [path for path in _last_used(folder) if path not in used]
    names = [
        b"" if path is None else os.fsencode(path.name if path.parent == folder else path)
        for path in (*reversed(earlier), None, *reversed(used))
    ]
    content, record = b"".join(name + b"\n" for name in names), folder / LATEST
    with suppress(OSError):
        if record.read_bytes() == content:
            return
    with suppress(OSError, StorageError):  # optional: the features are cached
        write_durably(record, lambda file: file.write(content))


def _in_folder(folder: Path, path: Path) -> Path:
    return folder / path.name if path.parent == folder.resolve() else path


def latest_caches(folder: Path) -> list[Path]:
    """Return the cache files of the last ``extract``, else the one written last.

    Raises NoInputError if there is none.
    """
    recorded = _recorded(folder)
    last_run = recorded[: recorded.index(folder)] if folder in recorded else recorded[:1]
    if found := [path for path in last_run if _is_file(path)] or _last_used(folder)[:1]:
        return found
    raise NoInputError(
        f"no feature cache in {printable(folder)}/; run python -m pipeline.extract first"
    )


def find_caches(folder: Path, names: Sequence[Path], *, damaged: bool = False) -> list[Path]:
    """Return the cache files of names, such as the shell's for ``cache/pets-*``.

    A set that the last extract has used, with several bases, stands for all their caches.
    Files that belong to a cache are left out if a cache file of their folder is named. Parameters
    and errors as those of `find_cache`.
    """
    folders = {name.parent for name in names if name.suffix == ".h5"}
    paths: dict[Path, None] = {}
    for name in names:
        is_part = name.name.endswith(BESIDE) or (name.parent / LATEST).is_file()
        if name.suffix == ".h5" or name.parent not in folders or not (is_part and name.exists()):
            path = find_cache(folder, name, damaged=damaged)
            is_file = name.suffix == ".h5" or name.is_file()
            last_run = [] if is_file else latest_caches(folder)
            if path in last_run[:1] and len(last_run) > 1:
                log.info("and of the other bases: %s", ", ".join(map(printable, last_run[1:])))
                paths |= dict.fromkeys(last_run)
            paths[path] = None
        elif name.suffix == ".parts" and not name.with_suffix(".h5").exists():
            log.warning("passed over: %s is an interrupted run of extract", printable(name))
    return list(paths)


def find_cache(folder: Path, name: Path, *, damaged: bool = False) -> Path:
    """Return a cache file, or the last used one of an image folder or set.

    Parameters
    ----------
    folder : of caches; ``name`` may be a file in it.
    damaged : also return a file that cannot be read, if its name is that of the set.

    Raises NoInputError if there is none, BadDataError for files that are no cache, UsageError if
    several image folders have the name; BusyError or DamagedError if the cache may be in a file
    that is open elsewhere or damaged. Other files that cannot be read are passed over.
    """
    if name.suffix == ".h5" or (name.is_file() and h5py.is_hdf5(name)):
        for path in (name, folder / name):
            if path.exists() or path.with_suffix(".parts").is_dir():
                return path
        files = [path.name for path in _last_used(folder)]
        cure = "run python -m pipeline.extract first"
        if files:
            cure = _nearest(name, files) or f"{cure}, or name one of {_listed(set(files))}"
        raise NoInputError(f"{printable(name)} does not exist; {cure}")
    path = _cache_of_set(folder, name, damaged=damaged)
    log.info("using the newest cache of %s: %s", printable(as_url(name) or name), printable(path))
    return path


def _cache_of_set(folder: Path, name: Path, *, damaged: bool) -> Path:
    sources: dict[Path, _Source] = {}
    unread: list[PipelineError] = []
    for path in _last_used(folder):
        try:
            document = read_all_rows(path).document
            sources[path] = _Source(str(document["set"]), Path(document["root"]))
        except PipelineError as error:
            if damaged and path.name.startswith(tuple(file_name(name.name) + c for c in "-+~")):
                sources[path] = _Source(name.name, recorded_root(name))
            else:
                unread += [error] * isinstance(error, BusyError | DamagedError)
    found = [path for path, source in sources.items() if source.root == recorded_root(name)]
    found = found or _caches_named(name, sources)
    if not found:
        if what := _describe_other(folder, name, set(sources.values())):
            raise (BadDataError if name.is_file() else NoInputError)(f"{printable(name)} {what}")
        missing = f"in {printable(folder)}/ is of {printable(name)}"
        if unread:
            raise type(unread[0])(f"no other cache {missing}: {unread[0]}")
        cure = _name_one(source.set for source in sources.values())
        if name.is_dir() or is_manifest(name) or not sources:
            cure = f"run python -m pipeline.extract {printable(name)} first"
        elif as_url(name):
            cure = f"run python -m pipeline.extract {printable(as_url(name))} first"
        else:
            is_path = name.name != str(name)
            texts = (_short(source) if is_path else source.set for source in sources.values())
            cure = _nearest(name, texts) or cure
        raise NoInputError(f"no cache {missing}: {cure}")
    for problem in unread:
        log.warning("passed over: %s", problem)
    return found[0]


def _caches_named(name: Path, sources: Mapping[Path, _Source]) -> list[Path]:
    """Return the caches of a set's name; raise UsageError if it is that of several folders."""
    found = {path: source.root for path, source in sources.items() if source.set == str(name)}
    folders = {root for root in found.values() if root.exists()}
    if folders and name.is_dir():
        folders.add(name.resolve())
    folders = folders or set(found.values())  # otherwise a moved folder would be a second one
    if len(folders) > 1:
        paths = " or ".join(sorted(map(printable, folders)))
        raise UsageError(
            f"{printable(name)} is the name of {len(folders)} image folders: name one of them by "
            f"its path, {paths}"
        )
    return [path for path, root in found.items() if root in folders]


def _describe_other(folder: Path, name: Path, sources: set[_Source]) -> str:
    """Say what a name is that is neither a set nor an image folder, and what to name instead."""
    place, caches = recorded_root(name), folder.resolve()
    name_one = _name_one(source.set for source in sources)
    below = {_short(source) for source in sources if source.root.is_relative_to(place)}
    above = {_short(source) for source in sources if place.is_relative_to(source.root)}
    for suffix in BESIDE:
        cache = Path(str(name).removesuffix(suffix) + ".h5")
        if name.name.endswith(suffix) and cache.is_file():
            return f"belongs to a cache: name {printable(cache)}"
    if name.suffix == ".parts" and name.is_dir():
        return "is an interrupted run of extract: run extract again"
    if place == caches:
        return f"is the folder of caches: {name_one}"
    if place.is_relative_to(caches) and name.exists():
        return f"is a part of the folder of caches, not a cache: {name_one}"
    if any((path / "results.json").is_file() for path in (place, *place.parents[:2])):
        return f"is a run of classify, or in one, not a cache: {name_one}"
    if any(place.glob("*/results.json")):
        return f"is a folder of runs of classify, not of images: {name_one}"
    if below:
        return f"contains image folders, and is not one: name one of {_listed(below)}"
    if (name / LATEST).is_file() or any(place.glob("*.h5")):
        return f"is a folder of caches: pass --cache-dir {printable(name)}, or name a file in it"
    for source in sources:
        if os.fspath(place) in os.fspath(source.root).split(os.pathsep):
            return f"is a part of the set {printable(source.set)}: name {printable(source.set)}"
    if above and name.exists():
        return f"is in the image folder of a set: name {_listed(above)}"
    if name.is_file() and not is_manifest(name):
        return f"is not a feature cache (a .h5 file): {name_one}"
    return ""


def _last_used(folder: Path) -> list[Path]:
    """Return the cache files that extract used, the last one first, then others, newest first."""
    paths = dict.fromkeys([*_recorded(folder), *cache_files(folder)])
    return [path for path in paths if _is_file(path)]


def _recorded(folder: Path) -> list[Path]:
    """Return the recorded cache files, the last one first; an empty line is ``folder`` itself."""
    with suppress(OSError):
        lines = (folder / LATEST).read_bytes().removesuffix(b"\n").split(b"\n")
        return [folder / os.fsdecode(line) for line in reversed(lines)]
    return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the record is damaged
        return False


def _short(source: _Source) -> str:
    """Return an image folder's path, from the current folder if it is below that."""
    with suppress(ValueError):
        return str(source.root.relative_to(Path.cwd()))
    return str(source.root)


def _nearest(name: Path, names: Iterable[str]) -> str:
    """Return a question for the name or path whose last part is most like another's, or ''."""
    by_part = {Path(text).name.lower(): text for text in names}
    close = difflib.get_close_matches(name.name.strip().lower(), by_part, n=1, cutoff=0.7)
    return f"did you mean {printable(by_part[close[0]])}?" if close else ""


def _name_one(names: Iterable[str]) -> str:
    listed = _listed(set(names))
    return f"name one of the sets {listed}, or a cache file" if listed else "name a cache file"


def _listed(names: set[str]) -> str:
    ordered = [printable(name) for name in sorted(names)]
    return ", ".join(ordered[:SHOWN]) + f" and {len(ordered) - SHOWN} more" * (len(ordered) > SHOWN)
