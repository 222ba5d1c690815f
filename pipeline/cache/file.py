"""The published HDF5 file: its layout, reading it lazily, writing it at one go.

The layout is plain HDF5 (gzip level 1, no shuffle, fletcher32), specified in docs/FORMAT.md.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.cache.keys import DIGEST_DTYPE, RowKey
from pipeline.durable import write_durably
from pipeline.errors import BadDataError, NoInputError
from pipeline.spec import FeatureSpec

FORMAT_VERSION = 1
ROWS_PER_CHUNK = 64  # 2 MiB at (4, 4, 512) float32: one read for a few training batches
CHUNK_BYTES = 8 * 2**20  # larger maps get fewer rows a chunk, so that reading one stays cheap
SPLIT_NAMES = ("none", "train", "validation", "test")  # by their number in `splits`
NO_FILE = -1  # label of a row whose image is gone; kept, in case it comes back

LIBVER = ("earliest", "v110")  # what HDF5 1.10 and later, MATLAB included, can read

# gzip 1 without shuffle is what suits ReLU maps: 84 % zeros, 131 MB of them make 31 MB.
FILTERS: Mapping[str, Any] = {"compression": "gzip", "compression_opts": 1, "fletcher32": True}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What is known of each row besides its features.

    labels (N,) int64, splits (N,) uint8, paths (N,) bytes relative to the image root,
    digests (N,) V32, views (N,) int16.
    """

    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[np.uint8]
    paths: npt.NDArray[np.bytes_]
    digests: npt.NDArray[np.void]
    views: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Self:
        """The chosen rows, in the given order."""
        return type(self)(**{name: getattr(self, name)[rows] for name in COLUMN_DTYPES})

    def equals(self, other: Self) -> bool:
        """Whether all columns hold the same values."""
        return all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in COLUMN_DTYPES
        )

    def keys(self) -> list[RowKey]:
        """The content key of each row."""
        return [
            RowKey(digest.tobytes(), int(view))
            for digest, view in zip(self.digests, self.views, strict=True)
        ]


COLUMN_DTYPES: Mapping[str, str] = {
    "labels": "int64",
    "splits": "uint8",
    "paths": "S",
    "digests": "V32",
    "views": "int16",
}


