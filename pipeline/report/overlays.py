"""Overlays: photographs with their heat maps, as pictures and PNG files."""

import io
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from pipeline.durable import make_folder, write_durably
from pipeline.images.decode import UnreadableImage, decode, register_heic
from pipeline.images.reader import Pixels
from pipeline.models.heatmaps import Heatmap
from pipeline.models.image_predictions import Prediction
from pipeline.report.sheets import LINE, write_line
from pipeline.spec import FULL_RANGE
from pipeline.text import counted, file_name, printable

LONGER_SIDE = 448  # pixels
MIN_WIDTH = 224  # pixels: the legend fits
GAP = 6  # pixels around the lines of the legend
# Vermilion and blue of Okabe and Ito (2008), "Color universal design": people with any kind of
# colour blindness tell them apart, and few photographs have them. The photograph is half grey.
FOR, AGAINST = (213, 94, 0), (0, 114, 178)
OPACITY = 0.75  # of the strongest evidence; none is transparent
MAX_NAME = 60  # characters of a file name: 180 bytes in Korean

log = logging.getLogger("pipeline")


def overlay(
    picture: bytes | Pixels, heatmap: Heatmap, *, resize: str = "squash", range: str = FULL_RANGE
) -> Image.Image:
    """Draw a heat map over a photograph, with class, method and colours below.

    Parameters
    ----------
    picture : the content of the image file; ``resize`` and ``range`` are those of the model. Or the
        pixels that the base saw, (H, W, 3) uint8 RGB.

    Raises `pipeline.images.decode.UnreadableImage`.
    """
    if isinstance(picture, bytes):
        pixels = decode(picture, image_size=LONGER_SIDE, resize="contain", range=range)
        drawn = blend(Image.fromarray(pixels), heatmap, resize)
    else:
        drawn = blend(Image.fromarray(picture), heatmap, "squash")
        drawn = ImageOps.contain(drawn, (LONGER_SIDE, LONGER_SIDE))
    return _add_legend(drawn, heatmap)


def blend(photo: Image.Image, heatmap: Heatmap, resize: str) -> Image.Image:
    """Draw a heat map over the part of a photograph that the base saw.

    ``resize`` is the policy that made the base's square of the photograph. Opacity is proportional
    to the values, so that half of a map's largest one is half as opaque.
    """
    width, height = photo.size
    square = max(width, height) if resize == "pad" else min(width, height)
    if resize == "crop":
        photo = ImageOps.fit(photo, (square, square))
    shape = photo.size if resize == "squash" else (square, square)
    strength = heatmap.values / max(float(np.abs(heatmap.values).max()), 1e-300)
    if heatmap.is_flat:  # as many colours as evidence: none
        strength = np.zeros_like(strength)
    evidence = Image.fromarray(strength.astype(np.float32)).resize(shape, Image.Resampling.BICUBIC)
    values = np.asarray(ImageOps.fit(evidence, photo.size))[..., None]  # (H, W, 1)
    opacity = OPACITY * np.abs(values).clip(0, 1)
    half_grey = Image.blend(photo, ImageOps.grayscale(photo).convert("RGB"), 0.5)
    colours = np.where(values > 0, FOR, AGAINST)
    mixed = np.asarray(half_grey) * (1 - opacity) + colours * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def _add_legend(drawn: Image.Image, heatmap: Heatmap) -> Image.Image:
    """Write class and method below a picture, and what the colours mean."""
    width = max(drawn.width, MIN_WIDTH)
    whole = Image.new("RGB", (width, drawn.height + 2 * (LINE + GAP)), "white")
    whole.paste(drawn, ((width - drawn.width) // 2, 0))
    canvas, upper = ImageDraw.Draw(whole), drawn.height + GAP
    write_line(canvas, (GAP, upper), f"{heatmap.method}: {heatmap.label}", width - 2 * GAP)
    upper += LINE
    if heatmap.is_flat:
        write_line(canvas, (GAP, upper), "flat: no position stands out", width - 2 * GAP)
        return whole
    for left, colour, text in ((GAP, FOR, "evidence for"), (MIN_WIDTH // 2, AGAINST, "against")):
        canvas.rectangle((left, upper + 3, left + 10, upper + 13), fill=colour)
        write_line(canvas, (left + 16, upper), text, MIN_WIDTH // 2 - 16)
    return whole


def write_overlays(
    predictions: Iterable[Prediction], folder: Path, *, resize: str, range: str
) -> Iterator[Prediction]:
    """Yield predictions with the path of the overlay of their heat map, when it is written.

    The names of the PNG files begin with a number: no two are equal. Logs where they are, and how
    many heat maps are flat.
    """
    register_heic()
    labels, images, flat = set(), 0, 0
    for prediction in predictions:
        if (heatmap := prediction.heatmap) is not None:
            images += 1
            flat += heatmap.is_flat
            labels.add(heatmap.label)
            name = file_name(Path(os.fsdecode(prediction.path)).stem)[:MAX_NAME]
            path = folder / f"{images:05d}-{name}.png"
            _write(path, prediction.path, heatmap, resize, range)
            prediction = replace(prediction, heatmap=replace(heatmap, file=os.fspath(path)))
        yield prediction
    log.info("heat maps: %s in %s", counted(images, "image"), printable(folder))
    if flat:
        log.warning(
            "%s flat: no position changes the score; choose another --explain-method or head",
            counted(flat, "heat map is", "heat maps are"),
        )
    if not (names := "".join(labels)).isascii():
        from pipeline.report.fonts import warn_of_boxes

        warn_of_boxes(names, folder.name)


def _write(path: Path, photo: bytes, heatmap: Heatmap, resize: str, range: str) -> None:
    try:
        data = Path(os.fsdecode(photo)).read_bytes()
        drawn = overlay(data, heatmap, resize=resize, range=range)
    except (OSError, UnreadableImage):  # since it was classified
        drawn = overlay(np.full((LONGER_SIDE, LONGER_SIDE, 3), 211, np.uint8), heatmap)
    make_folder(path.parent)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    encoded = buffer.getvalue()
    write_durably(path, lambda file: file.write(encoded))
