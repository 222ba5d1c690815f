"""Features by content alone: of images that belong to no set, wherever they come from.

Their rows stand in cache files of their own, ``images/<layer>-<base>-<fingerprint>.h5`` below the
folder of caches: one class, no splits, every row's path is its digest. What other caches of the
same fingerprint hold is read there.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable, read_all_rows, read_features
from pipeline.cache.fill import OpenEngine, compute_rows
from pipeline.cache.keys import RowKey
from pipeline.cache.lock import writer_lock
from pipeline.cache.merge import KnownRows, publish_rows
from pipeline.cache.publish import Source
from pipeline.cache.seal import find_damage
from pipeline.cache.shards import ShardFolder
from pipeline.cache.view_plan import ViewPlan
from pipeline.durable import make_folder, remove_temporaries
from pipeline.errors import BusyError, DamagedError
from pipeline.images.given import GivenImages
from pipeline.images.scan import NO_SPLIT, ImageRef, ImageSet
from pipeline.spec import FeatureSpec
from pipeline.text import counted, printable

log = logging.getLogger(__name__)

FOLDER = "images"


def content_set(folder: Path) -> ImageSet:
    """What stands for the image folder in the files: no images, one class.

    Its root is the files' own folder, which is there as long as they are: nothing to prune.
    """
    root = (folder / FOLDER).resolve()
    return ImageSet(root, FOLDER, (FOLDER,), files=(), skipped=(), ignored=())


def features_by_content(
    folder: Path,
    images: GivenImages,
    *,
    spec: FeatureSpec,
    layer: str,
    open_engine: OpenEngine,
    describe: Callable[[], Mapping[str, Any]],
    batch_size: int,
) -> npt.NDArray[np.float32]:
    """Features of images in their order, (N, *shape of a row) float32; computed ones are cached.

    Processes that lack images wait for one another, so that each image is computed once. A damaged
    file is passed over: what it held is computed again.

    Parameters
    ----------
    folder : where the caches are.
    open_engine : as for `pipeline.cache.fill.fill_cache`.
    describe : gives what the cache file shall say of itself, made for `content_set`.

    Raises BadDataError for an image that cannot be decoded; what was computed before it is kept.
    """
    keys = [RowKey(ref.digest) for ref in images.refs]
    store = _Store(folder, spec, layer)
    try:
        store.open()
        if store.holds(keys):  # nothing to wait for
            return store.read(keys)
    except (BusyError, DamagedError) as error:
        log.info("%s", error)
    make_folder(store.path.parent)
    with writer_lock(store.path, wait=True):
        store.open(checked=True)
        store.add(images, open_engine, describe, batch_size)
        return store.read(keys)


class _Store:
    """The rows of one layer in all cache files of one fingerprint."""

    def __init__(self, folder: Path, spec: FeatureSpec, layer: str) -> None:
        ending = f"-{spec.base}-{spec.fingerprint}.h5"
        self.path = folder / FOLDER / (re.sub(r"[^\w.-]", ".", layer) + ending)
        self._patterns = (f"*{ending}", f"{FOLDER}/*{ending}")
        self._folder = folder
        self._spec = spec
        self._layer = layer
        self._tables: dict[Path, FeatureTable] = {}
        self._sources: dict[RowKey, Source] = {}

    def open(self, *, checked: bool = False) -> None:
        """Learn which rows there are; ``checked`` passes files over that are damaged anywhere.

        Raises DamagedError if one is, as far as that shows without reading it whole.
        """
        self._tables.clear()
        self._sources.clear()
        for path in chain.from_iterable(map(self._folder.glob, self._patterns)):
            if checked and find_damage(path):
                log.warning("%s is damaged: its images are computed again", printable(path))
                continue
            self._add_table(read_all_rows(path))

    def holds(self, keys: Sequence[RowKey]) -> bool:
        return self._sources.keys() >= set(keys)

    def read(self, keys: Sequence[RowKey]) -> npt.NDArray[np.float32]:
        """Rows in the order of their keys, from whichever files hold them.

        Raises DamagedError, or BusyError if a file was written anew since it was opened.
        """
        places: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for place, key in enumerate(keys):
            source = self._sources[key]
            places[source.path].append((place, source.row))
        shape = self._tables[next(iter(places))].layers[self._layer]
        features = np.empty((len(keys), *shape), np.float32)
        for path, found in places.items():
            to, rows = np.array(found).T
            features[to] = read_features(self._tables[path], self._layer, rows)
        return features

    def add(
        self,
        images: GivenImages,
        open_engine: OpenEngine,
        describe: Callable[[], Mapping[str, Any]],
        batch_size: int,
    ) -> None:
        """Compute what no file holds, and put it into ours; the lock is held."""
        shards = ShardFolder(self.path, self._spec)
        remove_temporaries(self.path)
        shards.settle()
        committed = KnownRows(None, shards.read())  # of a run that was killed
        lacking = {
            ref.digest: ref
            for ref in images.refs
            if RowKey(ref.digest) not in self._sources
            and not committed.has(self._layer, RowKey(ref.digest))
        }
        if lacking:
            log.info("computing %s of %s", self._layer, counted(len(lacking), "image"))
        wanted = list(lacking.values())
        read = images.read(wanted, image_size=self._spec.image_size, resize=self._spec.resize)
        with closing(read):
            decoded = ((RowKey(ref.digest), pixels) for ref, pixels in read)
            layers = (self._layer,)
            table = self._tables.get(self.path)
            recorded = KnownRows(table, shards.read()).engine
            compute_rows(
                decoded,
                layers,
                self._spec,
                shards,
                open_engine,
                batch_size,
                row_count=len(wanted),
                recorded=recorded,
            )
        if shards.path.is_dir():
            self._publish(shards, describe())

    def _publish(self, shards: ShardFolder, document: Mapping[str, Any]) -> None:
        """Move the shards' rows into the file."""
        table = self._tables.get(self.path)
        known = KnownRows(table, shards.read())
        refs = [
            ImageRef(key.digest.hex().encode(), 0, NO_SPLIT, key.digest)
            for key in known.sources[self._layer]
        ]
        publish_rows(
            self.path,
            table=table,
            known=known,
            images=content_set(self._folder),
            refs=refs,
            plan=ViewPlan(),
            layers=(self._layer,),
            document=document,
        )
        self._add_table(read_all_rows(self.path))
        shards.remove_published(KnownRows(self._tables[self.path], ()).has)

    def _add_table(self, table: FeatureTable) -> None:
        if self._layer in table.layers:
            self._tables[table.path] = table
            self._sources |= KnownRows(table, ()).sources[self._layer]
