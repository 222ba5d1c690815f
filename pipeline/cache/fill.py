"""Fill a cache: compute only the rows it lacks, commit them batch by batch, publish the file."""

import csv
import io
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ahead import in_order
from pipeline.cache.commits import Commits
from pipeline.cache.file import FeatureTable, read_all_rows
from pipeline.cache.keys import RowKey
from pipeline.cache.lock import writer_lock
from pipeline.cache.merge import Distrusted, KnownRows, publish_rows
from pipeline.cache.room import check_room
from pipeline.cache.shards import Shard, ShardFolder
from pipeline.cache.view_plan import ViewPlan
from pipeline.durable import remove_file, remove_temporaries, write_durably
from pipeline.engines import Engine
from pipeline.errors import BadDataError, CannotCreateError, DamagedError
from pipeline.images.reader import Pixels, read_and_make
from pipeline.images.scan import ImageRef, ImageSet, Skipped
from pipeline.spec import FeatureSpec
from pipeline.text import counted, printable

log = logging.getLogger(__name__)

SKIPPED_SUFFIX = ".skipped.csv"

NO_VIEWS = ViewPlan()
SAMPLE = 8  # images that an engine is chosen by, at least

Progress = Callable[[int, int], None]
OpenEngine = Callable[[tuple[str, ...], Pixels, Mapping[str, Any] | None], Engine]


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
    refs: Sequence[ImageRef],
    skipped: Sequence[Skipped],
    spec: FeatureSpec,
    layers: Sequence[str],
    open_engine: OpenEngine,
    document: Mapping[str, Any],
    batch_size: int,
    strict: bool = False,
    wait: bool = False,
    distrusted: Distrusted | None = None,
    plan: ViewPlan = NO_VIEWS,
    donors: Sequence[FeatureTable] = (),
    progress: Progress | None = None,
) -> Filled:
    """Bring a cache file up to date with an image set.

    The layers asked for and those already in the file end up complete for every readable image.
    Rows of images that are gone stay, under the label -1.

    Parameters
    ----------
    refs : the images, hashed, in the order of their rows.
    skipped : files that are out already, e.g. without permission to read.
    open_engine : called only if something must be computed, with layer keys, the first images, and
        what is recorded of the engine that computed the rows that are there.
    document : what the file's ``spec`` dataset shall say; the engine is added.
    strict : raise BadDataError for the first skipped file.
    wait : wait for another process that writes the file, instead of raising BusyError.
    distrusted : layer key -> rows of the file to compute again.
    plan : which views of each image; those that the file holds beyond it stay, hidden.
    donors : other files of the same fingerprint, whose rows need not be computed again.

    Raises CannotCreateError if the path holds something else, BadDataError if more than half of
    the files were skipped.
    """
    with writer_lock(path, wait=wait):
        table = _existing(path, spec, images.root, plan)
        shards = ShardFolder(path, spec, plan.to_document().get("augmentation"))
        for target in (path, path.with_suffix(SKIPPED_SUFFIX)):
            remove_temporaries(target)
        shards.settle()
        committed = list(shards.read())  # once: every byte is held against its digest
        _check_views(shards, committed, plan)
        out = _SkipList(images, skipped, strict=strict)
        donors = KnownRows.fitting(donors, KnownRows(table, committed).engine)
        known = KnownRows(table, committed, distrusted, donors)
        wanted = sorted({*(table.layers if table else ()), *layers})
        missing = _missing(refs, wanted, known, plan)
        total = sum(len(plan.of(ref)) for ref in refs)
        done = total - sum(len(views) for group in missing.values() for views in group.values())
        computed = 0
        skipped_before = len(out.paths)

        def count(rows: int) -> None:
            nonlocal computed
            computed += rows
            if progress and rows:
                progress(min(total, done + computed + len(out.paths) - skipped_before), total)

        for lacking, group in missing.items():
            with closing(_readable(group, images.root, spec, plan, out)) as decoded:
                compute_rows(
                    decoded,
                    lacking,
                    spec,
                    shards,
                    open_engine,
                    batch_size,
                    row_count=sum(map(len, group.values())),
                    recorded=known.engine,
                    committed=count,
                )
        out.add_copies(refs)
        out.finish(path.with_suffix(SKIPPED_SUFFIX))
        if computed:
            known = KnownRows(table, shards.read(), distrusted, donors)
        usable = [ref for ref in refs if ref.path not in out.paths]
        _check_classes(images, usable)
        written = publish_rows(
            path,
            table=table,
            known=known,
            images=images,
            refs=usable,
            plan=plan,
            layers=wanted,
            document={**document, **plan.to_document()},
        )
        if shards.path.is_dir():
            shards.remove_published(KnownRows(read_all_rows(path), ()).has)
    return Filled(len(usable), computed, tuple(out.skipped), written)


