"""Find image files: in an image folder, with class and split, or by name and pattern."""

import glob
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import BadDataError, NoInputError
from pipeline.text import counted, printable

NO_SPLIT, TRAIN, VALIDATION, TEST = range(4)
SPLIT_FOLDERS = {
    "train": TRAIN,
    "validation": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
    "test": TEST,
}
NOT_IMAGES = {"thumbs.db", "desktop.ini"}  # files that Windows creates in image folders


@dataclass(frozen=True)
class FoundFile:
    """A file below a class folder: relative POSIX path as bytes, class number, split number."""

    path: bytes
    label: int
    split: int


@dataclass(frozen=True)
class Skipped:
    """A file that gives no row, and the reason, for people."""

    path: bytes
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Return path and reason for JSON."""
        return {"path": os.fsdecode(self.path), "reason": self.reason}


@dataclass(frozen=True)
class ImageFolder:
    """The content of an image folder: files sorted by split and path, classes by name.

    ``ignored`` are the names of files and folders beside the class folders.
    """

    root: Path
    name: str
    classes: tuple[str, ...]
    files: tuple[FoundFile, ...]
    skipped: tuple[Skipped, ...]
    ignored: tuple[str, ...]

    @property
    def paths(self) -> list[bytes]:
        return [file.path for file in self.files]

    def limited(self, per_class: int) -> "ImageFolder":
        """Keep the first ``per_class`` files by path of each class and split."""
        groups: dict[tuple[int, int], list[FoundFile]] = defaultdict(list)
        for file in self.files:
            groups[file.split, file.label].append(file)
        kept = {file for group in groups.values() for file in group[:per_class]}
        return replace(self, files=tuple(file for file in self.files if file in kept))

    def only(self, paths: Collection[bytes], *, skipped: Sequence[Skipped] = ()) -> "ImageFolder":
        """Keep the files with these paths, and replace the list of skipped files."""
        kept = tuple(file for file in self.files if file.path in paths)
        return replace(self, files=kept, skipped=tuple(skipped), ignored=())


def scan_folder(root: Path) -> ImageFolder:
    """Find class folders, with or without ``train/ validation/ test/``, and their visible files.

    Raises NoInputError, or BadDataError for another layout, an empty class or fewer than two.
    """
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        raise NoInputError(f"image folder {printable(root)} {problem}")
    root = root.resolve()
    skipped: list[Skipped] = []
    folders, files = _list_folder(root, root, skipped)
    if not folders and not files:
        raise NoInputError(f"{printable(root)} is empty: add a folder of images per class")
    if not folders:
        raise BadDataError(
            f"{printable(root)} contains files but no class folders: "
            f"expected {printable(root.name)}/<class>/<image>"
        )
    by_split = _find_split_folders(root, folders)
    ignored = [] if not by_split else [name for name in folders if name not in by_split.values()]
    class_folders = {
        (split, name): root / folder / name
        for split, folder in (by_split or {NO_SPLIT: "."}).items()
        for name in _list_folder(root / folder, root, skipped)[0]
    }
    names = sorted({name for _, name in class_folders})
    if len(names) < 2:
        raise BadDataError(
            f"{printable(root)} has {counted(len(names), 'class', 'classes')}: expected at least "
            f"two folders, one per class"
        )
    files_of_set: list[FoundFile] = []
    for (split, name), folder in class_folders.items():
        paths = _find_files(folder, root, skipped)
        if not paths:
            raise BadDataError(
                f"class folder {printable(folder)} contains no files: add images or remove it"
            )
        files_of_set += [FoundFile(path, names.index(name), split) for path in paths]
    return ImageFolder(
        root=root,
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


def _list_folder(folder: Path, root: Path, skipped: list[Skipped]) -> tuple[list[str], list[str]]:
    """Return the sorted names of visible folders and of visible files; skip links and pipes."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in NOT_IMAGES:
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
    """
    files: dict[bytes, None] = {}
    skipped: list[Skipped] = []
    for name in names:
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
    """Split a list of names: one per line, or each ended by NUL, as from ``find -print0``."""
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
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower() not in NOT_IMAGES:
                yield os.fsencode(os.path.join(parent, name))  # noqa: PTH118 - ./a stays ./a


def _reason_not_a_file(path: Path) -> str:
    """Return the reason why a path is not a file, or an empty string."""
    if path.is_file():
        return ""
    if path.is_symlink():
        return "a link that leads nowhere"
    return "neither a file nor a folder" if path.exists() else "does not exist"
