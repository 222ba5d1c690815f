"""A contact sheet: pictures with what was predicted for each, as one PNG."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.durable import write_durably
from pipeline.images.decode import UnreadableImage, decode, register_heic
from pipeline.models.predicting import Prediction
from pipeline.text import printable

MOST_PICTURES = 100  # a sheet of some 1,100 × 6,000 pixels: 10 MB
MOST_CLASSES = 10
COLUMNS = 5
PICTURE = 200  # pixels
MARGIN = 12
LINE = 18  # pixels from one line of text to the next
TEXT_SIZE = 13
LONGEST = 60  # characters that are looked at for a line; no more fit

Canvas = ImageDraw.ImageDraw


def write_contact_sheet(
    path: Path, predictions: Sequence[Prediction], *, top: int, title: str
) -> None:
    """Draw some images, read anew from their files, each with its top classes, ten at most.

    Names are escaped; a letter that the bundled typeface lacks shows as a box. What has become
    unreadable meanwhile shows as a grey square.
    """
    register_heic()
    top = min(top, MOST_CLASSES)
    width = MARGIN + COLUMNS * (PICTURE + MARGIN)
    cell_height = PICTURE + (1 + top) * LINE + 2 * MARGIN
    rows = -(-len(predictions) // COLUMNS)
    header = 2 * MARGIN + LINE
    sheet = Image.new("RGB", (width, header + rows * cell_height), "white")
    canvas = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)  # Pillow's own: the same on every system
    write_line(canvas, (MARGIN, MARGIN), title, font, width - 2 * MARGIN)
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, COLUMNS)
        left, upper = MARGIN + column * (PICTURE + MARGIN), header + row * cell_height
        sheet.paste(_picture(prediction.path), (left, upper))
        name = Path(os.fsdecode(prediction.path)).name
        lower = upper + PICTURE + 4
        write_line(canvas, (left, lower), name, font, PICTURE, colour="dimgray")
        for place, (label, probability) in enumerate(prediction.top(top), start=1):
            _write_class(canvas, (left, lower + place * LINE), label, probability, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    encoded = buffer.getvalue()
    write_durably(path, lambda file: file.write(encoded), needs=len(encoded))


def _picture(path: bytes) -> Image.Image:
    """The whole image in a square, black bars at its sides."""
    try:
        data = Path(os.fsdecode(path)).read_bytes()
        return Image.fromarray(decode(data, image_size=PICTURE, resize="pad"))
    except (OSError, UnreadableImage):
        return Image.new("RGB", (PICTURE, PICTURE), "lightgray")


def _write_class(
    canvas: Canvas,
    place: tuple[int, int],
    label: str,
    probability: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A class and its probability, on a bar as long as it is probable."""
    left, upper = place
    bar = (left, upper, left + round(probability * (PICTURE - 1)), upper + LINE - 3)
    canvas.rectangle(bar, fill="lightblue")
    number = f"{probability:.3f}"
    number_width = round(canvas.textlength(number, font=font))
    canvas.text((left + PICTURE - number_width - 2, upper), number, "black", font=font)
    write_line(canvas, (left + 2, upper), label, font, PICTURE - number_width - 8)


def write_line(
    canvas: Canvas,
    place: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
    *,
    colour: str = "black",
) -> None:
    """One line of text from outside, cut to a width in pixels."""
    text = printable(text)
    shown = text[:LONGEST]
    while canvas.textlength(shown + "…" * (shown != text), font=font) > width and shown:
        shown = shown[:-1]
    canvas.text(place, shown + "…" * (shown != text), colour, font=font)
