"""Fill a cache in three steps: plan which rows it lacks, compute them, publish the file."""

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
from pipeline.cache.publish import DamagedRows, RowIndex, publish_rows
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.durable import remove_file, remove_temporaries, write_durably
from pipeline.errors import BadDataError, CannotCreateError
from pipeline.images.reader import Pixels, read_images
from pipeline.images.scan import FoundFile, ImageFolder, Skipped
from pipeline.spec import FeatureSpec
from pipeline.text import counted, printable

SKIPPED_SUFFIX = ".skipped.csv"

NO_VIEWS = ViewPlan()

RowProgress = Callable[[int, int], None]
Missing = Mapping[tuple[str, ...], Mapping[bytes, Sequence[RowKey]]]  # layers -> path -> its rows


@dataclass(frozen=True)
class FillResult:
    computed: int  # forward passes of this run
    skipped: tuple[Skipped, ...]
    written: bool  # False where the file said all that already


def fill_cache(
    path: Path,
    *,
    images: ImageFolder,
    digests: Mapping[bytes, bytes],
    skipped: Sequence[Skipped],
    spec: FeatureSpec,
    layers: Sequence[str],
    open_engine: OpenEngine,
    document: Mapping[str, Any],
    batch_size: int,
    strict: bool = False,
    wait: bool = False,
    damaged: DamagedRows | None = None,
    plan: ViewPlan = NO_VIEWS,
    progress: RowProgress | None = None,
) -> FillResult:
    """Bring a cache file up to date with an image set.

    The given layers and those already in the file end up complete for every readable image.
    Rows of images that are gone stay, under the label -1.

    Parameters
    ----------
    digests : path -> SHA-256 of the image files; files without one give no row.
    open_engine : called, only if something must be computed, with layer keys, the first images and
        the recorded engine.
    document : content of the file's ``spec`` dataset; the engine is added.
    plan : views that the file holds beyond it stay, hidden.

    Raises CannotCreateError if the path holds something else, BadDataError if more than half of
    the files were skipped, or under ``strict`` one.
    """
    with writer_lock(path, wait=wait):
        table = _open_table(path, spec, images.root, plan)
        shards = _open_shards(path, spec, plan)
        index = RowIndex(table, shards.shards, damaged)
        layers = sorted({*(table.layers if table else ()), *layers})
        rows, missing = plan_rows(images.files, digests, plan, layers, index)
        if strict and skipped:
            raise _strict_error(skipped[0])
        reasons: dict[bytes, str] = {}
        done = len(rows) - sum(len(keys) for group in missing.values() for keys in group.values())

        def committed(count: int) -> None:
            nonlocal done
            done += count
            if progress and count:
                progress(min(len(rows), done + len(reasons)), len(rows))

        earlier = len(shards.shards)
        for lacking, group in missing.items():
            with closing(
                decode_rows(group, images.root, plan, spec, reasons=None if strict else reasons)
            ) as decoded:
                compute_rows(
                    decoded,
                    lacking,
                    shards,
                    open_engine,
                    batch_size,
                    row_count=sum(map(len, group.values())),
                    recorded=index.engine,
                    committed=committed,
                )
        index.add_shards(shards.shards[earlier:])
        unreadable = (row for row in rows if row.key.digest in reasons and not row.key.view)
        # copies, too: one of them was tried for all
        skipped = [*skipped, *(Skipped(row.path, reasons[row.key.digest]) for row in unreadable)]
        write_skipped(path.with_suffix(SKIPPED_SUFFIX), skipped, images)
        rows = [row for row in rows if row.key.digest not in reasons]
        if lost := {file.label for file in images.files} - {row.label for row in rows}:
            names = ", ".join(printable(images.classes[label]) for label in sorted(lost))
            raise BadDataError(  # as good as empty
                f"no image of {names} in {printable(images.root)} can be read: mend them, or "
                f"remove the folder"
            )
        written = publish_rows(
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
    return FillResult(
        computed=sum(len(shard.keys) for shard in shards.shards[earlier:]),
        skipped=tuple(skipped),
        written=written,
    )


def plan_rows(
    files: Iterable[FoundFile],
    digests: Mapping[bytes, bytes],
    plan: ViewPlan,
    layers: Sequence[str],
    index: RowIndex,
) -> tuple[list[Row], Missing]:
    """Rows that files with a digest should have; those that lack layers, identical ones once."""
    rows = [
        Row(RowKey(digests[file.path], view), file.path, file.label, file.split)
        for file in files
        if file.path in digests
        for view in plan.views_of(file.split)
    ]
    missing: dict[tuple[str, ...], dict[bytes, list[RowKey]]] = defaultdict(dict)
    seen: set[RowKey] = set()
    for row in rows:
        lacking = tuple(layer for layer in layers if row.key not in index.sources[layer])
        if lacking and row.key not in seen:
            missing[lacking].setdefault(row.path, []).append(row.key)
        seen.add(row.key)
    return rows, missing


def decode_rows(
    group: Mapping[bytes, Sequence[RowKey]],
    root: Path,
    plan: ViewPlan,
    spec: FeatureSpec,
    *,
    reasons: dict[bytes, str] | None,
) -> Generator[tuple[RowKey, Pixels]]:
    """Yield rows with their pixels, (image_size, image_size, 3) uint8 RGB; decode each image once.

    ``group`` : path of an image -> its rows; ``reasons`` takes the digest of each unreadable image
    and why, None raises BadDataError for it.
    """
    digests = {path: keys[0].digest for path, keys in group.items()}
    images = read_images(
        root,
        digests,
        image_size=spec.image_size,
        resize=spec.resize,
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


def write_skipped(target: Path, skipped: Sequence[Skipped], images: ImageFolder) -> None:
    """List skipped files in a CSV; raises BadDataError if they are more than half of the set."""
    if not skipped:
        remove_file(target)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "reason"])
    writer.writerows((os.fsdecode(item.path), item.reason) for item in skipped)
    # surrogateescape gives names that are no UTF-8 their own bytes back
    content = text.getvalue().encode(errors="surrogateescape")
    write_durably(target, lambda file: file.write(content))
    files = len(images.files) + len(images.skipped)
    if 2 * len(skipped) > files:
        first = skipped[0]
        raise BadDataError(
            f"{len(skipped):,} of {counted(files, 'file')} in "
            f"{printable(images.root)} cannot be used, e.g. {printable(first.path)} "
            f"({first.reason}); the list is in {target}"
        )


