"""The published HDF5 file, specified in docs/FORMAT.md, and its lazy reader."""

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.cache.checksums import InvalidChecksumsError, find_metadata_damage, read_checksums
from pipeline.cache.chunks import LEVEL
from pipeline.cache.hdf5 import damaged_error, describe_cut, length_before_cut, open_hdf5
from pipeline.cache.validation import (
    COLUMN_DTYPES,
    OPTIONAL_COLUMNS,
    InvalidCacheError,
    check_layout,
    check_values,
)
from pipeline.errors import (
    BadDataError,
    BusyError,
    CannotCreateError,
    DamagedError,
    NoInputError,
)
from pipeline.images.sets import is_gone
from pipeline.spec import CLASSES, FeatureSpec
from pipeline.text import file_name, printable

log = logging.getLogger(__name__)

DIGEST_DTYPE = np.dtype("V32")  # opaque: a fixed-width string would lose trailing zero bytes


class RowKey(NamedTuple):
    """The key of a row within a layer: the image's content and the number of the view."""

    digest: bytes  # SHA-256 of the image file
    view: int = 0  # 0 is the unaugmented image


class Row(NamedTuple):
    """The columns of one row."""

    key: RowKey
    path: bytes  # relative to the image root
    label: int
    split: int
    targets: tuple[float, ...] = ()
    group: bytes = b""


class Source(NamedTuple):
    """Where a row's features are: a cache file or shard, and the row's number in it."""

    path: Path
    row: int


FORMAT_VERSION = 1
FORMAT_WITH_TARGETS = 2  # refused by programs that would take the labels for classes
ROWS_PER_CHUNK = 64  # 2 MiB at (4, 4, 512) float32: one read serves several training batches
CHUNK_BYTES = 8 * 2**20  # larger maps have fewer rows per chunk, so that one read stays cheap
NO_FILE = -1  # label of a row whose image is gone; kept in case the image returns

MOVE_AWAY = "move it away and run extract again"

LIBVER = ("earliest", "v110")  # readable by HDF5 1.10 and later, also in MATLAB


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a cache besides features; paths are relative to the image root.

    Attributes
    ----------
    labels : (N,) class numbers; 0 for the rows of a set without classes.
    targets : (N, T) float64: 0 or 1 per class of a multi-label set, or the number of a regression;
        (N, 0) for classes.
    groups : (N,) names of groups that a split keeps together; empty without groups.
    """

    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[np.uint8]
    paths: npt.NDArray[np.bytes_]
    digests: npt.NDArray[np.void]
    views: npt.NDArray[np.int16]
    targets: npt.NDArray[np.float64]
    groups: npt.NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Self:
        return type(self)(**{name: values[rows] for name, values in vars(self).items()})

    def equals(self, other: Self) -> bool:
        return all(
            np.array_equal(values, vars(other)[name], equal_nan=name == "targets")
            for name, values in vars(self).items()
        )

    def stored(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns that a file contains: optional ones only if they are not empty."""
        is_empty = {"targets": not self.targets.shape[1], "groups": not self.groups.any()}
        return {name: values for name, values in vars(self).items() if not is_empty.get(name)}

    def row_keys(self) -> list[RowKey]:
        return list(map(RowKey, self.digests.tolist(), self.views.tolist()))


