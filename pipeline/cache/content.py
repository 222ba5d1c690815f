"""Features of images that belong to no image folder, cached by content.

Their cache files are ``images/<layer>-<base>-<fingerprint>.h5``: one class, no splits, and each
row's path is its digest. Rows in other caches with the same fingerprint are read from there.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.checksums import find_damage
from pipeline.cache.compute import Computation, OpenEngine, compute_rows
from pipeline.cache.file import FeatureTable, Row, RowKey, read_all_rows
from pipeline.cache.hdf5 import damaged_error
from pipeline.cache.publish import publish_rows
from pipeline.cache.row_index import RowIndex
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.durable import make_folder
from pipeline.errors import BadDataError, BusyError, DamagedError
from pipeline.images.passed_images import PassedImages
from pipeline.images.scan import NO_SPLIT
from pipeline.spec import FeatureSpec
from pipeline.text import counted

log = logging.getLogger(__name__)

FOLDER = "images"  # in the folder of caches; also the set name and the only class

CachedRows = dict[RowKey, tuple[FeatureTable, int]]  # the file of a row, its number in the file


def features_by_content(
    folder: Path,
    images: PassedImages,
    *,
    spec: FeatureSpec,
    layer: str,
    open_engine: OpenEngine,
    document: Mapping[str, Any],
    batch_size: int,
) -> npt.NDArray[np.float32]:
    """Return features of images in order, (N, *shape of a row) float32, and cache new ones.

    Processes with missing images wait for one another: each image is computed once. Rows of a
    damaged file are computed again. ``document`` names the cache folder itself as root, so that
    prune keeps all rows. Raises BadDataError for an image that cannot be decoded; the rows
    computed before it are kept.
    """
    ending = f"-{spec.base}-{spec.fingerprint}.h5"
    path = folder / FOLDER / (re.sub(r"[^\w.-]", ".", layer) + ending)
    patterns = (f"*{ending}", f"{FOLDER}/*{ending}")
    keys = [RowKey(digest) for digest in images.digests]
    try:
        cached = _index_rows([read_all_rows(file) for file in _files(folder, patterns)], layer)
        if cached.keys() >= set(keys):  # no need to wait for the lock
            return _read_features(cached, keys, layer)
    except (BusyError, DamagedError) as error:
        log.info("%s", error)
    make_folder(path.parent)
    with writer_lock(path, wait=True):
        opened = [_open_undamaged(file) for file in _files(folder, patterns)]
        tables = [table for table in opened if table]
        cached = _index_rows(tables, layer)
        table = next((table for table in tables if table.path == path), None)
        shards = ShardFolder(path, spec)
        shards.recover()
        index = RowIndex(table, shards.shards)
        existing = cached.keys() | index.sources[layer].keys()
        missing = [key.digest for key in dict.fromkeys(keys) if key not in existing]
        if missing:
            log.info("computing %s of %s", layer, counted(len(missing), "image"))
        decoded = images.read(
            missing, image_size=spec.image_size, resize=spec.resize, range=spec.range
        )
        rows = list(map(RowKey, missing))
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        computation = Computation(
            (layer,), shards, open_engine, batches=batches, recorded=index.engine
        )
        with closing(decoded):
            rows_of_images = ([(computation, RowKey(key), pixels)] for key, pixels in decoded)
            compute_rows(rows_of_images, [computation])
        index.add_shards(shards.shards)
        if shards.path.is_dir():
            published_rows = [
                Row(key, key.digest.hex().encode(), 0, NO_SPLIT) for key in index.sources[layer]
            ]
            publish_rows(
                path,
                table=table,
                index=index,
                rows=published_rows,
                classes=(FOLDER,),
                layers=(layer,),
                document=document,
            )
            published = read_all_rows(path)
            shards.remove_published(published)
            cached |= _index_rows([published], layer)
        return _read_features(cached, keys, layer)


def _open_undamaged(path: Path) -> FeatureTable | None:
    """Open a cache; log the reason and return None if it is damaged; raises BusyError."""
    try:
        if any(damage.is_lost for damage in find_damage(path)):
            raise damaged_error(path)
        return read_all_rows(path)
    except BadDataError as error:
        log.warning("%s; its images are computed again", error)
        return None


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _index_rows(tables: Sequence[FeatureTable], layer: str) -> CachedRows:
    """Map the keys of all rows of a layer to their tables; the last table with a key counts."""
    return {
        key: (table, source.row)
        for table in tables
        for key, source in RowIndex(table).sources[layer].items()
    }


def _read_features(cached: CachedRows, keys: list[RowKey], layer: str) -> npt.NDArray[np.float32]:
    """Read rows in the order of their keys; raises DamagedError, or BusyError as `FeatureTable`."""
    sources = [cached[key] for key in keys]
    features = np.empty((len(keys), *sources[0][0].layers[layer]), np.float32)
    for table in {table.path: table for table, _ in sources}.values():
        indices = [i for i, (source, _) in enumerate(sources) if source.path == table.path]
        features[indices] = table.features(layer, np.array([sources[i][1] for i in indices]))
    return features