class _SkipList:
    """The files that give no row, and when there are too many of them to go on."""

    def __init__(self, images: ImageSet, skipped: Iterable[Skipped], *, strict: bool) -> None:
        self.skipped: list[Skipped] = []
        self.paths: set[bytes] = set()
        self._root = images.root
        self._files = len(images.files) + len(images.skipped)
        self._strict = strict
        self._broken: dict[bytes, str] = {}
        for item in skipped:
            self.add(item)

    def add(self, item: Skipped) -> None:
        """Note a file; raises BadDataError under ``strict``."""
        if self._strict:
            raise BadDataError(f"{printable(item.path)}: {item.reason} (--strict stops here)")
        self.skipped.append(item)
        self.paths.add(item.path)

    def add_image(self, ref: ImageRef, reason: str) -> None:
        """Note an image that was tried in vain."""
        self._broken[ref.digest] = reason
        self.add(Skipped(ref.path, reason))

    def add_copies(self, refs: Iterable[ImageRef]) -> None:
        """Note the files of the same content: one of them was tried for all."""
        for ref in refs:
            if ref.digest in self._broken and ref.path not in self.paths:
                self.add(Skipped(ref.path, self._broken[ref.digest]))

    def finish(self, target: Path) -> None:
        """List the files in a CSV beside the cache; none removes it.

        Raises BadDataError if more than half of the set is out: it is not what it should be.
        """
        if not self.skipped:
            remove_file(target)
            return

        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["path", "reason"])
        writer.writerows((os.fsdecode(item.path), item.reason) for item in self.skipped)
        # surrogateescape gives names that are no UTF-8 their own bytes back
        content = text.getvalue().encode(errors="surrogateescape")
        write_durably(target, lambda file: file.write(content))
        if 2 * len(self.skipped) > self._files:
            first = self.skipped[0]
            raise BadDataError(
                f"{len(self.skipped):,} of {counted(self._files, 'file')} in "
                f"{printable(self._root)} cannot be used, e.g. {printable(first.path)} "
                f"({first.reason}); the list is in {target}"
            )


def _check_classes(images: ImageSet, usable: Sequence[ImageRef]) -> None:
    """A class of which no image can be read is as good as empty; raises BadDataError."""
    lost = {file.label for file in images.files} - {ref.label for ref in usable}
    if lost:
        names = ", ".join(printable(images.classes[label]) for label in sorted(lost))
        raise BadDataError(
            f"no image of {names} in {printable(images.root)} can be read: mend them, or remove "
            f"the folder"
        )


def _existing(path: Path, spec: FeatureSpec, root: Path, plan: ViewPlan) -> FeatureTable | None:
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


def _check_views(shards: ShardFolder, committed: Sequence[Shard], plan: ViewPlan) -> None:
    """Raise CannotCreateError if a killed run committed views of another augmentation."""
    for shard in committed:
        if any(key.view for key in shard.keys) and shard.augmentation != shards.augmentation:
            raise CannotCreateError(
                f"{printable(shards.path)} holds views of an interrupted run that were drawn "
                f"otherwise; received {plan.augmentation or 'no --views'}: run that again, or "
                f"choose another --out"
            )


def _missing(
    refs: Sequence[ImageRef], wanted: Sequence[str], known: KnownRows, plan: ViewPlan
) -> dict[tuple[str, ...], dict[ImageRef, list[RowKey]]]:
    """Missing layers -> the images of which rows do, in order; identical files count once."""
    groups: dict[tuple[str, ...], dict[ImageRef, list[RowKey]]] = defaultdict(dict)
    seen: set[RowKey] = set()
    for ref in refs:
        for key in (RowKey(ref.digest, view) for view in plan.of(ref)):
            lacking = tuple(layer for layer in wanted if not known.has(layer, key))
            if lacking and key not in seen:
                groups[lacking].setdefault(ref, []).append(key)
            seen.add(key)
    return groups


def _readable(
    wanted: Mapping[ImageRef, Sequence[RowKey]],
    root: Path,
    spec: FeatureSpec,
    plan: ViewPlan,
    out: _SkipList,
) -> Generator[tuple[RowKey, Pixels]]:
    """The rows whose image can be decoded, which is done once; others go to the skip list."""
    images = read_and_make(
        root,
        list(wanted),
        lambda ref, pixels: [(key, plan.draw(key, pixels)) for key in wanted[ref]],
        image_size=spec.image_size,
        resize=spec.resize,
        made_of_each=plan.views + 1,
    )
    with closing(images):
        for ref, views in images:
            if isinstance(views, Skipped):
                out.add_image(ref, views.reason)
            else:
                yield from views


def compute_rows(
    decoded: Iterator[tuple[RowKey, Pixels]],
    layers: tuple[str, ...],
    spec: FeatureSpec,
    shards: ShardFolder,
    open_engine: OpenEngine,
    batch_size: int,
    *,
    row_count: int,
    recorded: Mapping[str, Any] | None,
    committed: Callable[[int], object] = lambda rows: None,
) -> None:
    """Run images through an engine and commit their rows.

    Parameters
    ----------
    decoded : rows to be, with their (image_size, image_size, 3) uint8 RGB pixels.
    row_count : how many rows there will be, at most.
    recorded : the engine that computed what the cache holds, None for an empty one.
    committed : called with the number of rows whenever some are safe.
    """
    ahead = list(islice(decoded, max(batch_size, SAMPLE)))
    if not ahead:
        return
    # Not before there is an image: opening takes seconds, and engines are tried on images.
    engine = open_engine(layers, np.stack([pixels for _, pixels in ahead]), recorded)
    if engine.weights != spec.weights:
        raise BadDataError(
            f"the weights of {spec.base} have SHA-256 {engine.weights[:12]}…, not "
            f"{spec.weights[:12]}… as noted: delete the note in weights/ and run again"
        )
    with Commits(shards, engine, layers, spec.dtype) as commits:
        decoded = chain(ahead, decoded)
        batches = iter(lambda: list(islice(decoded, batch_size)), [])
        # None of the engine's cores waits for the rest of a batch, nor for what is done with it.
        with closing(
            in_order(
                lambda batch: engine(np.stack([pixels for _, pixels in batch])),
                batches,
                threads=engine.calls_at_once,
                name="engine",
            )
        ) as computed:
            for number, (batch, features) in enumerate(computed):
                if not number:
                    check_room(shards.path.with_suffix(".h5"), features, row_count, spec.dtype)
                committed(commits.add([key for key, _ in batch], features))
        committed(commits.finish())
