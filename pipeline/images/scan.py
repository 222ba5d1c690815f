"""Find image files: in an image folder, with class and split, or by name and pattern."""

import difflib
import glob
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.source import FolderSource, ImageSource
from pipeline.spec import CLASSES
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


@dataclass(frozen=True)
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
    labels are, see `pipeline.spec.TASKS`.
    """

    source: ImageSource
    name: str
    classes: tuple[str, ...]
    files: tuple[FoundFile, ...]
    skipped: tuple[Skipped, ...]
    ignored: tuple[str, ...] = ()
    task: str = CLASSES

    @property
    def root(self) -> str:
        """The place of the images, for messages and the cache."""
        return self.source.root

    @property
    def paths(self) -> list[bytes]:
        return [file.path for file in self.files]

    def limited(self, per_class: int) -> "ImageSet":
        """Keep the first ``per_class`` files by path of each class and split."""
        groups: dict[tuple[int, int], list[FoundFile]] = defaultdict(list)
        for file in self.files:
            groups[file.split, file.label].append(file)
        kept = {file for group in groups.values() for file in group[:per_class]}
        return replace(self, files=tuple(file for file in self.files if file in kept))

    def only(self, paths: Collection[bytes], *, skipped: Sequence[Skipped] = ()) -> "ImageSet":
        """Keep the files with these paths, and replace the list of skipped files."""
        kept = tuple(file for file in self.files if file.path in paths)
        return replace(self, files=kept, skipped=tuple(skipped), ignored=())


def scan_folder(root: Path) -> ImageSet:
    """Find class folders, with or without ``train/ validation/ test/``, and their visible files.

    Raises NoInputError, or BadDataError for another layout, an empty class or fewer than two.
    """
    if not root.is_dir():
        raise NoInputError(f"image folder {printable(root)} {_reason_not_a_folder(root)}")
    root = root.resolve()
    skipped: list[Skipped] = []
    folders, files = _list_folder(root, root, skipped)
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
            f"expected {printable(root.name)}/<class>/<image>"
        )
    by_split = _find_split_folders(root, folders)
    ignored = [] if not by_split else [name for name in folders if name not in by_split.values()]
    _refuse_sets(root, [name for name in folders if name not in by_split.values()])
    class_folders = {
        (split, name): root / folder / name
        for split, folder in (by_split or {NO_SPLIT: "."}).items()
        for name in _list_folder(root / folder, root, skipped)[0]
    }
    names = sorted({name for _, name in class_folders})
    if inner := [name for name in names if name.lower() in SPLIT_FOLDERS and by_split]:
        raise BadDataError(
            f"{printable(root)} contains {inner[0]}/ below {by_split[TRAIN]}/: a set inside a set; "
            f"name the inner folder, or move its folders up"
        )
    if len(names) < 2:
        only = next(iter(class_folders.values()), root)
        deeper = [only / name for name in _list_folder(only, root, [])[0]] if names else []
        hint = f"; did you mean {printable(only)}?" if len(deeper) > 1 else ""
        if hint and by_split:
            hint = f"; move the folders in {printable(only.relative_to(root))}/ up by one"
        raise BadDataError(
            f"{printable(root)} has {counted(len(names), 'class', 'classes')}: expected at least "
            f"two folders, one per class{hint}"
        )
    files_of_set: list[FoundFile] = []
    for (split, name), folder in class_folders.items():
        paths = _find_files(folder, root, skipped)
        if not paths:
            raise BadDataError(
                f"class folder {printable(folder)} contains no files: add images or remove it"
            )
        files_of_set += [FoundFile(path, names.index(name), split) for path in paths]
    return ImageSet(
        source=FolderSource(root),
        name=root.name,
        # HDF5 and JSON need valid UTF-8
        classes=tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names),
        files=tuple(sorted(files_of_set, key=lambda file: (file.split, file.path))),
        skipped=tuple(dict.fromkeys(skipped)),
        ignored=tuple(sorted(ignored + files)),
    )


def _find_split_folders(root: Path, folders: Sequence[str]) -> dict[int, str]:
    """Map split number to folder name; empty if the set has no split folders."""
    named = [name for name in folders if name.lower() in SPLIT_FOLDERS]
    with_classes = [name for name in named if _list_folder(root / name, root, [])[0]]
    _refuse_misspelt_splits(root, folders, with_classes)
    if not with_classes:
        return {}
    by_split: dict[int, str] = {}
    for name in with_classes:
        split = SPLIT_FOLDERS[name.lower()]
        if split in by_split:
            raise BadDataError(
                f"{printable(root)} contains both {by_split[split]}/ and {name}/: keep one of them"
            )
        by_split[split] = name
    if TRAIN not in by_split:
        raise BadDataError(
            f"{printable(root)} contains {', '.join(f'{name}/' for name in with_classes)} "
            f"but no train/ with class folders"
        )
    return dict(sorted(by_split.items()))


def _refuse_misspelt_splits(root: Path, folders: Sequence[str], named: Sequence[str]) -> None:
    """Raise BadDataError for folders whose names are nearly those of splits: ``training``."""
    meant: dict[str, str] = {}  # folder -> name of the split
    for name in folders:
        word = re.split("[^a-z]", name.lower())[0]  # Test_data -> test
        similar = difflib.get_close_matches(word, LIKE_SPLITS, n=1, cutoff=SIMILARITY)
        if name not in named and similar and _list_folder(root / name, root, [])[0]:
            starts = {"tr": "train", "va": "validation", "te": "test"}
            meant[name] = starts[similar[0][:2]]
    taken = {SPLIT_FOLDERS[name.lower()] for name in named}
    meant = {name: split for name, split in meant.items() if SPLIT_FOLDERS[split] not in taken}
    if (named and meant) or len(set(meant.values())) > 1:
        name, split = next(iter(meant.items()))
        count = counted(len(_find_files(root / name, root, [])), "file")
        others = "".join(f", {other}/ to {each}/" for other, each in list(meant.items())[1:])
        raise BadDataError(
            f"{printable(root / name)} contains {count}; did you mean {split}/? "
            f"Rename {printable(name)}/ to {split}/{printable(others)}, or move it elsewhere"
        )


def _refuse_sets(root: Path, folders: Sequence[str]) -> None:
    """Raise BadDataError for folders that are image sets, not classes.

    They contain ``train/`` with class folders, or folders with the names of two classes.
    """
    inner = {name: _list_folder(root / name, root, [])[0] for name in folders}
    sets = [
        name
        for name in folders
        if len(set(inner[name]) & set(folders)) > 1
        or any(
            each.lower() == "train" and _list_folder(root / name / each, root, [])[0]
            for each in inner[name]
        )
    ]
    if sets:
        named = " or ".join(printable(root / name) for name in sets[:3])
        raise BadDataError(
            f"{printable(root)} contains {counted(len(sets), 'image set')} beside or instead of "
            f"classes: name one, {named}, or move it elsewhere"
        )


def _reason_not_a_folder(path: Path) -> str:
    """Return why a path is not an image folder, and what to do."""
    if path.exists():
        is_archive = path.suffix.lower() in ARCHIVES
        return "is an archive: unpack it first" if is_archive else "is a file, not a folder"
    return _URL_REASON if _is_url(os.fspath(path)) else "does not exist"


_URL_REASON = "is an address, which is not fetched: download it first"


def _is_url(name: str) -> bool:
    scheme, separator, _ = name.partition(":/")  # pathlib removes a slash
    return bool(separator) and len(scheme) > 1 and scheme.isalnum()


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that systems create beside images."""
    return name.startswith(".") or name.lower() in JUNK


