"""Checksums at the end of an HDF5 file: a SHA-256 for every byte, a backup copy of the metadata.

HDF5's own fletcher32 covers only chunks of features. These checksums are the file's last dataset:
HDF5 cuts off bytes that it does not know when a file is opened for writing and closed. They name
damaged rows and restore all but features (docs/FORMAT.md).
"""

import contextlib
import hashlib
import json
import struct
import tempfile
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import h5py
import numpy as np

from pipeline.cache.hdf5 import open_hdf5
from pipeline.durable import DiskFile

MAGIC = b"feature cache 1\n"
TAIL = struct.Struct("<QQ32s16s")  # lengths of index and backup, SHA-256 of both, magic
DATASET = "checksums"
SPARE_BYTES = 8192  # the dataset's entry in HDF5's structures, about 700 bytes, and its backup copy
OPEN_FLAG = 20  # position of a byte that is 1 while HDF5 writes a file, also after a kill
BYTES_PER_READ = 2**20

Stream = BinaryIO | DiskFile


class StoredChunk(NamedTuple):
    """A stored chunk of features: its bytes in the file and its rows."""

    offset: int
    length: int
    dataset: str
    first_row: int
    last_row: int
    sha256: str


class StoredColumn(NamedTuple):
    """An uncompressed dataset: its bytes in the file, and bytes per row."""

    offset: int
    length: int
    dataset: str
    row_bytes: int


@dataclass(frozen=True)
class Damage:
    """Bytes that differ from those written."""

    dataset: str  # empty for HDF5's own structures and the checksums
    rows: tuple[int, int] | None  # first and last
    what: str  # shown to the user
    is_lost: bool = True  # False: a trace of another program, no damage to the content


class InvalidChecksumsError(Exception):
    """A file has no readable checksums; the message says why."""


@dataclass(frozen=True)
class Checksums:
    """The checksums of a file and the backup copy of its metadata."""

    end: int  # position of the checksums
    size: int  # length of the file; what follows is of another program
    chunks: tuple[StoredChunk, ...]
    columns: tuple[StoredColumn, ...]
    backup: bytes  # all bytes outside chunks of features

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """Yield offset and backup copy of each byte range outside chunks of features."""
        position = 0
        for offset, length in _gaps(self.chunks, self.end):
            yield offset, self.backup[position : position + length]
            position += length


def write_checksums(stream: Stream) -> None:
    """Append checksums to a complete HDF5 file that h5py has just closed."""
    with h5py.File(stream, "r+") as file:
        if DATASET in file:  # those of another layout
            del file[DATASET]
    chunks, columns = _read_layout(stream)
    chunks = [chunk._replace(sha256=_sha256(stream, chunk)) for chunk in chunks]
    size = len(_encode(stream, chunks, columns, end=stream.seek(0, 2))) + SPARE_BYTES
    with h5py.File(stream, "r+") as file:
        dataset = file.create_dataset(DATASET, (size,), "u1")
        dataset[-1] = 0  # HDF5 allocates the bytes now, after its structures: the last of the file
        end = dataset.id.get_offset()
    if end + size != (length := stream.seek(0, 2)):
        end = length  # a file of another program, with another strategy: HDF5 may cut them off
    encoded = _encode(stream, chunks, columns, end=end, size=size)
    stream.seek(end)
    stream.write(encoded)


def _encode(
    stream: Stream,
    chunks: Sequence[StoredChunk],
    columns: Sequence[StoredColumn],
    *,
    end: int,
    size: int = 0,
) -> bytes:
    """Return the checksums of the bytes before ``end``, padded to ``size``."""
    backup = b"".join(_read(stream, offset, length) for offset, length in _gaps(chunks, end))
    packed = zlib.compress(backup, 1)
    index = json.dumps({"end": end, "chunks": chunks, "columns": columns}).encode()
    index = index.ljust(size - len(packed) - TAIL.size)
    digest = hashlib.sha256(index + packed).digest()
    return index + packed + TAIL.pack(len(index), len(packed), digest, MAGIC)


