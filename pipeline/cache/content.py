"""Features by content alone: of images that belong to no set, wherever they come from.

They have cache files of their own, ``images/<layer>-<base>-<fingerprint>.h5``: one class, no
splits, every row's path its digest. What other caches of the fingerprint hold is read there.
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
from pipeline.cache.compute import OpenEngine, compute_rows
from pipeline.cache.file import FeatureTable, Row, RowKey, read_all_rows
from pipeline.cache.publish import RowIndex, publish_rows
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.durable import make_folder
from pipeline.errors import BusyError, DamagedError
from pipeline.images.scan import NO_SPLIT
from pipeline.images.sources import ImageSources
from pipeline.spec import FeatureSpec
from pipeline.text import counted, printable

log = logging.getLogger(__name__)

FOLDER = "images"  # below the folder of caches; also the files' set name and only class

Stored = dict[RowKey, tuple[FeatureTable, int]]  # the file that holds a row, and its number there


def features_by_content(
    folder: Path,
    images: ImageSources,
    *,
    spec: FeatureSpec,
    layer: str,
    open_engine: OpenEngine,
    document: Mapping[str, Any],
    batch_size: int,
) -> npt.NDArray[np.float32]:
    """Features of images in their order, (N, *shape of a row) float32; computed ones are cached.

    Processes that lack images wait for one another: each image is computed once. What a damaged
    file held is computed again. ``document`` names the files' own folder as root, which exists as
    long as they do: there is nothing to prune. Raises BadDataError for an image that cannot be
    decoded; what was computed before it is kept.
    """
    ending = f"-{spec.base}-{spec.fingerprint}.h5"
    path = folder / FOLDER / (re.sub(r"[^\w.-]", ".", layer) + ending)
    patterns = (f"*{ending}", f"{FOLDER}/*{ending}")
    wanted = [RowKey(digest) for digest in images.digests]
    try:
        stored = _stored_rows([read_all_rows(each) for each in _files(folder, patterns)], layer)
        if stored.keys() >= set(wanted):  # nothing to wait for
            return _read(stored, wanted, layer)
    except (BusyError, DamagedError) as error:
        log.info("%s", error)
    make_folder(path.parent)
    with writer_lock(path, wait=True):
        tables = []
        for each in _files(folder, patterns):
            if find_damage(each):
                log.warning("%s is damaged: its images are computed again", printable(each))
            else:
                tables.append(read_all_rows(each))
        stored = _stored_rows(tables, layer)
        table = next((each for each in tables if each.path == path), None)
        shards = ShardFolder(path, spec)
        shards.settle()
        index = RowIndex(table, shards.shards)
        there = stored.keys() | index.sources[layer].keys()
        lacking = [key.digest for key in dict.fromkeys(wanted) if key not in there]
        if lacking:
            log.info("computing %s of %s", layer, counted(len(lacking), "image"))
        read = images.read(lacking, image_size=spec.image_size, resize=spec.resize)
        with closing(read) as decoded:
            compute_rows(
                ((RowKey(digest), pixels) for digest, pixels in decoded),
                (layer,),
                shards,
                open_engine,
                batch_size,
                row_count=len(lacking),
                recorded=index.engine,
            )
        index.add_shards(shards.shards)
        if shards.path.is_dir():
            rows = [
                Row(key, key.digest.hex().encode(), 0, NO_SPLIT) for key in index.sources[layer]
            ]
            publish_rows(
                path,
                table=table,
                index=index,
                rows=rows,
                classes=(FOLDER,),
                layers=(layer,),
                document=document,
            )
            published = read_all_rows(path)
            shards.remove_published(published)
            stored |= _stored_rows([published], layer)
        return _read(stored, wanted, layer)


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _stored_rows(tables: Sequence[FeatureTable], layer: str) -> Stored:
    return {
        key: (table, source.row)
        for table in tables
        for key, source in RowIndex(table).sources[layer].items()
    }


def _read(stored: Stored, keys: Sequence[RowKey], layer: str) -> npt.NDArray[np.float32]:
    """Rows in the order of their keys; raises DamagedError, or BusyError as `FeatureTable`."""
    found = [stored[key] for key in keys]
    features = np.empty((len(found), *found[0][0].layers[layer]), np.float32)
    for path, table in {table.path: table for table, _ in found}.items():
        places = [place for place, (each, _) in enumerate(found) if each.path == path]
        features[places] = table.features(layer, np.array([found[place][1] for place in places]))
    return features
