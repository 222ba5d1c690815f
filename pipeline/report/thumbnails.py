"""Make thumbnails of cached rows from their image files, unless these have changed."""

import base64
import hashlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from pipeline.cache.file import FeatureTable
from pipeline.cores import usable_cores
from pipeline.errors import PipelineError
from pipeline.images.decode import UnreadableImage, decode, register_heic
from pipeline.images.sets import reopen_source
from pipeline.images.source import MAX_FILE, ImageSource
from pipeline.models.heatmaps import Heatmap
from pipeline.report.overlays import blend
from pipeline.spec import FeatureSpec

LONGER_SIDE = 128  # pixels: sharp at 64 on a dense display, about 4 kB
JPEG_QUALITY = 72

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a ``data:`` address, or an empty address and the reason.

    ``overlay`` : the picture with its heat map, if there is one.
    """

    address: str = ""
    reason: str = ""
    overlay: str = ""


def read_thumbnails(
    table: FeatureTable, rows: Iterable[int], heatmaps: Mapping[int, Heatmap] | None = None
) -> dict[int, Thumbnail]:
    """Return the picture of each row, of at most `LONGER_SIDE` pixels; each row is read once.

    ``heatmaps`` : of some of the rows.
    """
    register_heic()
    unique_rows = sorted(set(rows))
    try:
        source = reopen_source(table.document)
        if source is None:
            return dict.fromkeys(unique_rows, Thumbnail(reason="the image folder is gone"))
        return _read_thumbnails(source, table, unique_rows, heatmaps or {})
    except PipelineError as error:  # of an archive or a storage
        log.warning("no thumbnails: %s", error)
        return dict.fromkeys(unique_rows, Thumbnail(reason="the images cannot be reached"))


def _read_thumbnails(
    source: ImageSource, table: FeatureTable, rows: Sequence[int], heatmaps: Mapping[int, Heatmap]
) -> dict[int, Thumbnail]:

    def read(row: int) -> Thumbnail:
        columns = table.columns
        digest = columns.digests[row].tobytes()
        path, heatmap = columns.paths[row], heatmaps.get(row)
        return _make_thumbnail(source, path, digest, table.spec, heatmap)

    with ThreadPoolExecutor(max(2, usable_cores())) as pool:
        return dict(zip(rows, pool.map(read, rows), strict=True))


def _make_thumbnail(
    source: ImageSource, path: bytes, digest: bytes, spec: FeatureSpec, heatmap: Heatmap | None
) -> Thumbnail:
    """Return the picture of a file if its SHA-256 is that digest."""
    try:
        data = source.read(path) if source.stat(path).size <= MAX_FILE else b""
    except OSError:
        return Thumbnail(reason="the file is gone")
    # A cache from elsewhere may name any file: show only the image that was extracted.
    if hashlib.sha256(data).digest() != digest:
        return Thumbnail(reason="the file has changed")
    try:
        pixels = decode(data, image_size=LONGER_SIDE, resize="contain", range=spec.range)
    except UnreadableImage:
        return Thumbnail(reason="the file cannot be read")
    picture = Image.fromarray(pixels)
    drawn = "" if heatmap is None else _address(blend(picture, heatmap, spec.resize))
    return Thumbnail(address=_address(picture), overlay=drawn)


def _address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