def make_columns(
    *,
    labels: Sequence[int],
    splits: Sequence[int],
    paths: Sequence[bytes],
    digests: Sequence[bytes],
    views: Sequence[int],
    targets: Sequence[Sequence[float]] = (),
    groups: Sequence[bytes] = (),
) -> Columns:
    """Convert sequences to columns: arrays of the stored dtypes; empty targets become NaN."""
    width = max(map(len, targets), default=0)
    values = [tuple(each) or (np.nan,) * width for each in targets] or [()] * len(labels)
    return Columns(
        labels=np.asarray(labels, np.int64),
        splits=np.asarray(splits, np.uint8),
        paths=np.asarray(paths, np.bytes_) if len(paths) else np.empty(0, "S1"),
        digests=np.frombuffer(b"".join(digests), DIGEST_DTYPE),
        views=np.asarray(views, np.int16),
        targets=np.asarray(values, np.float64).reshape(len(labels), width),
        groups=np.asarray(groups, np.bytes_) if len(groups) else np.zeros(len(labels), "S1"),
    )


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """An open cache: the columns of the rows whose images exist; features are read on request.

    Attributes
    ----------
    document : the file's ``spec`` dataset, parsed: set, root, engine, versions, created.
    classes : class names; ``columns.labels`` indexes them. Of a regression, the target's name.
    layers : layer key -> shape of one row, e.g. ``{"block5_pool": (4, 4, 512)}``.
    file_rows : (N,) number of each row in the file.
    version : identifies the published file; a later one may have moved rows.
    """

    path: Path
    spec: FeatureSpec
    document: Mapping[str, Any]
    classes: tuple[str, ...]
    columns: Columns
    layers: Mapping[str, tuple[int, ...]]
    file_rows: npt.NDArray[np.int64]
    version: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def task(self) -> str:
        """What the labels are: ``classes``, ``multilabel``, ``regression`` or ``unlabelled``."""
        return str(self.document.get("task", CLASSES))

    def features(
        self, layer: str, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Read (n, *shape of a row) float32; raises BadDataError if the file is damaged there."""
        file_rows = self.file_rows if rows is None else self.file_rows[rows]
        with open_hdf5(self.path) as file:
            # Checked after opening: a file published later is not read.
            if _version(self.path) != self.version:
                raise BusyError(f"{printable(self.path)} was written again meanwhile; run again")
            try:
                return read_rows(file[f"features/{layer}"], file_rows)
            except OSError as error:
                if error.errno:
                    raise
                raise damaged_error(self.path, f"features/{layer}") from error


def _version(path: Path) -> tuple[int, ...]:
    """A file's inode, size and mtime: every publication makes a new file."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def read_rows(
    dataset: h5py.Dataset, rows: npt.NDArray[np.int64], dtype: str = "float32"
) -> npt.NDArray[Any]:
    """Read rows of a dataset in the given order, each chunk at most once."""
    out = np.empty((len(rows), *dataset.shape[1:]), dtype)
    if np.array_equal(rows, np.arange(len(dataset))):
        dataset.read_direct(out)
        return out
    rows_per_chunk = dataset.chunks[0]
    order = np.argsort(rows, kind="stable")
    bounds = np.flatnonzero(np.diff(rows[order] // rows_per_chunk)) + 1
    for indices in np.split(order, bounds):
        if len(indices):
            first, last = int(rows[indices[0]]), int(rows[indices[-1]])
            out[indices] = dataset[first : last + 1][rows[indices] - first]
    return out


def rows_per_chunk(row_shape: Sequence[int], dtype: str) -> int:
    """Return the number of rows per chunk: 64, or fewer if these exceed 8 MiB."""
    row_bytes = int(np.prod(row_shape)) * np.dtype(dtype).itemsize
    return max(1, min(ROWS_PER_CHUNK, CHUNK_BYTES // row_bytes))


def create_features(
    group: h5py.Group, layer: str, row_shape: Sequence[int], count: int, dtype: str
) -> h5py.Dataset:
    """Create an empty ``features/<layer>`` dataset with the format's chunks and filters."""
    return group.create_dataset(
        f"features/{layer}",
        shape=(count, *row_shape),
        dtype=dtype,
        chunks=(max(1, min(count, rows_per_chunk(row_shape, dtype))), *row_shape),
        compression="gzip",
        compression_opts=LEVEL,
        fletcher32=True,
    )


def read_table(path: Path) -> FeatureTable:
    """Open a cache file; raises NoInputError, BusyError, or BadDataError if it is not a cache."""
    table = read_all_rows(path)
    present = np.flatnonzero(table.columns.labels != NO_FILE)
    return replace(table, columns=table.columns.take(present), file_rows=present)


def read_all_rows(path: Path) -> FeatureTable:
    """Open a cache file with all rows, also those whose images are gone; raises as `read_table`."""
    if not path.exists():
        raise NoInputError(
            f"{printable(path)} does not exist; run python -m pipeline.extract first"
        )
    if path.is_dir():
        raise BadDataError(f"{printable(path)} is a folder, not a feature cache (a .h5 file)")
    version = _version(path)  # before anything is read
    with contextlib.suppress(InvalidChecksumsError):  # files of other programs have none
        for damage in find_metadata_damage(path, read_checksums(path)):
            if damage.is_lost:
                raise damaged_error(path, damage.what)
            _warn_once(f"{printable(path)}: {damage.what}; cache repair removes what was added")
    try:
        with open_hdf5(path) as file:
            check_layout(file)
            return _read_columns(path, file, version)
    except InvalidCacheError as error:
        raise BadDataError(f"{printable(path)} is refused: {error}; {MOVE_AWAY}") from error
    except BusyError:
        raise
    except Exception as error:  # h5py raises many types on damaged structures
        if isinstance(error, OSError) and error.errno:
            raise
        if length := length_before_cut(path):
            raise DamagedError(
                f"{printable(path)} is {describe_cut(path, length)}; try python -m pipeline.cache "
                f"repair {printable(path)}, or {MOVE_AWAY}"
            ) from error
        raise BadDataError(
            f"{printable(path)} cannot be read: it is not a feature cache, or damaged beyond "
            f"repair ({printable(str(error))}); {MOVE_AWAY}"
        ) from error


@functools.cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)


def _read_columns(path: Path, file: h5py.File, version: tuple[int, ...]) -> FeatureTable:
    """Read everything but features; raises InvalidCacheError."""
    try:
        document = json.loads(file["spec"].asstr()[()])
        if document["format"] not in (FORMAT_VERSION, FORMAT_WITH_TARGETS):
            raise InvalidCacheError(
                f"its format is {document['format']}; this version reads {FORMAT_WITH_TARGETS}"
            )
        spec = FeatureSpec.from_dict(document["spec"])
        classes = tuple(file["classes"].asstr()[()])
        for name, kinds in (("set", str), ("root", str), ("engine", dict | None)):
            if not isinstance(document[name], kinds):
                raise InvalidCacheError(f"the {name} in its spec has the wrong type")
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidCacheError(f"its spec cannot be read ({error})") from error
    task = document.get("task", CLASSES)
    columns = {name: file[name][()] for name in COLUMN_DTYPES}
    columns |= {name: file[name][()] for name in OPTIONAL_COLUMNS if name in file}
    columns.setdefault("targets", np.empty((len(columns["labels"]), 0)))
    columns.setdefault("groups", np.zeros(len(columns["labels"]), "S1"))
    check_values(columns, len(classes), task)
    return FeatureTable(
        path=path,
        spec=spec,
        document=document,
        classes=classes,
        columns=Columns(**columns),
        layers={layer: tuple(rows.shape[1:]) for layer, rows in file["features"].items()},
        file_rows=np.arange(len(columns["labels"])),
        version=version,
    )


def cache_files(folder: Path) -> Iterator[Path]:
    """Yield the cache files of a folder, newest first."""
    paths = [path for path in folder.glob("*.h5") if path.is_file()]
    yield from sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def cache_file(
    folder: Path,
    *,
    set_name: str,
    root: str,
    spec: FeatureSpec,
    variant: str = "",
    digests: Collection[bytes],
) -> Path:
    """Return a set's cache file: ``<set>-<base>-<fingerprint>.h5``, or ``<set>+<variant>-…``.

    A moved image folder keeps its file, because images are recognised by content. Another folder of
    the same name gets a file name with six digits of its path's digest: if the recorded folder
    still exists, or if the plain file contains none of the images.
    """
    name = file_name(set_name) + f"+{variant}" * bool(variant)
    plain = folder / f"{name}-{spec.base}-{spec.fingerprint}.h5"
    table = existing_table(plain)
    if table is None or table.document["root"] == root:
        return plain
    was_moved = any(key.digest in digests for key in table.columns.row_keys())
    if was_moved and is_gone(table.document):
        return plain
    digits = hashlib.sha256(os.fsencode(root)).hexdigest()[:6]
    return folder / f"{name}~{digits}-{spec.base}-{spec.fingerprint}.h5"


def existing_table(path: Path) -> FeatureTable | None:
    """Open the cache at a path, None for no file; raises CannotCreateError for other files."""
    if not path.exists():
        return None
    try:
        return read_all_rows(path)
    except DamagedError:
        raise
    except BadDataError as error:
        raise CannotCreateError(f"{error}, or choose another --out") from error
