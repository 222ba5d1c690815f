"""A seal behind the HDF5 data: a checksum for every byte, and a spare copy of the metadata.

HDF5's own fletcher32 covers only chunks of features. The seal stands after HDF5's last byte, where
its readers never look; it tells which rows are wrong and mends all but features (docs/FORMAT.md).
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import h5py

from pipeline.durable import DiskFile

MAGIC = b"feature cache 1\n"
TAIL = struct.Struct("<QQ32s16s")  # lengths of index and spare copy, SHA-256 of both, magic
BYTES_PER_READ = 2**20

Stream = BinaryIO | DiskFile


class StoredChunk(NamedTuple):
    """A chunk of features as it is stored: where it stands in the file and which rows it holds."""

    offset: int
    length: int
    dataset: str
    first_row: int
    last_row: int
    sha256: str


class StoredColumn(NamedTuple):
    """An uncompressed dataset: where it stands in the file, and bytes per row."""

    offset: int
    length: int
    dataset: str
    row_bytes: int


@dataclass(frozen=True)
class Damage:
    """Bytes that are not what was written."""

    dataset: str  # empty for HDF5's own structures and the seal
    rows: tuple[int, int] | None  # the first and last
    what: str  # for people


class InvalidChecksumsError(Exception):
    """There is no readable seal; its message says why."""


@dataclass(frozen=True)
class Checksums:
    """What the file said when it was written."""

    end: int  # length of the HDF5 data
    chunks: tuple[StoredChunk, ...]
    columns: tuple[StoredColumn, ...]
    spare: bytes  # all that belong to no chunk of features

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """Offset and spare copy of each stretch that belongs to no chunk of features."""
        used = 0
        for offset, length in _gaps(self.chunks, self.end):
            yield offset, self.spare[used : used + length]
            used += length


def write_checksums(stream: Stream) -> None:
    """Checksums a whole HDF5 file that has just been written and closed by h5py."""
    chunks, columns = _layout(stream)
    end = stream.seek(0, 2)
    sealed = [chunk._replace(sha256=_sha256(stream, chunk)) for chunk in chunks]
    spare = b"".join(_read(stream, offset, length) for offset, length in _gaps(chunks, end))
    index = json.dumps({"end": end, "chunks": sealed, "columns": columns}).encode()
    packed = zlib.compress(spare, 1)
    stream.seek(0, 2)
    stream.write(index)
    stream.write(packed)
    digest = hashlib.sha256(index + packed).digest()
    stream.write(TAIL.pack(len(index), len(packed), digest, MAGIC))


def read_checksums(path: Path) -> Checksums:
    """Read a file's seal; raises InvalidChecksumsError if there is none or it is damaged itself."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        if size < TAIL.size:
            raise InvalidChecksumsError("the file is cut off")
        stream.seek(size - TAIL.size)
        index_length, packed_length, digest, magic = TAIL.unpack(stream.read(TAIL.size))
        start = size - TAIL.size - index_length - packed_length
        if magic != MAGIC or start < 0:
            raise InvalidChecksumsError("the file has no seal at its end, or is cut off")
        stream.seek(start)
        index, packed = stream.read(index_length), stream.read(packed_length)
    if hashlib.sha256(index + packed).digest() != digest:
        raise InvalidChecksumsError("the seal itself is damaged")
    values = json.loads(index)
    if values["end"] != start:
        raise InvalidChecksumsError("the seal belongs to a file of another length")
    return Checksums(
        end=start,
        chunks=tuple(StoredChunk(*chunk) for chunk in values["chunks"]),
        columns=tuple(StoredColumn(*column) for column in values["columns"]),
        spare=zlib.decompress(packed),
    )


def find_damage(path: Path) -> list[Damage]:
    """Compare every byte of a file with its seal; an empty list means the file is whole."""
    try:
        seal = read_checksums(path)
    except InvalidChecksumsError as broken:
        return [Damage("", None, str(broken))]
    damages = []
    with path.open("rb") as stream:
        for chunk in seal.chunks:
            if _sha256(stream, chunk) != chunk.sha256:
                rows = (chunk.first_row, chunk.last_row)
                words = f"{chunk.dataset}, rows {rows[0]} to {rows[1]}"
                damages.append(Damage(chunk.dataset, rows, words))
    return damages + find_metadata_damage(path, seal)


def find_metadata_damage(path: Path, seal: Checksums) -> list[Damage]:
    """Compare all that belongs to no chunk of features with the spare copy."""
    damages = []
    with path.open("rb") as stream:
        for offset, spare in seal.metadata():
            found = _read(stream, offset, len(spare))
            if found != spare:
                places = range(len(spare))
                place = next(at for at in places if found[at : at + 1] != spare[at : at + 1])
                damages.append(_metadata_damage(seal.columns, offset + place))
    return damages


def write_repaired(source: Path, target: Stream) -> None:
    """Copy a file with its metadata from the seal's spare copy; raises InvalidChecksumsError."""
    seal = read_checksums(source)
    with source.open("rb") as stream:
        for piece in _pieces(stream, 0, source.stat().st_size):
            target.write(piece)
    for offset, spare in seal.metadata():
        target.seek(offset)
        target.write(spare)


def _gaps(chunks: Sequence[StoredChunk], end: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each stretch that belongs to no chunk of features."""
    position = 0
    for chunk in chunks:
        if chunk.offset > position:
            yield position, chunk.offset - position
        position = chunk.offset + chunk.length
    if position < end:
        yield position, end - position


def _layout(stream: Stream) -> tuple[list[StoredChunk], list[StoredColumn]]:
    """Where chunks and columns stand, in the order of the file."""
    chunks: list[StoredChunk] = []
    columns: list[StoredColumn] = []
    stream.seek(0)
    with h5py.File(stream, "r") as file:

        def visit(name: str, node: object) -> None:
            if not isinstance(node, h5py.Dataset):
                return
            if node.chunks:
                rows, step = len(node), node.chunks[0]

                def add(info: h5py.h5d.StoreInfo) -> None:
                    first = info.chunk_offset[0]
                    last = min(first + step, rows) - 1
                    chunks.append(StoredChunk(info.byte_offset, info.size, name, first, last, ""))

                node.id.chunk_iter(add)
            elif (offset := node.id.get_offset()) is not None and node.ndim:
                length = node.id.get_storage_size()
                columns.append(StoredColumn(offset, length, name, node.dtype.itemsize))

        file.visititems(visit)
    return sorted(chunks), sorted(columns)


def _metadata_damage(columns: Sequence[StoredColumn], position: int) -> Damage:
    for column in columns:
        if column.offset <= position < column.offset + column.length:
            row = (position - column.offset) // column.row_bytes
            return Damage(column.dataset, (row, row), f"{column.dataset}, row {row}")
    return Damage("", None, f"metadata of the file, byte {position}")


def _sha256(stream: Stream, chunk: StoredChunk) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(stream, chunk.offset, chunk.length):
        digest.update(piece)
    return digest.hexdigest()


def _read(stream: Stream, offset: int, length: int) -> bytes:
    return b"".join(_pieces(stream, offset, length))


def _pieces(stream: Stream, offset: int, length: int) -> Iterator[bytes]:
    stream.seek(offset)
    while length > 0 and (piece := stream.read(min(length, BYTES_PER_READ))):
        length -= len(piece)
        yield piece
