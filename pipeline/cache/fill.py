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
from pipeline.cache.file import FeatureTable, read_all_rows
from pipeline.cache.index import DamagedRows, RowIndex
from pipeline.cache.keys import Row, RowKey
from pipeline.cache.lock import writer_lock
from pipeline.cache.publish import publish_rows
from pipeline.cache.shards import ShardFolder
from pipeline.cache.view_plan import ViewPlan
from pipeline.durable import remove_file, remove_temporaries, write_durably
from pipeline.errors import BadDataError, CannotCreateError, DamagedError
from pipeline.images.reader import Pixels, read_and_make
from pipeline.images.scan import FoundFile, ImageSet, Skipped
from pipeline.spec import FeatureSpec
from pipeline.text import counted, printable

SKIPPED_SUFFIX = ".skipped.csv"

NO_VIEWS = ViewPlan()

Progress = Callable[[int, int], None]
Missing = Mapping[tuple[str, ...], Mapping[bytes, Sequence[RowKey]]]  # layers -> path -> its rows


@dataclass(frozen=True)
class Filled:
    """What a fill did."""

    images: int  # rows in the file whose image is there
    computed: int  # forward passes of this run
    skipped: tuple[Skipped, ...]
    written: bool  # False where the file said all that already


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
    strict: bool = False,
    wait: bool = False,
    damaged: DamagedRows | None = None,
    plan: ViewPlan = NO_VIEWS,
    progress: Progress | None = None,
) -> Filled:
    """Bring a cache file up to date with an image set.

    The given layers and those already in the file end up complete for every readable image.
    Rows of images that are gone stay, under the label -1.

    Parameters
    ----------
    digests : path -> SHA-256 of the image files; files without one give no row.
    skipped : files that are out already, e.g. without permission to read.
    open_engine : called only if something must be computed, with layer keys, the first images, and
        what is recorded of the engine that computed the rows that are there.
    document : content of the file's ``spec`` dataset; the engine is added.
    strict : raise BadDataError for the first skipped file.
    wait : wait for another process that writes the file, instead of raising BusyError.
    damaged : layer key -> rows of the file to compute again.
    plan : which views of each image; those that the file holds beyond it stay, hidden.

    Raises CannotCreateError if the path holds something else, BadDataError if more than half of
    the files were skipped.
    """
    with writer_lock(path, wait=wait):
        table = _open_table(path, spec, images.root, plan)
        shards = _open_shards(path, spec, plan)
        index = RowIndex(table, shards.shards, damaged)
        layers = sorted({*(table.layers if table else ()), *layers})
        rows = rows_of_images(images.files, digests, plan)
        missing = missing_rows(rows, layers, index)
        done = len(rows) - sum(len(keys) for group in missing.values() for keys in group.values())

        def report(computed: int, unreadable: int) -> None:
            if progress:
                progress(min(len(rows), done + computed + unreadable), len(rows))

        if strict and skipped:
            raise _strict_error(skipped[0])
        committed = len(shards.shards)
        reasons = compute_missing(
            missing,
            images.root,
            plan,
            shards,
            open_engine,
            batch_size,
            recorded=index.engine,
            strict=strict,
            report=report,
        )
        index.add_shards(shards.shards[committed:])
        skipped = [*skipped, *_unreadable(rows, reasons)]
        write_skipped(path.with_suffix(SKIPPED_SUFFIX), skipped, images)
        rows = [row for row in rows if row.key.digest not in reasons]
        _check_classes(images, rows)
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
    return Filled(
        images=len({row.path for row in rows}),
        computed=sum(len(shard.keys) for shard in shards.shards[committed:]),
        skipped=tuple(skipped),
        written=written,
    )


def rows_of_images(
    files: Iterable[FoundFile], digests: Mapping[bytes, bytes], plan: ViewPlan
) -> list[Row]:
    """The rows that image files should have, in order; files without a digest have none."""
    return [
        Row(RowKey(digests[file.path], view), file.path, file.label, file.split)
        for file in files
        if file.path in digests
        for view in plan.views_of(file.split)
    ]


def missing_rows(rows: Iterable[Row], layers: Sequence[str], index: RowIndex) -> Missing:
    """Missing layers -> path of an image -> its rows that lack them; identical files count once."""
    missing: dict[tuple[str, ...], dict[bytes, list[RowKey]]] = defaultdict(dict)
    seen: set[RowKey] = set()
    for row in rows:
        lacking = tuple(layer for layer in layers if row.key not in index.sources[layer])
        if lacking and row.key not in seen:
            missing[lacking].setdefault(row.path, []).append(row.key)
        seen.add(row.key)
    return missing