def read_checksums(path: Path) -> Checksums:
    """Read a file's checksums; raises InvalidChecksumsError if they are missing or damaged."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        if _read(stream, max(0, size - len(MAGIC)), len(MAGIC)) != MAGIC:
            size = _end_of_dataset(path)  # another program has appended to the file
        if size < TAIL.size:
            raise InvalidChecksumsError("it has no checksums")
        stream.seek(size - TAIL.size)
        index_length, packed_length, digest, magic = TAIL.unpack(stream.read(TAIL.size))
        start = size - TAIL.size - index_length - packed_length
        if magic != MAGIC or start < 0:
            raise InvalidChecksumsError("its checksums are damaged")
        stream.seek(start)
        index, packed = stream.read(index_length), stream.read(packed_length)
    if hashlib.sha256(index + packed).digest() != digest:
        raise InvalidChecksumsError("its checksums are damaged")
    values = json.loads(index)
    if values["end"] != start:
        raise InvalidChecksumsError("its checksums are of a file of another length")
    return Checksums(
        end=start,
        size=size,
        chunks=tuple(StoredChunk(*chunk) for chunk in values["chunks"]),
        columns=tuple(StoredColumn(*column) for column in values["columns"]),
        backup=zlib.decompress(packed),
    )


def _end_of_dataset(path: Path) -> int:
    """Return where the checksums end by HDF5's structures; 0 if they are not in them."""
    with contextlib.suppress(OSError, KeyError, RuntimeError), open_hdf5(path) as file:
        dataset = file[DATASET]
        if isinstance(dataset, h5py.Dataset) and (offset := dataset.id.get_offset()):
            return int(offset + dataset.id.get_storage_size())
    return 0


def find_damage(path: Path, *, features: bool = True) -> list[Damage]:
    """Compare every byte of a file with its checksums; an empty list means no damage.

    Without ``features``, chunks of features are not read.
    """
    try:
        checksums = read_checksums(path)
    except InvalidChecksumsError as error:
        return [Damage("", None, str(error), is_lost=False)]
    damages = []
    for chunk in _damaged_chunks(path, checksums.chunks if features else ()):
        damages.append(_chunk_damage(chunk))
    with path.open("rb") as stream:
        if _read(stream, OPEN_FLAG, 1) != checksums.backup[OPEN_FLAG : OPEN_FLAG + 1]:
            what = "it is marked as open for writing: its writer was killed, or locks no files"
            damages.append(Damage("", None, what, is_lost=False))
    return list(dict.fromkeys((*damages, *find_metadata_damage(path, checksums))))


def find_damaged_rows(path: Path, layer: str, rows: Sequence[int]) -> set[int]:
    """Return the rows of the damaged chunks among those of some rows, if a file has checksums."""
    try:
        chunks = read_checksums(path).chunks
    except InvalidChecksumsError:
        return set()
    numbers = sorted(rows)

    def contains_any(chunk: StoredChunk) -> bool:
        return bisect_left(numbers, chunk.first_row) < bisect_right(numbers, chunk.last_row)

    name = f"features/{layer}"
    of_rows = (chunk for chunk in chunks if chunk.dataset == name and contains_any(chunk))
    damaged = _damaged_chunks(path, of_rows)
    return {row for chunk in damaged for row in range(chunk.first_row, chunk.last_row + 1)}


def _damaged_chunks(path: Path, chunks: Iterable[StoredChunk]) -> list[StoredChunk]:
    with path.open("rb") as stream:
        return [chunk for chunk in chunks if _sha256(stream, chunk) != chunk.sha256]


def find_metadata_damage(path: Path, checksums: Checksums) -> list[Damage]:
    """Compare every byte outside chunks of features with the backup copy; list the differences.

    HDF5's mark of open files is not compared: its readers ignore it. In a file with added bytes,
    HDF5's structures differ, too: there the content of the datasets is compared.
    """
    if added := path.stat().st_size - checksums.size:
        what = f"another program has added {added:,} bytes"
        return [*_find_replaced(path, checksums), Damage("", None, what, is_lost=False)]
    damages = []
    with path.open("rb") as stream:
        for offset, backup in checksums.metadata():
            data = _read(stream, offset, len(backup))
            if offset <= OPEN_FLAG < offset + len(data):
                flag = OPEN_FLAG - offset
                data = data[:flag] + backup[flag : flag + 1] + data[flag + 1 :]
            if data != backup:
                first = next(i for i in range(len(backup)) if data[i : i + 1] != backup[i : i + 1])
                damages.append(_metadata_damage(checksums.columns, offset + first))
    return damages


