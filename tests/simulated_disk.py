"""Simulate a disk that can fail or stop at any call, and what a crash leaves on it.

`SimulatedDisk` replaces `os` in `pipeline.durable`. It does every call on a real folder and keeps a
model of it: for each file the written and the synced bytes, for each folder its names now and at
its last sync. Before, half-way through and after each change it calls an observer, which can query
what a killed process or a power cut would leave. So one run covers a crash at each of its calls,
without the cleanup, which a killed process does not run. To see what the code does after a
*failed* call, run it with ``fail_at``.
"""

import errno
import itertools
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pipeline
from pipeline import durable

PACKAGE = str(Path(pipeline.__file__).parent)
NOT_DATA = (".lock", ".holder")  # files that matter only while a process runs
HARMLESS = {"name", "lseek", "read"}  # of os: they change nothing; other calls are modelled

Tree = frozenset[tuple[str, bytes | None]]  # relative path -> content; None is a folder
Observer = Callable[[str, str], None]


@dataclass
class File:
    """An inode: its written bytes, and those that survive a power cut."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    sync_failed: bool = False  # Linux then drops the pages: a later fsync succeeds without effect


@dataclass
class Folder:
    """The names in a folder, now and at its last sync."""

    names: "dict[str, File | Folder]" = field(default_factory=dict)
    synced: "dict[str, File | Folder]" = field(default_factory=dict)


@dataclass(frozen=True)
class Survival:
    """What survives a crash: unsynced names of the outer and inner folders, unsynced data."""

    outer_names: bool
    inner_names: bool
    data: str  # kept, lost or zeroed


KILL = "kill"
SURVIVALS = {
    KILL: Survival(True, True, "kept"),
    "power cut": Survival(False, False, "lost"),
    # As on ext4: folders are written back separately, and before the data of files.
    "power cut, names kept": Survival(True, True, "lost"),
    "power cut, names kept, data zeroed": Survival(True, True, "zeroed"),
    "power cut, outer names kept": Survival(True, False, "lost"),
    "power cut, inner names kept": Survival(False, True, "lost"),
}

# The errors that each call can raise; a short sweep tries only the first.
ERRORS = {
    "create": (errno.ENOSPC, errno.EIO),
    "write": (errno.ENOSPC, errno.EIO),
    "truncate": (errno.ENOSPC, errno.EIO),
    "fsync file": (errno.EIO, errno.ENOSPC),  # ENOSPC: blocks are allocated late, e.g. on NFS
    "fsync folder": (errno.EIO,),
    "rename": (errno.ENOSPC, errno.EIO),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "unlink": (errno.EIO,),
    "rmdir": (errno.EIO,),
}


class SimulatedDisk:
    """Replacement of `os` in `pipeline.durable`, for one folder.

    Parameters
    ----------
    root : the real folder; nothing outside it may change.
    model : the synced state of the folder; by default everything in it is synced.
    observe : called with (call site, "before" | "half" | "after") around each change.
    fail_at, error : the number of the call, from 1, that fails once with this errno.
    die_at, die_half : the number of the call before which (with ``die_half``, half-way through
        which) the process kills itself.
    run : number in temporary names, to distinguish those of two runs.
    without_sync : fsync does nothing at call sites for which this returns true.
    """

    def __init__(
        self,
        root: Path,
        *,
        model: Folder | None = None,
        observe: Observer = lambda site, moment: None,
        fail_at: int = 0,
        error: int = errno.EIO,
        die_at: int = 0,
        die_half: bool = False,
        run: int = 0,
        without_sync: Callable[[str], bool] = lambda site: False,
    ) -> None:
        self.root = root
        self.model = _folder_on_disk(root) if model is None else model
        self.calls = 0
        self.failed: str | None = None  # the site of the call that failed
        self._observe = observe
        self._fail_at, self._error = fail_at, error
        self._die_at, self._die_half = die_at, die_half
        self._run, self._without_sync = run, without_sync
        self._open: dict[int, File | Folder | None] = {}

    def __getattr__(self, name: str) -> Any:
        if name in HARMLESS or name.startswith(("O_", "SEEK_")):
            return getattr(os, name)
        raise AssertionError(f"os.{name} is not simulated: add it to tests/simulated_disk.py")

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Let `pipeline.durable` work on this disk, with the same temporary names in every run."""
        numbers = itertools.count()

        def uuid4() -> SimpleNamespace:
            return SimpleNamespace(hex=f"{self._run:02x}{next(numbers):06x}")

        with mock.patch.object(durable, "os", self), mock.patch.object(uuid, "uuid4", uuid4):
            yield

    def tree(self, survival: str = KILL) -> Tree:
        """Return the files that a crash at this moment leaves."""
        return frozenset(_surviving(self.model, SURVIVALS[survival], "", outer=True))

    # ---- the calls, in the order of a file's life

    def mkdir(self, path: Path) -> None:
        folder, name = self._place(path)
        with self._change("mkdir"):
            os.mkdir(path)  # noqa: PTH102
            folder.names[name] = Folder()

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if not flags & os.O_CREAT:
            descriptor = os.open(path, flags, mode)
            self._open[descriptor] = self._find(path)
            return descriptor
        folder, name = self._place(path)
        with self._change("create"):
            descriptor = os.open(path, flags, mode)
            node = folder.names.setdefault(name, File())
            assert isinstance(node, File)
            if flags & os.O_TRUNC:
                node.content.clear()
            self._open[descriptor] = node
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        file = self._file(descriptor)
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        half = start + len(data) // 2
        with self._change("write") as half_way:
            end = start + len(data)
            file.content.extend(bytes(max(0, start - len(file.content))))
            file.content[start:half] = data[: half - start]
            half_way(lambda: os.write(descriptor, data[: half - start]))
            assert os.write(descriptor, data) == len(data)
            file.content[half:end] = data[half - start :]
        return len(data)

    def ftruncate(self, descriptor: int, size: int) -> None:
        file = self._file(descriptor)
        with self._change("truncate"):
            os.ftruncate(descriptor, size)
            file.content[size:] = bytes(max(0, size - len(file.content)))

    def fsync(self, descriptor: int) -> None:
        """Sync only the model; the real disk would take time."""
        node = self._open[descriptor]
        kind = "fsync file" if isinstance(node, File) else "fsync folder"
        try:
            with self._change(kind):
                if self._without_sync(_site(kind)):
                    return
                if isinstance(node, Folder):
                    node.synced = dict(node.names)
                elif node is not None and not node.sync_failed:
                    node.synced = bytes(node.content)
        except OSError:
            if isinstance(node, File):
                node.sync_failed = True
            raise

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        del self._open[descriptor]

    def replace(self, source: Path, target: Path) -> None:
        old_folder, old_name = self._place(source)
        folder, name = self._place(target)
        with self._change("rename"):
            os.replace(source, target)  # noqa: PTH105
            folder.names[name] = old_folder.names.pop(old_name)

    def unlink(self, path: Path) -> None:
        self._remove(path, "unlink", os.unlink)

    def rmdir(self, path: Path) -> None:
        self._remove(path, "rmdir", os.rmdir)

    def _remove(self, path: Path, kind: str, remove: Callable[[Path], None]) -> None:
        folder, name = self._place(path)
        if name not in folder.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        with self._change(kind):
            remove(path)
            del folder.names[name]

    # ---- around each call

    @contextmanager
    def _change(self, kind: str) -> Iterator[Callable[[Callable[[], object]], None]]:
        """Number a call, notify the observer, fail or die if requested.

        Yields a function to call half-way through, with a function that does the first half.
        """
        self.calls += 1
        site = _site(kind)
        self._observe(site, "before")
        number = self.calls
        if number == self._fail_at:
            self.failed = site
            raise OSError(self._error, os.strerror(self._error))
        if number == self._die_at and not self._die_half:
            os.kill(os.getpid(), signal.SIGKILL)

        def half_way(do_half: Callable[[], object]) -> None:
            self._observe(site, "half")
            if number == self._die_at:
                do_half()
                os.kill(os.getpid(), signal.SIGKILL)

        yield half_way
        self._observe(site, "after")
        if number == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _file(self, descriptor: int) -> File:
        node = self._open[descriptor]
        assert isinstance(node, File)
        return node

    def _find(self, path: Path) -> File | Folder | None:
        """Return the node of a path; None outside the simulated folder."""
        if not path.is_relative_to(self.root):
            return None
        node: File | Folder = self.model
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            node = node.names[part]
        return node

    def _place(self, path: Path) -> tuple[Folder, str]:
        """Return the folder and the name of a path that is about to change."""
        folder = self._find(path.parent)
        assert isinstance(folder, Folder), f"{path} is outside {self.root}"
        return folder, path.name


