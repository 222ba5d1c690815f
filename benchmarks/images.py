"""The files that every side of stage one reads: some of the user's own, or drawn ones."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import BadDataError
from pipeline.images.decode import MAX_FILE, UnreadableImage, decode
from pipeline.images.scan import scan_folder
from pipeline.text import counted, printable

LEAST = 32  # images: one batch of the book's loop
SIZE = (500, 375)  # width and height of a picture from the web, as in cats and dogs
FORMATS = {"JPEG": ".jpg", "PNG": ".png"}  # what Keras' loader and ours both read


def gather_images(data: Path | None, folder: Path, count: int) -> list[Path]:
    """Fill a folder with at most ``count`` different images, half of them in each of two classes.

    Those of a set are taken from all over it and linked, or copied where that cannot be. Files
    that Keras' loader would trip over are left out, and so is what does not fill a batch of 32.

    Raises BadDataError if fewer than 32 remain, and whatever
    `pipeline.images.scan.scan_folder` raises.
    """
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    made: list[Path] = []

    def place(suffix: str) -> Path:
        made.append(folder / "ab"[len(made) % 2] / f"{len(made):06d}{suffix}")
        return made[-1]

    if data is None:
        for seed in range(count):
            draw_photograph(seed).save(place(".jpg"), quality=90)
    else:
        for path, suffix in _different_images(data):
            _link_or_copy(path, place(suffix))
            if len(made) == count:
                break
        if len(made) < LEAST:
            raise BadDataError(
                f"{printable(data)} has {counted(len(made), 'different JPEG or PNG image')}; "
                f"expected {LEAST} or more. Name another folder, or none to have images drawn"
            )
    for path in made[len(made) // LEAST * LEAST :]:
        path.unlink()
    return made[: len(made) // LEAST * LEAST]


def _different_images(data: Path) -> Iterator[tuple[Path, str]]:
    """Paths of usable images, in a random order that is always the same, with a file ending."""
    found = scan_folder(data)
    seen: set[bytes] = set()
    for number in np.random.default_rng(0).permutation(len(found.files)):
        path = found.root / os.fsdecode(found.files[number].path)
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
    except OSError:  # another disk, or not allowed
        shutil.copyfile(path, target)


def draw_photograph(seed: int) -> Image.Image:
    """Noise at every scale, the coarser the stronger: as much for a decoder to do as a photograph.

    500 × 375 pixels; about 40 kB as JPEG.
    """
    random = np.random.default_rng(seed)
    pixels = np.full((SIZE[1], SIZE[0], 3), 128, np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = random.normal(128, 80, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
        layer = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer, np.float32) - 128) / cells**0.5
    pixels += random.normal(0, 3, pixels.shape)  # of the camera
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