def _find_replaced(path: Path, checksums: Checksums) -> list[Damage]:
    """List the datasets that HDF5 no longer reads as written: other values, other chunks."""
    damages: list[Damage] = []
    with tempfile.TemporaryFile() as stream:
        stream.truncate(checksums.size)  # the file as written, without features: sparse
        for offset, backup in checksums.metadata():
            stream.seek(offset)
            stream.write(backup)
        with h5py.File(stream, "r") as written, open_hdf5(path) as file:

            def compare(name: str, node: object) -> None:
                if not isinstance(node, h5py.Dataset) or name == DATASET:
                    return
                now = file.get(name)
                if node.chunks:
                    replaced = set(_chunks(name, node)) - set(_chunks(name, now))
                    damages.extend(map(_chunk_damage, sorted(replaced)))
                elif not isinstance(now, h5py.Dataset) or not np.array_equal(node[()], now[()]):
                    damages.append(Damage(name, None, name))

            try:
                written.visititems(compare)
            except Exception:  # h5py raises many types on damaged structures
                damages.append(Damage("", None, "metadata of the file"))
    return damages


def write_repaired(source: Path, target: Stream) -> None:
    """Copy a file with its metadata from the backup copy; raises InvalidChecksumsError."""
    checksums = read_checksums(source)
    with source.open("rb") as stream:
        for block in _blocks(stream, 0, checksums.size):
            target.write(block)
    for offset, backup in checksums.metadata():
        target.seek(offset)
        target.write(backup)


def _gaps(chunks: Sequence[StoredChunk], end: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each byte range outside chunks of features."""
    position = 0
    for chunk in chunks:
        if chunk.offset > position:
            yield position, chunk.offset - position
        position = chunk.offset + chunk.length
    if position < end:
        yield position, end - position


def _read_layout(stream: Stream) -> tuple[list[StoredChunk], list[StoredColumn]]:
    """Return chunks, without their SHA-256, and columns, in the order of the file."""
    chunks: list[StoredChunk] = []
    columns: list[StoredColumn] = []
    stream.seek(0)
    with h5py.File(stream, "r") as file:

        def visit(name: str, node: object) -> None:
            if not isinstance(node, h5py.Dataset):
                return
            if node.chunks:
                chunks.extend(_chunks(name, node))
            elif (offset := node.id.get_offset()) is not None and node.ndim:
                length = node.id.get_storage_size()
                columns.append(StoredColumn(offset, length, name, node.dtype.itemsize))

        file.visititems(visit)
    return sorted(chunks), sorted(columns)


def _chunks(name: str, node: object) -> list[StoredChunk]:
    """Return the chunks of a dataset, without their SHA-256; none for another object."""
    chunks: list[StoredChunk] = []
    if isinstance(node, h5py.Dataset) and node.chunks:
        rows, size = len(node), node.chunks[0]

        def add(info: h5py.h5d.StoreInfo) -> None:
            first = info.chunk_offset[0]
            last = min(first + size, rows) - 1
            chunks.append(StoredChunk(info.byte_offset, info.size, name, first, last, ""))

        node.id.chunk_iter(add)
    return chunks


def _chunk_damage(chunk: StoredChunk) -> Damage:
    rows = (chunk.first_row, chunk.last_row)
    return Damage(chunk.dataset, rows, f"{chunk.dataset}, rows {rows[0]} to {rows[1]}")


def _metadata_damage(columns: Sequence[StoredColumn], position: int) -> Damage:
    for column in columns:
        if column.offset <= position < column.offset + column.length:
            row = (position - column.offset) // column.row_bytes
            return Damage(column.dataset, (row, row), f"{column.dataset}, row {row}")
    return Damage("", None, f"metadata of the file, byte {position}")


def _sha256(stream: Stream, chunk: StoredChunk) -> str:
    digest = hashlib.sha256()
    for block in _blocks(stream, chunk.offset, chunk.length):
        digest.update(block)
    return digest.hexdigest()


def _read(stream: Stream, offset: int, length: int) -> bytes:
    return b"".join(_blocks(stream, offset, length))


def _blocks(stream: Stream, offset: int, length: int) -> Iterator[bytes]:
    stream.seek(offset)
    while length > 0 and (block := stream.read(min(length, BYTES_PER_READ))):
        length -= len(block)
        yield block
