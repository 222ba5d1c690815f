"""Find image files: in an image folder, with class and split, or by name and pattern."""

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.source import FolderSource, ImageSource
from pipeline.spec import CLASSES, MULTILABEL, UNLABELLED
from pipeline.text import counted, printable

NO_SPLIT, TRAIN, VALIDATION, TEST = range(4)
SPLIT_NAMES = ("none", "train", "validation", "test")  # by number
SPLIT_FOLDERS = {
    "train": TRAIN,
    "validation": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
    "test": TEST,
}
LIKE_SPLITS = (*SPLIT_FOLDERS, "training", "testing")
SIMILARITY = 0.7  # of difflib: trian is 0.8 like train, testing 0.73 like test
# Files and folders that systems and programs create beside images, besides hidden ones
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin",
        "system volume information"}  # fmt: skip
IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """An image of a set: relative POSIX path as bytes, class number, split number.

    ``targets`` are numbers instead of a class, see `pipeline.cache.file.Columns`; images of a
    ``group`` stay in one split.
    """

    path: bytes
    label: int
    split: int
    targets: tuple[float, ...] = ()
    group: bytes = b""


@dataclass(frozen=True)
class Skipped:
    """A file that gives no row, and the reason, for people."""

    path: bytes
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Return path and reason for JSON."""
        return {"path": os.fsdecode(self.path), "reason": self.reason}


@dataclass(frozen=True)
class ImageSet:
    """The images of a set, sorted by split and path, and its classes by name.

    ``ignored`` are the names of files and folders beside the class folders. ``task`` is what the
    labels are, see `pipeline.spec.TASKS`. ``folders`` are recorded in the cache, to find the images
    of a manifest or of several roots again: the beginning of paths -> folder.
    """

    source: ImageSource
    name: str
    classes: tuple[str, ...]
    files: tuple[FoundFile, ...]
    skipped: tuple[Skipped, ...]
    ignored: tuple[str, ...] = ()
    task: str = CLASSES
    folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """The place of the images, for messages and the cache."""
        return self.source.root

    @property
    def paths(self) -> list[bytes]:
        return [file.path for file in self.files]

    def limited(self, per_class: int) -> "ImageSet":
        """Keep the first ``per_class`` files by path of each split, and class if there are any.

        In a multi-label set, a file is kept if one of its labels has fewer so far.
        """
        counts: Counter[tuple[int, int]] = Counter()
        kept = []
        for file in self.files:
            labels = [file.label]
            if self.task == MULTILABEL:  # -1: files without labels
                labels = [label for label, has in enumerate(file.targets) if has] or [-1]
            groups = [(file.split, label) for label in labels]
            if any(counts[group] < per_class for group in groups):
                counts.update(groups)
                kept.append(file)
        return replace(self, files=tuple(kept))


def scan_unlabelled(root: Path) -> ImageSet:
    """Find the visible files of a folder, at any depth, without labels; raises NoInputError."""
    _require_folder(root)
    root = root.resolve()
    skipped: list[Skipped] = []
    paths = _find_files(_Folders(root), "", skipped)
    if not paths:
        raise NoInputError(f"{printable(root)} contains no files: add images")
    return ImageSet(
        source=FolderSource(root),
        name=f"{root.name}-{UNLABELLED}",
        classes=(),
        files=tuple(FoundFile(path, 0, NO_SPLIT) for path in paths),
        skipped=tuple(dict.fromkeys(skipped)),
        task=UNLABELLED,
    )


def scan_folder(root: Path, *, min_classes: int = 2) -> ImageSet:
    """Find class folders, with or without ``train/ validation/ test/``, and their visible files.

    Raises NoInputError, or BadDataError for another layout, an empty class or too few.
    """
    _require_folder(root)
    root = root.resolve()
    return _scan(_Folders(root), FolderSource(root), root.name, min_classes)


def scan_paths(source: ImageSource, name: str, paths: Mapping[str, bytes]) -> ImageSet:
    """Find class folders as `scan_folder`, in a listing: place in the set -> path in the source.

    Archives often contain one folder with the set: it is entered.
    """
    tree = _Listing(source.root, paths)
    while True:
        folders, files = tree.list("", [])
        if len(folders) != 1 or files or folders[0].lower() in SPLIT_FOLDERS:
            break
        if not tree.list(folders[0], [])[0]:  # the only class
            break
        prefix = folders[0] + "/"
        tree = _Listing(
            f"{tree.root}/{folders[0]}",
            {
                place.removeprefix(prefix): path
                for place, path in tree.paths.items()
                if place.startswith(prefix)
            },
        )
    found = _scan(tree, source, name)
    files_of_set = [replace(file, path=tree.paths[os.fsdecode(file.path)]) for file in found.files]
    return replace(found, files=_in_order(files_of_set))


class _Tree(Protocol):
    """Folders with files; a folder is its path from ``root``, empty for the root."""

    @property
    def root(self) -> str: ...

    def list(self, folder: str, skipped: list[Skipped]) -> tuple[list[str], list[str]]:
        """Return the sorted names of visible folders and of visible files."""
        ...


@dataclass(frozen=True)
class _Folders(_Tree):
    """The folders of a file system; links out of them and pipes are skipped."""

    path: Path

    @property
    def root(self) -> str:
        return os.fspath(self.path)

    def list(self, folder: str, skipped: list[Skipped]) -> tuple[list[str], list[str]]:
        folders: list[str] = []
        files: list[str] = []
        with os.scandir(self.path / folder) as entries:
            for entry in entries:
                if is_junk(entry.name):
                    continue
                if reason := _reason_to_skip(entry, self.path):
                    skipped.append(Skipped(os.fsencode(_join(folder, entry.name)), reason))
                    continue
                (folders if entry.is_dir() else files).append(entry.name)
        return sorted(folders), sorted(files)


class _Listing(_Tree):
    """The folders in a list of paths."""

    def __init__(self, root: str, paths: Mapping[str, bytes]) -> None:
        self._root = root
        self.paths = {path: paths[path] for path in paths if not is_hidden(os.fsencode(path))}
        self._folders: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
        for path in self.paths:
            folder, _, name = path.rpartition("/")
            self._entry(folder)[1].add(name)

    @property
    def root(self) -> str:
        return self._root

    def _entry(self, folder: str) -> tuple[set[str], set[str]]:
        if folder not in self._folders:
            self._folders[folder] = (set(), set())
            parent, _, name = folder.rpartition("/")
            self._entry(parent)[0].add(name)
        return self._folders[folder]

    def list(self, folder: str, skipped: list[Skipped]) -> tuple[list[str], list[str]]:
        folders, files = self._folders[folder]
        return sorted(folders), sorted(files)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _in_order(files: Iterable[FoundFile]) -> tuple[FoundFile, ...]:
    return tuple(sorted(files, key=lambda file: (file.split, file.path)))


def _scan(tree: _Tree, source: ImageSource, set_name: str, min_classes: int = 2) -> ImageSet:
    root = tree.root
    skipped: list[Skipped] = []
    folders, files = tree.list("", skipped)
    if not folders and not files and skipped:
        raise BadDataError(
            f"{printable(root)} has nothing to read: {printable(skipped[0].path)} is "
            f"{skipped[0].reason}; name the folder that it leads to, or copy it"
        )
    if not folders and not files:
        raise NoInputError(f"{printable(root)} is empty: add a folder of images per class")
    if not folders:
        raise BadDataError(
            f"{printable(root)} contains files but no class folders: "
            f"expected {printable(set_name)}/<class>/<image>; for features only, pass --unlabeled"
        )
    by_split = _find_split_folders(tree, folders)
    ignored = [] if not by_split else [name for name in folders if name not in by_split.values()]
    _refuse_sets(tree, [name for name in folders if name not in by_split.values()])
    class_folders = {
        (split, name): _join(folder, name)
        for split, folder in (by_split or {NO_SPLIT: ""}).items()
        for name in tree.list(folder, skipped)[0]
    }
    names = sorted({name for _, name in class_folders})
    if inner := [name for name in names if name.lower() in SPLIT_FOLDERS and by_split]:
        raise BadDataError(
            f"{printable(root)} contains {inner[0]}/ below {by_split[TRAIN]}/: a set inside a set; "
            f"name the inner folder, or move its folders up"
        )
    if len(names) < min_classes:
        only = next(iter(class_folders.values()), "")
        deeper = tree.list(only, [])[0] if names else []
        hint = f"; did you mean {printable(_join(root, only))}?" if len(deeper) > 1 else ""
        if hint and by_split:
            hint = f"; move the folders in {printable(only)}/ up by one"
        if hint or not names:
            raise BadDataError(
                f"{printable(root)} has {counted(len(names), 'class', 'classes')}: expected a "
                f"folder per class, or --unlabeled for features only{hint}"
            )
    files_of_set: list[FoundFile] = []
    for (split, name), folder in class_folders.items():
        paths = _find_files(tree, folder, skipped)
        if not paths:
            raise BadDataError(
                f"class folder {printable(_join(root, folder))} contains no files: add images or "
                f"remove it"
            )
        label = names.index(name)
        files_of_set += [FoundFile(path, label, split) for path in paths]
    return ImageSet(
        source=source,
        name=set_name,
        # HDF5 and JSON need valid UTF-8
        classes=tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names),
        files=_in_order(files_of_set),
        skipped=tuple(dict.fromkeys(skipped)),
        ignored=tuple(sorted(ignored + files)),
    )


def _find_split_folders(tree: _Tree, folders: Sequence[str]) -> dict[int, str]:
    """Map split number to folder name; empty if the set has no split folders."""
    named = [name for name in folders if name.lower() in SPLIT_FOLDERS]
    with_classes = [name for name in named if tree.list(name, [])[0]]
    _refuse_misspelt_splits(tree, folders, with_classes)
    if not with_classes:
        return {}
    by_split: dict[int, str] = {}
    for name in with_classes:
        split = SPLIT_FOLDERS[name.lower()]
        if split in by_split:
            raise BadDataError(
                f"{printable(tree.root)} contains both {by_split[split]}/ and {name}/: keep one of "
                f"them"
            )
        by_split[split] = name
    if TRAIN not in by_split:
        raise BadDataError(
            f"{printable(tree.root)} contains {', '.join(f'{name}/' for name in with_classes)} "
            f"but no train/ with class folders"
        )
    return dict(sorted(by_split.items()))


def _refuse_misspelt_splits(tree: _Tree, folders: Sequence[str], named: Sequence[str]) -> None:
    """Raise BadDataError for folders whose names are nearly those of splits: ``training``."""
    meant: dict[str, str] = {}  # folder -> name of the split
    for name in folders:
        word = re.split("[^a-z]", name.lower())[0]  # Test_data -> test
        similar = difflib.get_close_matches(word, LIKE_SPLITS, n=1, cutoff=SIMILARITY)
        if name not in named and similar and tree.list(name, [])[0]:
            starts = {"tr": "train", "va": "validation", "te": "test"}
            meant[name] = starts[similar[0][:2]]
    taken = {SPLIT_FOLDERS[name.lower()] for name in named}
    meant = {name: split for name, split in meant.items() if SPLIT_FOLDERS[split] not in taken}
    if (named and meant) or len(set(meant.values())) > 1:
        name, split = next(iter(meant.items()))
        count = counted(len(_find_files(tree, name, [])), "file")
        others = "".join(f", {other}/ to {each}/" for other, each in list(meant.items())[1:])
        raise BadDataError(
            f"{printable(_join(tree.root, name))} contains {count}; did you mean {split}/? "
            f"Rename {printable(name)}/ to {split}/{printable(others)}, or move it elsewhere"
        )


def _refuse_sets(tree: _Tree, folders: Sequence[str]) -> None:
    """Raise BadDataError for folders that are image sets, not classes.

    They contain ``train/`` with class folders, or folders with the names of two classes.
    """
    inner = {name: tree.list(name, [])[0] for name in folders}
    sets = [
        name
        for name in folders
        if len(set(inner[name]) & set(folders)) > 1
        or any(
            each.lower() == "train" and tree.list(f"{name}/{each}", [])[0] for each in inner[name]
        )
    ]
    if sets:
        named = " or ".join(printable(_join(tree.root, name)) for name in sets[:3])
        raise BadDataError(
            f"{printable(tree.root)} contains {counted(len(sets), 'image set')} beside or instead "
            f"of classes: name one, {named}, or move it elsewhere"
        )


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise NoInputError(f"image folder {printable(root)} {_reason_not_a_folder(root)}")


def _reason_not_a_folder(path: Path) -> str:
    """Return why a path is not an image folder, and what to do."""
    if path.exists():
        is_archive = path.suffix.lower() in ARCHIVES
        return (
            "is an archive: unpack it first"
            if is_archive
            else "is a file, not a folder or manifest (.csv, .tsv, .jsonl, .parquet)"
        )
    return URL_REASON if is_url(os.fspath(path)) else "does not exist"


URL_REASON = "is an address, which is not fetched: download it first"


def is_url(name: str) -> bool:
    """Return whether a name is an address, such as https://…"""
    scheme, separator, _ = name.partition(":/")  # pathlib removes a slash
    return bool(separator) and len(scheme) > 1 and scheme.isalnum()


