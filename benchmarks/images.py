"""Gather the image files of stage one: from a folder of the user, or synthetic."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import BadDataError
from pipeline.images.decode import UnreadableImage, decode
from pipeline.images.scan import scan_folder
from pipeline.images.source import MAX_FILE
from pipeline.text import counted, printable

MIN_IMAGES = 32  # one batch of the book's loop
SIZE = (500, 375)  # width and height of a photograph in cats and dogs
FORMATS = {"JPEG": ".jpg", "PNG": ".png"}  # formats that Keras' loader can read


def gather_images(data: Path | None, folder: Path, count: int) -> list[Path]:
    """Fill a folder with at most ``count`` different images in two classes; return their paths.

    Images of ``data`` are a random sample, hard-linked or else copied. Files that Keras' loader
    cannot read and images beyond full batches of 32 are omitted.

    Raises BadDataError if fewer than 32 images remain, and the errors of
    `pipeline.images.scan.scan_folder`.
    """
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    paths: list[Path] = []

    def new_path(suffix: str) -> Path:
        paths.append(folder / "ab"[len(paths) % 2] / f"{len(paths):06d}{suffix}")
        return paths[-1]

    if data is None:
        for seed in range(count):
            draw_photograph(seed).save(new_path(".jpg"), quality=90)
    else:
        for path, suffix in _different_images(data):
            _link_or_copy(path, new_path(suffix))
            if len(paths) == count:
                break
        if len(paths) < MIN_IMAGES:
            raise BadDataError(
                f"{printable(data)} has {counted(len(paths), 'different JPEG or PNG image')}; "
                f"expected {MIN_IMAGES} or more. Name another folder, or none for synthetic images"
            )
    full = len(paths) // MIN_IMAGES * MIN_IMAGES
    for path in paths[full:]:
        path.unlink()
    return paths[:full]


def _different_images(data: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and suffix of usable images, in the same random order each time."""
    images = scan_folder(data)
    seen: set[bytes] = set()
    for number in np.random.default_rng(0).permutation(len(images.files)):
        path = Path(images.root) / os.fsdecode(images.files[number].path)
        try:
            if path.stat().st_size > MAX_FILE:
                continue
            content = path.read_bytes()
            digest = hashlib.sha256(content).digest()
            with Image.open(io.BytesIO(content)) as image:
                suffix = FORMATS.get(image.format or "") if image.mode in ("RGB", "L") else None
            if suffix is None or digest in seen:
                continue
            decode(content, image_size=8, resize="squash")
        except (OSError, ValueError, UnidentifiedImageError, UnreadableImage):
            continue
        seen.add(digest)
        yield path, suffix


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path)
    except OSError:  # another disk, or not permitted
        shutil.copyfile(path, target)


def draw_photograph(seed: int) -> Image.Image:
    """Return an image of noise that takes as long to decode as a photograph.

    500 × 375 pixels, about 40 kB as JPEG; the coarser the scale, the stronger the noise.
    """
    random = np.random.default_rng(seed)
    pixels = np.full((SIZE[1], SIZE[0], 3), 128, np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = random.normal(128, 80, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
        layer = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer, np.float32) - 128) / cells**0.5
    pixels += random.normal(0, 3, pixels.shape)  # camera noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