def compute_missing(
    missing: Missing,
    root: Path,
    plan: ViewPlan,
    shards: ShardFolder,
    open_engine: OpenEngine,
    batch_size: int,
    *,
    recorded: Mapping[str, Any] | None,
    strict: bool,
    report: Callable[[int, int], None],
) -> dict[bytes, str]:
    """Compute missing rows and commit them to shards.

    Parameters
    ----------
    report : called with the rows committed and the unreadable images met so far.

    Returns digest -> reason for the images that cannot be read. Raises BadDataError for the first
    of them under ``strict``.
    """
    reasons: dict[bytes, str] = {}
    done = 0

    def committed(rows: int) -> None:
        nonlocal done
        done += rows
        if rows:
            report(done, len(reasons))

    for layers, group in missing.items():
        with closing(_decode(group, root, shards.spec, plan, reasons, strict=strict)) as decoded:
            compute_rows(
                decoded,
                layers,
                shards,
                open_engine,
                batch_size,
                row_count=sum(map(len, group.values())),
                recorded=recorded,
                committed=committed,
            )
    return reasons


def _decode(
    group: Mapping[bytes, Sequence[RowKey]],
    root: Path,
    spec: FeatureSpec,
    plan: ViewPlan,
    reasons: dict[bytes, str],
    *,
    strict: bool,
) -> Generator[tuple[RowKey, Pixels]]:
    """Yield rows with their pixels; each image is decoded once. Notes why others cannot be."""
    digests = {path: keys[0].digest for path, keys in group.items()}
    images = read_and_make(
        root,
        digests,
        lambda path, pixels: [(key, plan.draw(key, pixels)) for key in group[path]],
        image_size=spec.image_size,
        resize=spec.resize,
        made_of_each=plan.views + 1,
    )
    with closing(images):
        for path, views in images:
            if not isinstance(views, Skipped):
                yield from views
            elif strict:
                raise _strict_error(views)
            else:
                reasons[digests[path]] = views.reason


def _strict_error(item: Skipped) -> BadDataError:
    return BadDataError(f"{printable(item.path)}: {item.reason} (--strict stops here)")


def _unreadable(rows: Iterable[Row], reasons: Mapping[bytes, str]) -> list[Skipped]:
    """The files of unreadable images, copies too: one of them was tried for all."""
    return [
        Skipped(row.path, reasons[row.key.digest])
        for row in rows
        if row.key.digest in reasons and not row.key.view
    ]


def write_skipped(target: Path, skipped: Sequence[Skipped], images: ImageSet) -> None:
    """List skipped files in a CSV beside the cache; none removes it.

    Raises BadDataError if more than half of the set is skipped: it is not what it should be.
    """
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


def _check_classes(images: ImageSet, usable: Iterable[Row]) -> None:
    """A class of which no image can be read is as good as empty; raises BadDataError."""
    lost = {file.label for file in images.files} - {row.label for row in usable}
    if lost:
        names = ", ".join(printable(images.classes[label]) for label in sorted(lost))
        raise BadDataError(
            f"no image of {names} in {printable(images.root)} can be read: mend them, or remove "
            f"the folder"
        )


def _open_table(path: Path, spec: FeatureSpec, root: Path, plan: ViewPlan) -> FeatureTable | None:
    """The cache that is there; raises CannotCreateError if it is something else."""
    if not path.exists():
        return None
    try:
        table = read_all_rows(path)
    except DamagedError:
        raise
    except BadDataError as error:
        raise CannotCreateError(f"{error}; choose another --out") from error
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
    """The shards beside a cache, settled after a killed run.

    Raises CannotCreateError if that run drew views of another augmentation.
    """
    shards = ShardFolder(path, spec, plan.to_document().get("augmentation"))
    for target in (path, path.with_suffix(SKIPPED_SUFFIX)):
        remove_temporaries(target)
    shards.settle()
    for shard in shards.shards:
        if any(key.view for key in shard.keys) and shard.augmentation != shards.augmentation:
            raise CannotCreateError(
                f"{printable(shards.path)} holds views of an interrupted run that were drawn "
                f"otherwise; received {plan.augmentation or 'no --views'}: run that again, or "
                f"choose another --out"
            )
    return shards