def is_hidden(path: bytes) -> bool:
    """Return whether a path is, or is in, something that `is_junk`."""
    return any(map(is_junk, os.fsdecode(path).split("/")))


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that systems create beside images."""
    return name.startswith(".") or name.lower() in JUNK


def _find_files(tree: _Tree, folder: str, skipped: list[Skipped]) -> list[bytes]:
    """Return the sorted paths of the files below a folder."""
    folders, files = tree.list(folder, skipped)
    below = [path for name in folders for path in _find_files(tree, _join(folder, name), skipped)]
    return sorted([*below, *(os.fsencode(_join(folder, name)) for name in files)])


def _reason_to_skip(entry: "os.DirEntry[str]", root: Path) -> str:
    """Return the reason why an entry cannot be entered or read, or an empty string."""
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))
        if not target.is_relative_to(root):
            return "a link that leads out of the image folder"
        if target.is_dir():
            return "a link to another folder of this set"
    is_usable = entry.is_dir() or entry.is_file()  # of scandir: without a call of the system
    return "" if is_usable else _reason_not_a_file(Path(entry.path))


def find_images(names: Iterable[str]) -> tuple[list[bytes], list[Skipped]]:
    """Return the files of all names, each once and as written, and the skipped names.

    A name is a file, a folder (all files below it, sorted, except hidden ones and linked folders),
    or, if it does not exist, a glob pattern, with ``**`` for any folders.

    Raises UsageError for an empty name.
    """
    files: dict[bytes, None] = {}
    skipped: list[Skipped] = []
    for name in names:
        if not name:
            raise UsageError("an image name is empty: is a variable unset?")
        paths = [name]
        if glob.has_magic(name) and not (Path(name).exists() or Path(name).is_symlink()):
            paths = sorted(glob.glob(name, recursive=True), key=os.fsencode) or paths  # noqa: PTH207 - pathlib rejects absolute patterns
        for path in paths:
            below = sorted(_walk(path, skipped)) if Path(path).is_dir() else [os.fsencode(path)]
            for file in below:
                if reason := _reason_no_image(Path(os.fsdecode(file))):
                    skipped.append(Skipped(file, reason))
                else:
                    files[file] = None
    return list(files), skipped


def split_list(text: bytes) -> list[str]:
    """Split a list of names: one per line, or each ended by NUL, as from ``find -print0``.

    Raises UsageError for the content of an image file.
    """
    if text.startswith(IMAGE_SIGNATURES):
        raise UsageError("- reads a list of paths, one per line; received an image: name its file")
    if b"\0" in text:
        names = text.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in text.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]


def _walk(folder: str, skipped: list[Skipped]) -> Iterator[bytes]:
    """Yield the path of every visible file, link and pipe below a folder."""

    def cannot_enter(error: OSError) -> None:
        skipped.append(Skipped(os.fsencode(error.filename), f"cannot be read: {error.strerror}"))

    for parent, folders, names in os.walk(folder, onerror=cannot_enter):
        folders[:] = [name for name in folders if not is_junk(name)]
        for name in names:
            if not is_junk(name):
                yield os.fsencode(os.path.join(parent, name))  # noqa: PTH118 - ./a stays ./a


def _reason_no_image(path: Path) -> str:
    if path.suffix.lower() in (*ARCHIVES, ".parquet", ".arrow") and path.is_file():
        return "is an archive or table, not an image: unpack it first"
    return _reason_not_a_file(path)


def _reason_not_a_file(path: Path) -> str:
    """Return the reason why a path is not a file, or an empty string."""
    if path.is_file():
        return ""
    if path.is_symlink():
        return "a link that leads nowhere"
    if path.exists():
        return "neither a file nor a folder"
    return URL_REASON if is_url(os.fspath(path)) else "does not exist"
