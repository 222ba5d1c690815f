"""Write contact sheets as PNG files: images with their predictions, or with their views."""

import io
import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.durable import write_durably
from pipeline.images.decode import UnreadableImage, decode, register_heic
from pipeline.images.views import Augmentation, Pixels, draw_view
from pipeline.models.image_predictions import Prediction
from pipeline.spec import FULL_RANGE, REGRESSION
from pipeline.text import counted, printable

MAX_PICTURES = 100  # a sheet of about 1,100 × 6,000 pixels: 10 MB
MAX_CLASSES = 10
COLUMNS = 5
PICTURE = 200  # pixels
MARGIN = 12
LINE = 18  # pixels from one line of text to the next
TEXT_SIZE = 13
BASELINE = 13  # pixels below the top of a line, for every font
MAX_CHARACTERS = 60  # characters of a line; no more fit

MAX_VIEWS = 16  # per image; the sheet is 3,600 pixels wide
MIN_STEP = 50  # pixels from one picture to the next: "view 16" fits

Canvas = ImageDraw.ImageDraw


def write_contact_sheet(
    path: Path, predictions: Sequence[Prediction], *, top: int, title: str, range: str = FULL_RANGE
) -> None:
    """Write a PNG file of images, read from their files, each with up to ten of its top classes.

    Names are escaped; letters that no installed font has show as boxes, unreadable images as grey
    squares.
    """
    register_heic()
    top = min(top, MAX_CLASSES)
    width = MARGIN + COLUMNS * (PICTURE + MARGIN)
    cell_height = PICTURE + (1 + top) * LINE + 2 * MARGIN
    rows = -(-len(predictions) // COLUMNS)
    header = 2 * MARGIN + LINE
    sheet = Image.new("RGB", (width, header + rows * cell_height), "white")
    canvas = ImageDraw.Draw(sheet)
    write_line(canvas, (MARGIN, MARGIN), title, width - 2 * MARGIN)
    names = ""
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, COLUMNS)
        left, upper = MARGIN + column * (PICTURE + MARGIN), header + row * cell_height
        sheet.paste(_read_picture(prediction.path), (left, upper))
        name = Path(os.fsdecode(prediction.path)).name
        lower = upper + PICTURE + 4
        write_line(canvas, (left, lower), name, PICTURE, colour="dimgray")
        if prediction.task == REGRESSION:
            text = f"{prediction.classes[0]} {prediction.number:.6g}"
            write_line(canvas, (left, lower + LINE), text, PICTURE)
            names += text + name
            continue
        for rank, (label, probability) in enumerate(prediction.top(top), start=1):
            _write_class(canvas, (left, lower + rank * LINE), label, probability)
            names += label
        names += name
    _save(sheet, path, names)


def write_view_sheet(
    path: Path,
    rows: Sequence[tuple[bytes, bytes, Pixels]],
    *,
    augmentation: Augmentation,
    views: int,
) -> None:
    """Write a PNG file with a row for each image: its name, the image, then views 1 to ``views``.

    ``rows`` are path, digest and (S, S, 3) uint8 pixels of each image. The views equal those in the
    cache, reduced to `PICTURE` pixels. Up to `MAX_VIEWS` are shown. Names are escaped.
    """
    shown = min(views, MAX_VIEWS)
    side = min(PICTURE, max((len(pixels) for _, _, pixels in rows), default=PICTURE))
    step = max(side, MIN_STEP) + MARGIN
    count = f"first {shown} of {views} views" if shown < views else counted(views, "view")
    title = f"{count}: {augmentation}"
    font = _font_of(title)
    width = max(2 * MARGIN + math.ceil(font.getlength(title)), MARGIN + (1 + shown) * step)
    header = 2 * (MARGIN + LINE)
    row_height = LINE + side + MARGIN
    sheet = Image.new("RGB", (width, header + len(rows) * row_height), "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((MARGIN, MARGIN), title, "black", font)
    for view in range(1 + shown):
        position = (MARGIN + view * step, MARGIN + LINE)
        heading = f"view {view}" if view else "original"
        write_line(canvas, position, heading, step, colour="dimgray")
    for row, (name, digest, pixels) in enumerate(rows):
        upper = header + row * row_height
        write_line(canvas, (MARGIN, upper), os.fsdecode(name), width - 2 * MARGIN)
        for view in range(1 + shown):
            augmented = draw_view(pixels, augmentation=augmentation, image_digest=digest, view=view)
            picture = Image.fromarray(augmented)
            picture.thumbnail((side, side))
            sheet.paste(picture, (MARGIN + view * step, upper + LINE))
    _save(sheet, path, "".join(os.fsdecode(name) for name, _, _ in rows))


def _save(sheet: Image.Image, path: Path, names: str) -> None:
    if not names.isascii():
        from pipeline.report.fonts import warn_of_boxes

        warn_of_boxes(names, path.name)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    encoded = buffer.getvalue()
    write_durably(path, lambda file: file.write(encoded))


def _read_picture(path: bytes) -> Image.Image:
    """Return the complete image in a square, with black bars at its sides."""
    try:
        data = Path(os.fsdecode(path)).read_bytes()
        return Image.fromarray(decode(data, image_size=PICTURE, resize="pad"))
    except (OSError, UnreadableImage):
        return Image.new("RGB", (PICTURE, PICTURE), "lightgray")


def _write_class(canvas: Canvas, position: tuple[int, int], label: str, probability: float) -> None:
    """Write a class and its probability on a bar of proportional length."""
    left, upper = position
    bar = (left, upper, left + round(probability * (PICTURE - 1)), upper + LINE - 3)
    canvas.rectangle(bar, fill="lightblue")
    number = f"{probability:.3f}"
    number_width = round(_font_of(number).getlength(number))
    write_line(canvas, (left + PICTURE - number_width - 2, upper), number, number_width + 1)
    write_line(canvas, (left + 2, upper), label, PICTURE - number_width - 8)


def write_line(
    canvas: Canvas, position: tuple[int, int], text: str, width: int, *, colour: str = "black"
) -> None:
    """Write one line of escaped text, cut to a width in pixels."""
    text = printable(text)
    shown, font = text[:MAX_CHARACTERS], _font_of(text)
    while font.getlength(shown + "…" * (shown != text)) > width and shown:
        shown = shown[:-1]
    left, upper = position
    canvas.text((left, upper + BASELINE), shown + "…" * (shown != text), colour, font, anchor="ls")


@cache
def _font_of(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that has the most letters of a text."""
    if text.isascii():
        return ImageFont.load_default(TEXT_SIZE)  # bundled: the same on every system
    from pipeline.report.fonts import fonts_for, letters_of

    best = max(fonts_for(text), key=lambda font: sum(letter in letters_of(font) for letter in text))
    return ImageFont.truetype(best, TEXT_SIZE)