def columns_of(
    *,
    labels: Sequence[int],
    splits: Sequence[int],
    paths: Sequence[bytes],
    digests: Sequence[bytes],
    views: Sequence[int],
) -> Columns:
    """Columns from plain sequences."""
    return Columns(
        labels=np.asarray(labels, np.int64),
        splits=np.asarray(splits, np.uint8),
        paths=np.asarray(paths, np.bytes_) if len(paths) else np.empty(0, "S1"),
        digests=np.frombuffer(b"".join(digests), DIGEST_DTYPE),
        views=np.asarray(views, np.int16),
    )


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """A cache as stage two sees it: the rows whose images exist, features read when asked for.

    Attributes
    ----------
    path : the HDF5 file.
    spec : what the features are.
    document : all of the file's ``spec`` dataset, parsed: set, root, engine, versions, created.
    classes : class names; ``columns.labels`` indexes them.
    columns : labels, splits, paths, digests and views of the N rows.
    layers : layer key -> shape of one row, e.g. ``{"block5_pool": (4, 4, 512)}``.
    file_rows : (N,) where in the file each row stands.
    """

    path: Path
    spec: FeatureSpec
    document: Mapping[str, Any]
    classes: tuple[str, ...]
    columns: Columns
    layers: Mapping[str, tuple[int, ...]]
    file_rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.columns)

    def features(
        self, layer: str, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Read features of one layer: (n, *shape of a row) float32.

        Only the chunks that hold the asked rows are read. Raises BadDataError if the file is
        damaged there.
        """
        wanted = self.file_rows if rows is None else self.file_rows[rows]
        return read_features(self, layer, wanted)


def read_features(
    table: FeatureTable, layer: str, file_rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Read rows by where they stand in the file; see `FeatureTable.features`."""
    with h5py.File(table.path, "r") as file:
        try:
            return read_rows(file[f"features/{layer}"], file_rows)
        except OSError as error:
            raise BadDataError(
                f"{table.path} is damaged in features/{layer}; delete it and extract again"
            ) from error


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
    for places in np.split(order, bounds):
        if len(places):
            first, last = int(rows[places[0]]), int(rows[places[-1]])
            out[places] = dataset[first : last + 1][rows[places] - first]
    return out


def rows_per_chunk(row_shape: Sequence[int], dtype: str) -> int:
    """How many rows share a chunk: 64, fewer where they would pass 8 MiB."""
    row_bytes = int(np.prod(row_shape)) * np.dtype(dtype).itemsize
    return max(1, min(ROWS_PER_CHUNK, CHUNK_BYTES // row_bytes))


def create_features(
    group: h5py.Group, layer: str, row_shape: Sequence[int], count: int, dtype: str
) -> h5py.Dataset:
    """An empty ``features/<layer>`` dataset with the format's chunks and filters."""
    return group.create_dataset(
        f"features/{layer}",
        shape=(count, *row_shape),
        dtype=dtype,
        chunks=(max(1, min(count, rows_per_chunk(row_shape, dtype))), *row_shape),
        **FILTERS,
    )


def read_table(path: Path) -> FeatureTable:
    """Open a cache file.

    Raises NoInputError if there is no such file, BadDataError if it is not one of ours.
    """
    table = read_all_rows(path)
    present = np.flatnonzero(table.columns.labels != NO_FILE)
    return FeatureTable(
        path=path,
        spec=table.spec,
        document=table.document,
        classes=table.classes,
        columns=table.columns.take(present),
        layers=table.layers,
        file_rows=present,
    )


def read_all_rows(path: Path) -> FeatureTable:
    """Like `read_table`, with the rows whose images are gone."""
    if not path.exists():
        raise NoInputError(f"{path} does not exist; run python -m pipeline.extract first")
    if path.is_dir():
        raise BadDataError(f"{path} is a folder, not a feature cache (a .h5 file)")
    try:
        with h5py.File(path, "r") as file:
            return _read_open_file(path, file)
    except OSError as error:
        raise BadDataError(f"{path} cannot be read as HDF5: it is no feature cache") from error


def _read_open_file(path: Path, file: h5py.File) -> FeatureTable:
    try:
        document = json.loads(_dataset(file, "spec").asstr()[()])
        if document["format"] != FORMAT_VERSION:
            raise BadDataError(
                f"{path} has format {document['format']}; this version reads {FORMAT_VERSION}"
            )
        spec = FeatureSpec.from_dict(document["spec"])
        classes = tuple(_dataset(file, "classes").asstr()[()])
        columns = Columns(**{name: _dataset(file, name)[()] for name in COLUMN_DTYPES})
        layers = {
            layer: tuple(_dataset(file, f"features/{layer}").shape[1:])
            for layer in file["features"]
        }
        for name, kind in COLUMN_DTYPES.items():
            column = getattr(columns, name)
            wrong_kind = column.dtype.kind != "S" if kind == "S" else column.dtype != kind
            if column.ndim != 1 or wrong_kind:
                raise BadDataError(f"{path} is no feature cache: its {name} are {column.dtype}")
        lengths = {len(getattr(columns, name)) for name in COLUMN_DTYPES}
        lengths |= {len(file[f"features/{layer}"]) for layer in layers}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadDataError(f"{path} is no feature cache of this pipeline ({error})") from error
    labels_known = columns.labels.max(initial=0) < max(len(classes), 1)
    if len(lengths) != 1 or not layers or not labels_known:
        raise BadDataError(f"{path} is damaged: its datasets do not fit one another")
    return FeatureTable(
        path=path,
        spec=spec,
        document=document,
        classes=classes,
        columns=columns,
        layers=layers,
        file_rows=np.arange(len(columns)),
    )


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset that holds its own data: a virtual or external one reads other files."""
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise KeyError(f"{name} is no plain dataset")
    return found


@dataclass(frozen=True)
class Source:
    """Where a row's features stand now: a file and the row in it."""

    path: Path
    row: int


def publish(
    path: Path,
    *,
    document: Mapping[str, Any],
    classes: Sequence[str],
    columns: Columns,
    layers: Mapping[str, tuple[tuple[int, ...], Sequence[Source | None]]],
) -> None:
    """Write a complete cache file beside its place, check it, and rename it there.

    Parameters
    ----------
    layers : layer key -> (shape of one row, the source of each row). A row without a source, one
        of an image that is gone and never had this layer, is filled with NaN.
    """
    dtype = document["spec"]["dtype"]

    def write(temporary: Path) -> None:
        with _GuardedFile(temporary) as stream, h5py.File(stream, "w", libver=LIBVER) as file:
            file["spec"] = json.dumps(document, ensure_ascii=False)
            file.create_dataset("classes", data=list(classes), dtype=h5py.string_dtype())
            for name in COLUMN_DTYPES:
                file[name] = getattr(columns, name)
            for layer, (row_shape, sources) in layers.items():
                target = create_features(file, layer, row_shape, len(columns), dtype)
                _copy_rows(target, layer, sources)
        check = read_all_rows(temporary)
        if len(check) != len(columns) or set(check.layers) != set(layers):
            raise OSError(f"{temporary} was not written whole")

    write_durably(path, write, needs=_stored_bytes(layers))


def _stored_bytes(layers: Mapping[str, tuple[tuple[int, ...], Sequence[Source | None]]]) -> int:
    """About how large the published file will be: as large as the files that it is made from."""
    rows = (row for _, sources in layers.values() for row in sources if row is not None)
    return sum(path.stat().st_size for path in {row.path for row in rows})


class _GuardedFile:
    """A file for HDF5 to write to that never tells it of a failure.

    On a full disk HDF5 can die of SIGSEGV. So the first error is kept, later writes go nowhere,
    and the error is raised when HDF5 is done.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb+", buffering=0)
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise self._error

    def write(self, data: memoryview) -> int:
        left = memoryview(data)
        with self._kept():
            while left and self._error is None:
                left = left[self._file.write(left) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._kept():
            self._file.truncate(size)
        return size or 0

    def flush(self) -> None:
        """Unbuffered: nothing to do."""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(buffer)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error


def _copy_rows(target: h5py.Dataset, layer: str, sources: Sequence[Source | None]) -> None:
    """Fill a dataset from other files; whole chunks travel compressed."""
    size = target.chunks[0]
    with _OpenFiles() as files:
        for start in range(0, len(sources), size):
            block = sources[start : start + size]
            whole = _whole_chunk(block, size)
            if whole is not None:
                source = files[whole.path][f"features/{layer}"]
                if (source.chunks, source.dtype) == (target.chunks, target.dtype):
                    origin = (whole.row, *(0 for _ in target.shape[1:]))
                    mask, data = source.id.read_direct_chunk(origin)
                    place = (start, *origin[1:])
                    target.id.write_direct_chunk(place, data, mask)
                    continue
            rows = np.full((len(block), *target.shape[1:]), np.nan, target.dtype)
            by_path: dict[Path, list[int]] = {}
            for place_in_block, row in enumerate(block):
                if row is not None:
                    by_path.setdefault(row.path, []).append(place_in_block)
            for source_path, places in by_path.items():
                wanted = np.asarray([block[place].row for place in places])  # type: ignore[union-attr]
                dataset = files[source_path][f"features/{layer}"]
                rows[places] = read_rows(dataset, wanted, str(target.dtype))
            target[start : start + len(block)] = rows


def _whole_chunk(block: Sequence[Source | None], size: int) -> Source | None:
    """The first row of a block, if the block is exactly one full chunk of one file."""
    first = block[0]
    if len(block) != size or first is None or first.row % size:
        return None
    expected = (Source(first.path, first.row + offset) for offset in range(size))
    return first if all(a == b for a, b in zip(block, expected, strict=True)) else None


class _OpenFiles:
    """The few source files open at a time; thousands of shards would pass the system's limit."""

    LIMIT = 16

    def __init__(self) -> None:
        self._files: dict[Path, h5py.File] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def __getitem__(self, path: Path) -> h5py.File:
        if path not in self._files:
            if len(self._files) >= self.LIMIT:
                self._files.pop(next(iter(self._files))).close()
            self._files[path] = h5py.File(path, "r")
        return self._files[path]


def cache_files(folder: Path) -> Iterator[Path]:
    """The cache files of a folder, newest first."""
    found = [path for path in folder.glob("*.h5") if path.is_file()]
    yield from sorted(found, key=lambda path: os.stat(path).st_mtime_ns, reverse=True)  # noqa: PTH116