def write_tree(tree: Tree, folder: Path) -> None:
    """Create a folder with these files."""
    folder.mkdir()
    for name, content in sorted(tree, key=lambda entry: entry[0]):
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def read_tree(folder: Path) -> Tree:
    """Read the files of a folder except locks."""
    return frozenset(
        (path.relative_to(folder).as_posix(), None if path.is_dir() else path.read_bytes())
        for path in folder.rglob("*")
        if path.suffix not in NOT_DATA
    )


def _folder_on_disk(path: Path) -> Folder:
    names: dict[str, File | Folder] = {}
    for entry in path.iterdir():
        if entry.is_dir():
            names[entry.name] = _folder_on_disk(entry)
        elif entry.suffix not in NOT_DATA:
            content = entry.read_bytes()
            names[entry.name] = File(bytearray(content), content)
    return Folder(names, dict(names))


def _surviving(
    folder: Folder, survival: Survival, prefix: str, *, outer: bool
) -> Iterator[tuple[str, bytes | None]]:
    kept = survival.outer_names if outer else survival.inner_names
    for name, node in (folder.names if kept else folder.synced).items():
        if isinstance(node, Folder):
            yield prefix + name, None
            yield from _surviving(node, survival, f"{prefix}{name}/", outer=False)
        elif survival.data == "kept":
            yield prefix + name, bytes(node.content)
        elif survival.data == "lost":
            yield prefix + name, node.synced
        else:
            yield prefix + name, node.synced.ljust(len(node.content), b"\0")


def _site(kind: str) -> str:
    """Return the package's functions on the stack, outermost first, and the kind of call."""
    names = []
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        name = code.co_qualname.rpartition("<locals>.")[2]
        if code.co_filename.startswith(PACKAGE) and not name.startswith("<"):
            names.append(name)
        frame = frame.f_back  # type: ignore[assignment]
    return " > ".join([*reversed(names), kind])