def _open_table(path: Path, spec: FeatureSpec, root: Path, plan: ViewPlan) -> FeatureTable | None:
    """The cache that is there; raises CannotCreateError if it is something else."""
    table = existing_table(path, cure="choose another --out")
    if table is None:
        return None
    recorded = Path(table.document["root"])
    if recorded != root and recorded.is_dir():
        raise CannotCreateError(
            f"{printable(path)} holds the images of {printable(recorded)}; received "
            f"{printable(root)}; choose another --out"
        )
    if table.spec != spec:
        there, asked = vars(table.spec), vars(spec)
        names = [name for name in there if there[name] != asked[name]]
        raise CannotCreateError(
            f"{path} holds features with "
            + ", ".join(f"{name} {there[name]} (received {asked[name]})" for name in names)
            + f": fingerprint {table.spec.fingerprint}, received {spec.fingerprint}; "
            f"choose another --out"
        )
    try:
        augmentation = ViewPlan.from_document(table.document).augmentation
    except ValueError as error:
        raise CannotCreateError(f"{printable(path)}: {error}; choose another --out") from error
    if table.columns.views.any() and augmentation != plan.augmentation:  # hidden ones, too
        raise CannotCreateError(
            f"{printable(path)} holds views drawn with {augmentation or 'what it does not say'}; "
            f"received {plan.augmentation or 'no --views'}; choose another --out"
        )
    return table


def _open_shards(path: Path, spec: FeatureSpec, plan: ViewPlan) -> ShardFolder:
    """The shards of a killed run; raises CannotCreateError if it drew other views."""
    shards = ShardFolder(path, spec, plan.to_document().get("augmentation"))
    remove_temporaries(path.with_suffix(SKIPPED_SUFFIX))
    shards.settle()
    for shard in shards.shards:
        if any(key.view for key in shard.keys) and shard.augmentation != shards.augmentation:
            raise CannotCreateError(
                f"{printable(shards.path)} holds views of an interrupted run that were drawn "
                f"otherwise; received {plan.augmentation or 'no --views'}: run that again, or "
                f"choose another --out"
            )
    return shards
