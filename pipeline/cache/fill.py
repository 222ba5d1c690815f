"""Fill caches in three steps: plan the missing rows, compute them, publish the files."""

import csv
import io
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline.cache.compute import (
    Computation,
    OpenEngine,
    compute_rows,
    decode_batches,
    open_engines,
    strict_error,
)
from pipeline.cache.config import ViewPlan
from pipeline.cache.file import FeatureTable, Row, RowKey, existing_table, read_all_rows
from pipeline.cache.plan import (
    Batch,
    ExtractionPlan,
    PlannedRow,
    in_batches,
    incomplete_batches,
    make_computation,
)
from pipeline.cache.publish import publish_rows
from pipeline.cache.reuse import OtherRows, copy_rows
from pipeline.cache.row_index import DamagedRows, RowIndex
from pipeline.cache.shards import PLAN, ShardFolder, writer_lock
from pipeline.durable import remove_file, remove_temporaries, write_durably
from pipeline.errors import BadDataError, CannotCreateError, NoInputError
from pipeline.images.scan import FoundFile, ImageSet, Skipped
from pipeline.images.sets import is_gone
from pipeline.spec import CLASSES, FeatureSpec
from pipeline.text import counted, printable

log = logging.getLogger("pipeline")

SKIPPED_SUFFIX = ".skipped.csv"

RowProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class CacheFill:
    """A cache file to fill, and the features that it then contains.

    Parameters
    ----------
    layers : layer keys; the file keeps its earlier layers.
    open_engine : called with layer keys, the first images and the recorded engine, only if rows
        are missing.
    document : content of the file's ``spec`` dataset; the engine is added.
    others : other caches of the same features, read only if rows are missing.
    damaged : rows of the file to compute again.
    """

    path: Path
    spec: FeatureSpec
    layers: Sequence[str]
    open_engine: OpenEngine
    document: Mapping[str, Any]
    others: Iterable[OtherRows] = ()
    damaged: DamagedRows | None = None


@dataclass(frozen=True)
class FillResult:
    """Result of `fill_caches` for one of them."""

    computed: int  # rows computed by this run
    skipped: tuple[Skipped, ...]


def fill_caches(
    fills: Sequence[CacheFill],
    *,
    images: ImageSet,
    digests: Mapping[bytes, bytes],
    skipped: Sequence[Skipped],
    batch_size: int,
    plan: ViewPlan,
    strict: bool = False,
    wait: bool = False,
    progress: RowProgress | None = None,
) -> list[FillResult]:
    """Bring cache files up to date with an image folder; read and decode each image once for all.

    A file then contains its layers for every image that all bases can read. Rows of images that are
    gone stay, with the label -1. The value range and the views are those of all caches.

    Parameters
    ----------
    digests : path -> SHA-256 of the image file; files without one have no row.
    plan : the views of each image; further views in a file stay, hidden.
    progress : called with (rows done, rows of all caches).

    Raises CannotCreateError if a path is not a cache of its features; BadDataError if more than
    half of the files are skipped, if a class has no readable image, or for the first skipped file
    with ``strict``.
    """
    with ExitStack() as locks:
        for path in sorted(fill.path for fill in fills):  # two runs never wait for each other
            locks.enter_context(writer_lock(path, wait=wait))
        caches = [_OpenCache(fill, images, digests, plan, batch_size) for fill in fills]
        if strict and skipped:
            raise strict_error(skipped[0])
        total = sum(len(each.rows) for each in caches)
        done = total - sum(each.missing_count for each in caches)
        reasons: dict[bytes, str] = {}  # digest of an unreadable image -> why

        def report(count: int) -> None:
            nonlocal done
            done += count
            if progress and count:
                progress(done, total)

        for groups in zip_longest(*(each.computations() for each in caches)):
            batches = dict(group for group in groups if group)
            decoded = decode_batches(
                batches, images.source, images.paths, plan, reasons=None if strict else reasons
            )
            with closing(decoded):
                compute_rows(decoded, list(batches), on_batch=report)
        if progress and reasons:
            progress(total, total)
        return [each.publish(images, skipped, reasons) for each in caches]


def write_plan(
    fill: CacheFill,
    *,
    images: ImageSet,
    digests: Mapping[bytes, bytes],
    batch_size: int,
    plan: ViewPlan,
    wait: bool = False,
) -> tuple[ExtractionPlan, Path]:
    """Choose the engine of a cache's missing rows, and write the plan beside its shards.

    Parameters and errors as in `fill_caches`.
    """
    with writer_lock(fill.path, wait=wait):
        shards = ShardFolder(fill.path, fill.spec)
        if not shards.read(verify=False):
            remove_file(shards.path / PLAN)  # nothing depends on an earlier plan
        opened = _OpenCache(fill, images, digests, plan, batch_size)
        batches = {layers: each for layers, each in opened.plan.batches.items() if each}
        engine = opened.plan.engine
        if batches and engine is None:
            layers = next(iter(batches))
            computation = opened.computation(layers, batches[layers])
            paths = [row.path for batch in batches[layers] for row in batch]
            decoded = decode_batches(
                {computation: batches[layers]}, images.source, paths, plan, reasons={}
            )
            with closing(decoded):
                if open_engines(decoded, [computation]):
                    engine = computation.engine_record
        written = replace(opened.plan, engine=engine)
        return written, written.write(opened.shards.path)


