"""Find the image files that a command names: files, folders and patterns."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.images.scan import NOT_IMAGES, Skipped


def find_images(names: Iterable[str]) -> tuple[list[bytes], list[Skipped]]:
    """The files behind names, each once and as it was written, and what is no file, with reasons.

    A folder stands for all files below it, in the order of their paths; hidden ones and links to
    other folders are passed over. A name that does not exist counts as a pattern, in which ``**``
    stands for any folders.
    """
    files: dict[bytes, None] = {}
    skipped: list[Skipped] = []
    for path in (path for name in names for path in _matches(name)):
        below = sorted(_walk(path, skipped)) if Path(path).is_dir() else [os.fsencode(path)]
        for file in below:
            if reason := _reason_to_skip(Path(os.fsdecode(file))):
                skipped.append(Skipped(file, reason))
            else:
                files[file] = None
    return list(files), skipped


def split_list(text: bytes) -> list[str]:
    """Names from a list: one a line, or each ended by NUL, as ``find -print0`` writes them."""
    if b"\0" in text:
        names = text.split(b"\0")
    else:
        names = [line.removesuffix(b"\r") for line in text.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]


def _matches(name: str) -> list[str]:
    """The name itself, or, if nothing is called so, what it matches as a pattern."""
    path = Path(name)
    if path.exists() or path.is_symlink() or not glob.has_magic(name):
        return [name]
    return sorted(glob.glob(name, recursive=True), key=os.fsencode) or [name]  # noqa: PTH207 - pathlib takes no absolute patterns


def _walk(folder: str, skipped: list[Skipped]) -> Iterator[bytes]:
    """Everything below a folder that is neither hidden nor a folder."""

    def cannot_enter(error: OSError) -> None:
        skipped.append(Skipped(os.fsencode(error.filename), f"cannot be read: {error.strerror}"))

    for parent, folders, names in os.walk(folder, onerror=cannot_enter):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower() not in NOT_IMAGES:
                yield os.fsencode(os.path.join(parent, name))  # noqa: PTH118 - ./a stays ./a


def _reason_to_skip(path: Path) -> str:
    """Why there is no file to read at a path; empty if there is one."""
    if path.is_file():
        return ""
    if path.is_symlink():
        return "a link that leads nowhere"
    return "neither a file nor a folder" if path.exists() else "does not exist"
