"""Fill a cache in three steps: plan the missing rows, compute them, publish the file."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.compute import OpenEngine, compute_rows
from pipeline.cache.config import ViewPlan
from pipeline.cache.file import FeatureTable, Row, RowKey, existing_table, read_all_rows
from pipeline.cache.publish import publish_rows
from pipeline.cache.reuse import OtherRows, copy_rows
from pipeline.cache.row_index import DamagedRows, RowIndex
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.durable import remove_file, remove_temporaries, write_durably
from pipeline.errors import BadDataError, CannotCreateError
from pipeline.images.reader import Pixels, read_images
from pipeline.images.scan import FoundFile, ImageSet, Skipped
from pipeline.images.sets import is_gone
from pipeline.images.source import ImageSource
from pipeline.spec import FeatureSpec
from pipeline.text import counted, printable

SKIPPED_SUFFIX = ".skipped.csv"

RowProgress = Callable[[int, int], None]
Missing = Mapping[tuple[str, ...], Mapping[bytes, Sequence[RowKey]]]  # layers -> path -> rows


@dataclass(frozen=True)
class FillResult:
    """Result of `fill_cache`."""

    computed: int  # rows computed by this run
    skipped: tuple[Skipped, ...]


def fill_cache(
    path: Path,
    *,
    images: ImageSet,
    digests: Mapping[bytes, bytes],
    skipped: Sequence[Skipped],
    spec: FeatureSpec,
    layers: Sequence[str],
    open_engine: OpenEngine,
    document: Mapping[str, Any],
    batch_size: int,
    plan: ViewPlan,
    others: Iterable[OtherRows] = (),
    strict: bool = False,
    wait: bool = False,
    damaged: DamagedRows | None = None,
    progress: RowProgress | None = None,
) -> FillResult:
    """Bring a cache file up to date with an image folder.

    The file then contains ``layers`` and its earlier layers for every readable image. Rows of
    images that are gone stay, with the label -1.

    Parameters
    ----------
    digests : path -> SHA-256 of the image file; files without one have no row.
    open_engine : called with layer keys, the first images and the recorded engine, only if rows
        are missing.
    document : content of the file's ``spec`` dataset; the engine is added.
    damaged : rows of the file to compute again.
    plan : the views of each image; further views in the file stay, hidden.
    others : other caches of the same features, read only if rows are missing.

    Raises CannotCreateError if the path is not a cache of these features; BadDataError if more than
    half of the files are skipped, if a class has no readable image, or for the first skipped file
    with ``strict``.
    """
    with writer_lock(path, wait=wait):
        table = _open_table(path, spec, images.root, plan)
        shards = _open_shards(path, spec, plan)
        index = RowIndex(table, shards.shards, damaged)
        layers = sorted({*(table.layers if table else ()), *layers})
        rows, missing = plan_rows(images.files, digests, plan, layers, index)
        if missing:
            copy_rows(_by_layer(missing), others, shards, recorded=index.engine)
            index.add_shards(shards.shards)
            rows, missing = plan_rows(images.files, digests, plan, layers, index)
        if strict and skipped:
            raise _strict_error(skipped[0])
        reasons: dict[bytes, str] = {}  # digest of an unreadable image -> why
        done = len(rows) - sum(len(keys) for group in missing.values() for keys in group.values())

        def report(count: int) -> None:
            nonlocal done
            done += count
            if progress and count:
                progress(min(len(rows), done + len(reasons)), len(rows))

        earlier = len(shards.shards)
        for missing_layers, group in missing.items():
            skip_reasons = None if strict else reasons
            decoded = decode_rows(group, images.source, plan, spec, reasons=skip_reasons)
            with closing(decoded):
                compute_rows(
                    decoded,
                    missing_layers,
                    shards,
                    open_engine,
                    batch_size,
                    row_count=sum(map(len, group.values())),
                    recorded=index.engine,
                    on_batch=report,
                )
        index.add_shards(shards.shards[earlier:])
        # Copies of an unreadable image are skipped, too: only one was decoded.
        unreadable = (row for row in rows if row.key.digest in reasons and not row.key.view)
        skipped = [*skipped, *(Skipped(row.path, reasons[row.key.digest]) for row in unreadable)]
        write_skipped(path.with_suffix(SKIPPED_SUFFIX), skipped, images)
        rows = [row for row in rows if row.key.digest not in reasons]
        if empty := {file.label for file in images.files} - {row.label for row in rows}:
            names = ", ".join(printable(images.classes[label]) for label in sorted(empty))
            raise BadDataError(
                f"no image of {names} in {printable(images.root)} can be read: repair or "
                f"delete them"
            )
        publish_rows(
            path,
            table=table,
            index=index,
            rows=rows,
            classes=images.classes,
            layers=layers,
            document={**document, **plan.to_document()},
        )
        if shards.path.is_dir():
            shards.remove_published(read_all_rows(path))
    computed = sum(len(shard.keys) for shard in shards.shards[earlier:])
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


def decode_rows(
    group: Mapping[bytes, Sequence[RowKey]],
    source: ImageSource,
    plan: ViewPlan,
    spec: FeatureSpec,
    *,
    reasons: dict[bytes, str] | None,
) -> Generator[tuple[RowKey, Pixels]]:
    """Yield rows with their pixels, (image_size, image_size, 3) uint8 RGB; decode each image once.

    ``group`` : path of an image -> its rows. ``reasons`` receives the digest of each unreadable
    image and why; if it is None, an unreadable image raises BadDataError.
    """
    digests = {path: keys[0].digest for path, keys in group.items()}
    images = read_images(
        source,
        digests,
        image_size=spec.image_size,
        resize=spec.resize,
        range=spec.range,
        process=lambda path, pixels: [(key, plan.draw(key, pixels)) for key in group[path]],
        rows_per_image=plan.views + 1,
    )
    with closing(images):
        for path, views in images:
            if not isinstance(views, Skipped):
                yield from views
            elif reasons is None:
                raise _strict_error(views)
            else:
                reasons[digests[path]] = views.reason


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