class _OpenCache:
    """A cache file to fill, locked: its rows, and the batches of those that are missing."""

    def __init__(
        self,
        fill: CacheFill,
        images: ImageSet,
        digests: Mapping[bytes, bytes],
        views: ViewPlan,
        batch_size: int,
    ) -> None:
        self.fill = fill
        self.document = {**fill.document, **views.to_document()}
        self.table = _open_table(fill.path, fill.spec, images.root, views)
        self.shards = _open_shards(fill.path, fill.spec, views)
        if planned := _read_plan(self.shards):
            batch_size = planned.batch_size
        self.layers = sorted({*(self.table.layers if self.table else ()), *fill.layers})
        # Shards do not change the batches: rows that an interrupted run computed are in them.
        copied = [shard for shard in self.shards.shards if shard.copied]
        self.index = RowIndex(self.table, copied, fill.damaged)
        plan_missing = partial(plan_rows, images.files, digests, views, self.layers, self.index)
        self.rows, missing = plan_missing()
        if missing:
            copied_before = len(self.shards.shards)
            wanted = _by_layer(missing, RowIndex(None, self.shards.shards))
            engine = self.index.engine or RowIndex(None, self.shards.shards).engine
            copy_rows(wanted, fill.others, self.shards, recorded=engine)
            self.index.add_shards(self.shards.shards[copied_before:])
            self.rows, missing = plan_missing()
        self.index.add_shards(self.shards.shards)
        self.plan = ExtractionPlan(
            document=self.document,
            batch_size=batch_size,
            batches={layers: in_batches(rows, batch_size) for layers, rows in missing.items()},
            engine=planned.engine if planned and not self.index.engine else self.index.engine,
        )
        self.missing = incomplete_batches(self.plan.batches, self.index)
        self.earlier = len(self.shards.shards)

    @property
    def missing_count(self) -> int:
        return sum(len(batch) for batches in self.missing.values() for batch in batches)

    def computations(self) -> Iterator[tuple[Computation, Sequence[Batch]]]:
        for layers, batches in self.missing.items():
            yield self.computation(layers, batches), batches

    def computation(self, layers: tuple[str, ...], batches: Sequence[Batch]) -> Computation:
        open_engine, engine = self.fill.open_engine, self.plan.engine
        return make_computation(layers, batches, self.shards, open_engine, engine, self.index)

    def publish(
        self,
        images: ImageSet,
        skipped: Sequence[Skipped],
        reasons: Mapping[bytes, str],
    ) -> FillResult:
        """Write the file and the list of skipped files; raises as `fill_caches`."""
        path, shards = self.fill.path, self.shards
        self.index.add_shards(shards.shards[self.earlier :])
        # Copies of an unreadable image are skipped, too: only one was decoded.
        unreadable = (row for row in self.rows if row.key.digest in reasons and not row.key.view)
        skipped = [*skipped, *(Skipped(row.path, reasons[row.key.digest]) for row in unreadable)]
        write_skipped(path.with_suffix(SKIPPED_SUFFIX), skipped, images)
        rows = [row for row in self.rows if row.key.digest not in reasons]
        if empty := {file.label for file in images.files} - {row.label for row in rows}:
            of = ""
            if images.task == CLASSES:
                of = f" of {', '.join(printable(images.classes[each]) for each in sorted(empty))}"
            raise BadDataError(
                f"no image{of} in {printable(images.root)} can be read: repair or delete them"
            )
        publish_rows(
            path,
            table=self.table,
            index=self.index,
            rows=rows,
            classes=images.classes,
            layers=self.layers,
            document=self.document,
        )
        if shards.path.is_dir():
            shards.remove_published(read_all_rows(path))
        computed = sum(len(shard.keys) for shard in shards.shards[self.earlier :])
        return FillResult(computed, tuple(skipped))


