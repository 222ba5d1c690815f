"""Fill caches in three steps: plan the missing rows, compute them, publish the files."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from pipeline.cache.compute import Computation, DecodedRow, OpenEngine, compute_rows
from pipeline.cache.config import ViewPlan
from pipeline.cache.file import FeatureTable, Row, RowKey, existing_table, read_all_rows
from pipeline.cache.publish import publish_rows
from pipeline.cache.reuse import OtherRows, copy_rows
from pipeline.cache.row_index import DamagedRows, RowIndex
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.durable import remove_file, remove_temporaries, write_durably
from pipeline.engines import SAMPLE_IMAGES
from pipeline.errors import BadDataError, CannotCreateError
from pipeline.images.decode import decode_forms
from pipeline.images.reader import read_files
from pipeline.images.scan import FoundFile, ImageSet, Skipped
from pipeline.images.sets import is_gone
from pipeline.spec import CLASSES, FeatureSpec
from pipeline.text import counted, printable

SKIPPED_SUFFIX = ".skipped.csv"

RowProgress = Callable[[int, int], None]
Missing = Mapping[tuple[str, ...], Mapping[bytes, Sequence[RowKey]]]  # layers -> path -> rows


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
        caches = [_OpenCache(fill, images, digests, plan) for fill in fills]
        if strict and skipped:
            raise _strict_error(skipped[0])
        total = sum(len(each.rows) for each in caches)
        done = total - sum(_count(group) for each in caches for group in each.missing.values())
        reasons: dict[bytes, str] = {}  # digest of an unreadable image -> why

        def report(count: int) -> None:
            nonlocal done
            done += count
            if progress and count:
                progress(done, total)

        def skip(count: int) -> None:  # no report: it would come before the engines are opened
            nonlocal done
            done += count

        for groups in zip_longest(*(each.missing.items() for each in caches), fillvalue=((), {})):
            computations = {
                each.computation(layers, row_count=_count(group)): group
                for each, (layers, group) in zip(caches, groups, strict=True)
                if group
            }
            decoded = _decode_rows(computations, images, plan, None if strict else reasons, skip)
            with closing(decoded):
                compute_rows(decoded, list(computations), batch_size, on_batch=report)
        if progress and reasons:
            progress(done, total)
        return [each.publish(images, skipped, plan, reasons) for each in caches]


class _OpenCache:
    """A cache file to fill, locked: its rows, and those that are missing."""

    def __init__(
        self, fill: CacheFill, images: ImageSet, digests: Mapping[bytes, bytes], plan: ViewPlan
    ) -> None:
        self.fill = fill
        self.table = _open_table(fill.path, fill.spec, images.root, plan)
        self.shards = _open_shards(fill.path, fill.spec, plan)
        self.index = RowIndex(self.table, self.shards.shards, fill.damaged)
        self.layers = sorted({*(self.table.layers if self.table else ()), *fill.layers})
        plan_missing = partial(plan_rows, images.files, digests, plan, self.layers, self.index)
        self.rows, self.missing = plan_missing()
        if self.missing:
            wanted = _by_layer(self.missing)
            copy_rows(wanted, fill.others, self.shards, recorded=self.index.engine)
            self.index.add_shards(self.shards.shards)
            self.rows, self.missing = plan_missing()
        self.earlier = len(self.shards.shards)

    def computation(self, layers: tuple[str, ...], *, row_count: int) -> Computation:
        return Computation(
            layers,
            self.shards,
            self.fill.open_engine,
            row_count=row_count,
            recorded=self.index.engine,
        )

    def publish(
        self,
        images: ImageSet,
        skipped: Sequence[Skipped],
        plan: ViewPlan,
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
            document={**self.fill.document, **plan.to_document()},
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
) -> tuple[list[Row], Missing]:
    """Return the rows of all files with a digest, and the rows to compute, identical ones once."""
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
    missing: dict[tuple[str, ...], dict[bytes, list[RowKey]]] = defaultdict(dict)
    seen: set[RowKey] = set()
    for row in rows:
        absent = tuple(layer for layer in layers if row.key not in index.sources[layer])
        if absent and row.key not in seen:
            missing[absent].setdefault(row.path, []).append(row.key)
        seen.add(row.key)
    return rows, missing


def _by_layer(missing: Missing) -> dict[str, list[RowKey]]:
    by_layer: dict[str, list[RowKey]] = defaultdict(list)
    for layers, group in missing.items():
        for layer in layers:
            by_layer[layer] += (key for keys in group.values() for key in keys)
    return by_layer


def _count(group: Mapping[bytes, Sequence[RowKey]]) -> int:
    return sum(map(len, group.values()))


def _decode_rows(
    groups: Mapping[Computation, Mapping[bytes, Sequence[RowKey]]],
    images: ImageSet,
    plan: ViewPlan,
    reasons: dict[bytes, str] | None,
    on_skip: Callable[[int], object],
) -> Generator[Iterable[tuple[Computation, DecodedRow]]]:
    """Yield the rows of one image after another, with their pixels; decode each image once.

    ``groups`` : path of an image -> its rows in each cache. ``reasons`` receives the digest of each
    unreadable image and why, ``on_skip`` the number of its rows; if ``reasons`` is None, an
    unreadable image raises BadDataError.
    """
    digests = {path: keys[0].digest for group in groups.values() for path, keys in group.items()}
    # Engines are opened with the first rows of each cache: those of all caches come first.
    first = [path for group in groups.values() for path in islice(group, SAMPLE_IMAGES)]
    ordered = dict.fromkeys([*first, *images.paths])
    forms = {each: (each.shards.spec.image_size, each.shards.spec.resize) for each in groups}
    range = next(iter(groups)).shards.spec.range

    def process(path: bytes, data: bytes) -> list[tuple[Computation, DecodedRow]]:
        wanted = {each: group[path] for each, group in groups.items() if path in group}
        pixels = decode_forms(data, {forms[each] for each in wanted}, range=range)
        draw = cache(lambda key, form: plan.draw(key, pixels[form]))
        return [
            (each, (key, draw(key, forms[each]))) for each, keys in wanted.items() for key in keys
        ]

    files = read_files(
        images.source,
        {path: digests[path] for path in ordered if path in digests},
        process,
        pixels_per_file=(plan.views + 1) * sum(size * size for size, _ in set(forms.values())),
    )
    with closing(files):
        for path, rows in files:
            if not isinstance(rows, Skipped):
                yield rows
            elif reasons is None:
                raise _strict_error(rows)
            else:
                reasons[digests[path]] = rows.reason
                on_skip(sum(len(group.get(path, ())) for group in groups.values()))


def _strict_error(item: Skipped) -> BadDataError:
    return BadDataError(f"{printable(item.path)}: {item.reason} (--strict stops here)")


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
