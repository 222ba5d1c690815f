"""Plan an extraction: batches of missing rows, in units that any number of processes compute.

Every process divides the same rows into the same batches, so that features do not depend on who
computes what, nor on the order. A plan is written beside the shards; `compute_units` needs only it,
the images and that folder.
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from pipeline.cache.compute import Computation, OpenEngine, compute_rows, decode_batches
from pipeline.cache.config import ViewPlan
from pipeline.cache.file import DIGEST_DTYPE, ROWS_PER_CHUNK, RowKey
from pipeline.cache.row_index import RowIndex
from pipeline.cache.shards import PLAN, Shard, ShardFolder
from pipeline.durable import make_folder, write_durably
from pipeline.errors import BadDataError, NoInputError, UnreachableError
from pipeline.images.scan import Skipped
from pipeline.images.source import ImageSource
from pipeline.spec import FeatureSpec
from pipeline.text import printable

FORMAT = 1
DIGEST_BYTES = 32


class PlannedRow(NamedTuple):
    """A row to compute: the path of its image, and its key."""

    path: bytes
    key: RowKey


Batch = Sequence[PlannedRow]  # computed in one call of the engine
Batches = Mapping[tuple[str, ...], Sequence[Batch]]  # by the layers to compute


class Unit(NamedTuple):
    """Consecutive batches that one process computes: about as many rows as a chunk has."""

    layers: tuple[str, ...]
    batches: Sequence[Batch]

    @property
    def row_count(self) -> int:
        return sum(map(len, self.batches))


@dataclass(frozen=True, kw_only=True)
class ExtractionPlan:
    """The rows that the published cache file lacks, in batches of a stable order.

    Attributes
    ----------
    document : content of the cache's ``spec`` dataset, with the plan of the views.
    engine : name, version and measured error of the engine of every process; None without rows.
    """

    document: Mapping[str, Any]
    batches: Batches
    batch_size: int
    engine: Mapping[str, Any] | None = None

    @property
    def spec(self) -> FeatureSpec:
        return FeatureSpec.from_dict(self.document["spec"])

    @property
    def views(self) -> ViewPlan:
        return ViewPlan.from_document(self.document)

    @cached_property
    def units(self) -> list[Unit]:
        size = math.ceil(ROWS_PER_CHUNK / self.batch_size)
        return [
            Unit(layers, batches[start : start + size])
            for layers, batches in self.batches.items()
            for start in range(0, len(batches), size)
        ]

    def incomplete_units(self, shards: Sequence[Shard]) -> list[int]:
        """Return the numbers of the units that lack rows in the shards."""
        index = RowIndex(None, shards)
        return [
            number
            for number, unit in enumerate(self.units)
            if incomplete_batches({unit.layers: unit.batches}, index)
        ]

    def write(self, folder: Path) -> Path:
        """Write the plan durably into the folder of the shards; return its path."""
        path = folder / PLAN
        data = self.to_bytes()
        make_folder(folder)
        write_durably(path, lambda file: file.write(data))
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan; raises NoInputError for no file, BadDataError for another file."""
        return cls.load(path.read_bytes, path)

    @classmethod
    def load(cls, read: Callable[[], bytes], path: str | Path) -> Self:
        """Return the plan in the bytes that ``read`` returns; raises as `ExtractionPlan.read`."""
        try:
            return cls.from_bytes(read())
        except FileNotFoundError as error:
            raise NoInputError(
                f"{printable(path)} does not exist: run extract with --plan first"
            ) from error
        except (OSError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, OSError) and (error.errno or isinstance(error, PermissionError)):
                raise
            raise BadDataError(
                f"{printable(path)} is not a plan of this version ({printable(str(error))}): run "
                f"extract with --plan again"
            ) from error

    def to_bytes(self) -> bytes:
        """Return the plan as an HDF5 file, followed by its SHA-256."""
        rows = [row for batches in self.batches.values() for batch in batches for row in batch]
        groups = [
            {"layers": layers, "rows": sum(map(len, batches))}
            for layers, batches in self.batches.items()
        ]
        head = {"format": FORMAT, "document": self.document, "engine": self.engine}
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["plan"] = json.dumps({**head, "batch_size": self.batch_size, "groups": groups})
            columns = {
                "paths": np.array([row.path for row in rows] or [b""], np.bytes_)[: len(rows)],
                "digests": np.frombuffer(b"".join(row.key.digest for row in rows), DIGEST_DTYPE),
                "views": np.array([row.key.view for row in rows], np.int16),
            }
            for name, values in columns.items():
                file.create_dataset(name, data=values)
        data = buffer.getvalue()
        return data + sha256(data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read `to_bytes`; raises OSError, KeyError, ValueError or TypeError for other content."""
        data, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if sha256(data).digest() != digest:  # a damaged HDF5 file may not end to be read
            raise ValueError("its checksum does not match")
        with h5py.File(io.BytesIO(data), "r") as file:
            head = json.loads(file["plan"].asstr()[()])
            columns = [file[name][()] for name in ("paths", "digests", "views")]
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']}, expected {FORMAT}")
        rows = iter(
            PlannedRow(bytes(path), RowKey(digest.tobytes(), int(view)))
            for path, digest, view in zip(*columns, strict=True)
        )
        size = int(head["batch_size"])
        batches: dict[tuple[str, ...], Sequence[Batch]] = {}
        for group in head["groups"]:
            of_group = [next(rows) for _ in range(group["rows"])]
            batches[tuple(group["layers"])] = in_batches(of_group, size)
        plan = cls(
            document=head["document"], batches=batches, batch_size=size, engine=head["engine"]
        )
        _ = plan.spec  # of another version of this package
        return plan


class ComputedUnits(NamedTuple):
    """What `compute_units` did: rows committed, and images that cannot be read."""

    rows: int
    skipped: tuple[Skipped, ...]


def compute_units(
    plan: ExtractionPlan,
    numbers: Sequence[int],
    shards: ShardFolder,
    source: ImageSource,
    open_engine: OpenEngine,
    *,
    index: RowIndex | None = None,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> ComputedUnits:
    """Compute units of a plan and commit their rows as shards; needs no lock.

    Rows of ``index`` exist; it is updated. Two processes may compute the same unit: they commit
    the same rows. ``open_engine`` is that of `pipeline.cache.fill.CacheFill`; ``on_batch`` receives
    the number of rows of each batch.

    Raises UnreachableError if the engine is not that of the plan.
    """

    def open_recorded(layers: tuple[str, ...], *arguments: Any) -> Any:
        engine = open_engine(layers, *arguments)
        recorded = plan.engine or {}
        if (engine.name, engine.version) != (recorded.get("name"), recorded.get("version")):
            raise UnreachableError(
                f"the plan needs the engine {printable(str(recorded.get('name')))} "
                f"{printable(str(recorded.get('version')))}; this machine has {engine.name} "
                f"{engine.version}: install that version here"
            )
        return engine

    index = index or RowIndex(None)
    batches: dict[tuple[str, ...], list[Batch]] = {}
    for number in numbers:
        unit = plan.units[number]
        batches.setdefault(unit.layers, []).extend(unit.batches)
    batches = incomplete_batches(batches, index)
    reasons: dict[bytes, str] = {}
    before = len(shards.shards)
    for layers, of_layers in batches.items():
        computation = make_computation(layers, of_layers, shards, open_recorded, plan.engine, index)
        paths = dict.fromkeys(row.path for batch in of_layers for row in batch)
        decoded = decode_batches(
            {computation: of_layers}, source, paths, plan.views, reasons=reasons
        )
        with closing(decoded):
            compute_rows(decoded, [computation], on_batch=on_batch)
    index.add_shards(shards.shards[before:])
    rows = sum(len(shard.keys) for shard in shards.shards[before:])
    path_of = {row.key.digest: row.path for each in batches.values() for b in each for row in b}
    skipped = tuple(Skipped(path_of[digest], reason) for digest, reason in reasons.items())
    return ComputedUnits(rows, skipped)


def make_computation(
    layers: tuple[str, ...],
    batches: Sequence[Batch],
    shards: ShardFolder,
    open_engine: OpenEngine,
    recorded: Mapping[str, Any] | None,
    index: RowIndex,
) -> Computation:
    """Return the computation of batches of which the ``index`` lacks a row."""
    sources = [index.sources.get(layer, {}) for layer in layers]
    return Computation(
        layers,
        shards,
        open_engine,
        batches=[[row.key for row in batch] for batch in batches],
        recorded=recorded,
        exists=lambda key: all(key in each for each in sources),
    )


def in_batches(rows: Sequence[PlannedRow], size: int) -> list[Batch]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def incomplete_batches(batches: Batches, index: RowIndex) -> dict[tuple[str, ...], list[Batch]]:
    """Return the batches of which rows are missing, by the layers that lack one."""
    incomplete: dict[tuple[str, ...], list[Batch]] = {}
    for layers, of_layers in batches.items():
        sources = {layer: index.sources.get(layer, {}) for layer in layers}
        for batch in of_layers:
            lacking = tuple(
                layer for layer in layers if any(row.key not in sources[layer] for row in batch)
            )
            if lacking:
                incomplete.setdefault(lacking, []).append(batch)
    return incomplete