def plan_rows(
    files: Iterable[FoundFile],
    digests: Mapping[bytes, bytes],
    plan: ViewPlan,
    layers: Sequence[str],
    index: RowIndex,
) -> tuple[list[Row], dict[tuple[str, ...], list[PlannedRow]]]:
    """Return the rows of all files with a digest, and the rows to compute, identical ones once.

    Rows to compute are grouped by the layers that they lack.
    """
    rows = [
        Row(
            RowKey(digests[file.path], view),
            file.path,
            file.label,
            file.split,
            file.targets,
            file.group,
        )
        for file in files
        if file.path in digests
        for view in plan.views_of(file.split)
    ]
    missing: dict[tuple[str, ...], list[PlannedRow]] = defaultdict(list)
    seen: set[RowKey] = set()
    for row in rows:
        absent = tuple(layer for layer in layers if row.key not in index.sources[layer])
        if absent and row.key not in seen:
            missing[absent].append(PlannedRow(row.path, row.key))
        seen.add(row.key)
    return rows, missing


def _by_layer(
    missing: Mapping[tuple[str, ...], Sequence[PlannedRow]], computed: RowIndex
) -> dict[str, list[RowKey]]:
    """Return the keys of missing rows by layer, without those that shards contain."""
    by_layer: dict[str, list[RowKey]] = defaultdict(list)
    for layers, rows in missing.items():
        for layer in layers:
            sources = computed.sources.get(layer, {})
            by_layer[layer] += (row.key for row in rows if row.key not in sources)
    return by_layer


def _read_plan(shards: ShardFolder) -> ExtractionPlan | None:
    """Return the plan beside the shards; None if there is none of these features."""
    try:
        plan = ExtractionPlan.read(shards.path / PLAN)
    except NoInputError:
        return None
    except BadDataError as error:
        log.warning("%s", error)
        return None
    return plan if plan.spec == shards.spec else None


def write_skipped(target: Path, skipped: Sequence[Skipped], images: ImageSet) -> None:
    """Write skipped files to a CSV; raises BadDataError if they are more than half of all."""
    if not skipped:
        remove_file(target)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "reason"])
    writer.writerows((os.fsdecode(item.path), item.reason) for item in skipped)
    # surrogateescape restores the bytes of names that are not UTF-8
    content = text.getvalue().encode(errors="surrogateescape")
    write_durably(target, lambda file: file.write(content))
    files = len(images.files) + len(images.skipped)
    if 2 * len(skipped) > files:
        first = skipped[0]
        raise BadDataError(
            f"{len(skipped):,} of {counted(files, 'file')} in "
            f"{printable(images.root)} cannot be used, e.g. {printable(first.path)} "
            f"({first.reason}); the list is in {printable(target)}"
        )


def read_skipped(path: Path) -> list[Skipped]:
    """Read the list of skipped files of a cache; empty if there is none."""
    try:
        content = path.with_suffix(SKIPPED_SUFFIX).read_bytes()
    except FileNotFoundError:
        return []
    rows = csv.DictReader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    return [Skipped(os.fsencode(row["path"]), row["reason"]) for row in rows]


def _open_table(path: Path, spec: FeatureSpec, root: str, plan: ViewPlan) -> FeatureTable | None:
    """Open the existing cache; raises CannotCreateError if it contains other features."""
    table = existing_table(path)
    if table and (conflict := _find_conflict(table, spec, root, plan)):
        raise CannotCreateError(f"{printable(path)} {conflict}; choose another --out")
    return table


def _find_conflict(table: FeatureTable, spec: FeatureSpec, root: str, plan: ViewPlan) -> str:
    """Return the reason why a cache cannot contain the requested features, or an empty string."""
    recorded = table.document["root"]
    if recorded != root and not is_gone(table.document):
        return f"contains the images of {printable(recorded)}; received {printable(root)}"
    if table.spec != spec:
        differences = ", ".join(
            f"{name} {value} (received {getattr(spec, name)})"
            for name, value in vars(table.spec).items()
            if value != getattr(spec, name)
        )
        fingerprints = f"fingerprint {table.spec.fingerprint}, received {spec.fingerprint}"
        return f"contains features with {differences}: {fingerprints}"
    try:
        augmentation = ViewPlan.from_document(table.document).augmentation
    except ValueError as error:
        return f"is invalid: {error}"
    if table.columns.views.any() and augmentation != plan.augmentation:  # also hidden views
        received = plan.augmentation or "no --views"
        return f"contains views drawn with {augmentation or 'unknown ranges'}; received {received}"
    return ""


def _open_shards(path: Path, spec: FeatureSpec, plan: ViewPlan) -> ShardFolder:
    """Open the shards of a killed run; raises CannotCreateError if it drew other views."""
    shards = ShardFolder(path, spec, plan.to_document().get("augmentation"))
    remove_temporaries(path.with_suffix(SKIPPED_SUFFIX))
    shards.recover()
    for shard in shards.shards:
        if any(key.view for key in shard.keys) and shard.augmentation != shards.augmentation:
            raise CannotCreateError(
                f"{printable(shards.path)} contains views of an interrupted run with another "
                f"augmentation; received {plan.augmentation or 'no --views'}: repeat that run, or "
                f"choose another --out"
            )
    return shards
