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
        picture = _open_picture(source, table, row, LONGER_SIDE)
        if isinstance(picture, str):
            return Thumbnail(reason=picture)
        heatmap = heatmaps.get(row)
        overlay = ""
        if heatmap is not None:
            overlay = jpeg_address(blend(picture, heatmap, table.spec.resize))
        return Thumbnail(jpeg_address(picture), overlay=overlay)

    with ThreadPoolExecutor(max(2, usable_cores())) as pool:
        return dict(zip(rows, pool.map(read, rows), strict=True))


def read_picture(source: ImageSource, table: FeatureTable, row: int, side: int) -> bytes | str:
    """Return a row's image as JPEG of at most ``side`` pixels, or the reason why there is none."""
    picture = _open_picture(source, table, row, side)
    return picture if isinstance(picture, str) else _to_jpeg(picture)


def _open_picture(
    source: ImageSource, table: FeatureTable, row: int, side: int
) -> Image.Image | str:
    path = table.columns.paths[row]
    try:
        data = source.read(path) if source.stat(path).size <= MAX_FILE else b""
    except OSError:
        return "the file is gone"
    # A cache from elsewhere may name any file: show only the image that was extracted.
    if hashlib.sha256(data).digest() != table.columns.digests[row].tobytes():
        return "the file has changed"
    try:
        pixels = decode(data, image_size=side, resize="contain", range=table.spec.range)
    except UnreadableImage:
        return "the file cannot be read"
    return Image.fromarray(pixels)


def _to_jpeg(picture: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg_address(picture: Image.Image, quality: int = JPEG_QUALITY) -> str:
    """Return a picture as a ``data:`` address."""
    encoded = base64.b64encode(_to_jpeg(picture, quality)).decode("ascii")
    return f"data:image/jpeg;base64,{encoded}"
