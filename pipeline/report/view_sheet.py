"""A sheet of views: what augmentation makes of some images, as one PNG."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.durable import write_durably
from pipeline.images.views import Augmentation, Pixels, draw_view
from pipeline.report.contact_sheet import LINE, MARGIN, PICTURE, TEXT_SIZE, write_line
from pipeline.text import counted

MOST_VIEWS = 16  # beside the image: a sheet of 3,600 pixels' width
NARROWEST = 50  # pixels from one picture to the next: "view 16" fits


def write_view_sheet(
    path: Path,
    rows: Sequence[tuple[bytes, bytes, Pixels]],
    *,
    augmentation: Augmentation,
    views: int,
) -> None:
    """Draw a row for each image: its name, the image as it is, then views 1 to ``views``.

    They are the very views that are cached, at the size that the base sees, smaller only where
    that is above `PICTURE` pixels. At most `MOST_VIEWS` are shown. Names are escaped.

    Parameters
    ----------
    rows : path, digest and (S, S, 3) uint8 pixels of each image.
    """
    shown = min(views, MOST_VIEWS)
    side = min(PICTURE, max((len(pixels) for _, _, pixels in rows), default=PICTURE))
    step = max(side, NARROWEST) + MARGIN
    count = f"first {shown} of {views} views" if shown < views else counted(views, "view")
    title = f"{count}: {augmentation}"
    font = ImageFont.load_default(TEXT_SIZE)  # Pillow's own: the same on every system
    width = max(2 * MARGIN + math.ceil(font.getlength(title)), MARGIN + (1 + shown) * step)
    header = 2 * (MARGIN + LINE)
    row_height = LINE + side + MARGIN
    sheet = Image.new("RGB", (width, header + len(rows) * row_height), "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((MARGIN, MARGIN), title, "black", font=font)
    for view in range(1 + shown):
        place = (MARGIN + view * step, MARGIN + LINE)
        heading = f"view {view}" if view else "as it is"
        write_line(canvas, place, heading, font, step, colour="dimgray")
    for row, (name, digest, pixels) in enumerate(rows):
        upper = header + row * row_height
        write_line(canvas, (MARGIN, upper), os.fsdecode(name), font, width - 2 * MARGIN)
        for view in range(1 + shown):
            drawn = draw_view(pixels, augmentation=augmentation, image_digest=digest, view=view)
            picture = Image.fromarray(drawn)
            picture.thumbnail((side, side))
            sheet.paste(picture, (MARGIN + view * step, upper + LINE))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    encoded = buffer.getvalue()
    write_durably(path, lambda file: file.write(encoded), needs=len(encoded))