def _list_folder(folder: Path, root: Path, skipped: list[Skipped]) -> tuple[list[str], list[str]]:
    """Return the sorted names of visible folders and of visible files; skip links and pipes."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            if reason := _reason_to_skip(entry, root):
                skipped.append(Skipped(_relative_path(folder / entry.name, root), reason))
                continue
            (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def _find_files(folder: Path, root: Path, skipped: list[Skipped]) -> list[bytes]:
    """Return the sorted relative paths of the regular files below a folder."""
    folders, files = _list_folder(folder, root, skipped)
    below = [path for name in folders for path in _find_files(folder / name, root, skipped)]
    return sorted([*below, *(_relative_path(folder / name, root) for name in files)])


def _relative_path(path: Path, root: Path) -> bytes:
    return os.fsencode(path.relative_to(root).as_posix())


def _reason_to_skip(entry: "os.DirEntry[str]", root: Path) -> str:
    """Return the reason why an entry cannot be entered or read, or an empty string."""
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))
        if not target.is_relative_to(root):
            return "a link that leads out of the image folder"
        if target.is_dir():
            return "a link to another folder of this set"
    return "" if entry.is_dir() else _reason_not_a_file(Path(entry.path))


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
                if reason := _reason_not_a_file(Path(os.fsdecode(file))):
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


def _reason_not_a_file(path: Path) -> str:
    """Return the reason why a path is not a file, or an empty string."""
    if path.is_file():
        return ""
    if path.is_symlink():
        return "a link that leads nowhere"
    if path.exists():
        return "neither a file nor a folder"
    return _URL_REASON if _is_url(os.fspath(path)) else "does not exist"
