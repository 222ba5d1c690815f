"""The sheet of views shows the cached views, for any image name."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_images import draw

from pipeline.images.views import POLICIES, Augmentation, Pixels, draw_view
from pipeline.report.sheets import LINE, MARGIN, MAX_VIEWS, MIN_STEP, PICTURE, write_view_sheet

Row = tuple[bytes, bytes, Pixels]


def row_of(name: str, *, seed: int = 0, size: int = 48) -> Row:
    pixels = np.asarray(draw(seed, stripes=True, size=(size, size)))
    return os.fsencode(name), bytes([seed] * 32), pixels


def sheet_of(rows: list[Row], views: int, augmentation: Augmentation | None = None) -> np.ndarray:
    path = Path("sheet.png")
    write_view_sheet(path, rows, augmentation=augmentation or POLICIES["book"], views=views)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def cell(sheet: np.ndarray, row: int, view: int, *, side: int = 48) -> np.ndarray:
    upper = 2 * (MARGIN + LINE) + row * (LINE + side + MARGIN) + LINE
    left = MARGIN + view * (max(side, MIN_STEP) + MARGIN)
    return sheet[upper : upper + side, left : left + side]


def test_each_row_contains_the_image_and_its_cached_views() -> None:
    rows = [row_of("a.png", seed=1), row_of("b.png", seed=2)]
    sheet = sheet_of(rows, views=4)
    for number, (_, digest, pixels) in enumerate(rows):
        np.testing.assert_array_equal(cell(sheet, number, 0), pixels)
        for view in range(1, 5):
            expected = draw_view(
                pixels, augmentation=POLICIES["book"], image_digest=digest, view=view
            )
            np.testing.assert_array_equal(cell(sheet, number, view), expected)
        assert (cell(sheet, number, 5) == 255).all()


def test_large_pictures_are_shown_smaller() -> None:
    sheet = sheet_of([row_of("a.png", size=2 * PICTURE)], views=1)
    assert len(sheet) == 2 * (MARGIN + LINE) + LINE + PICTURE + MARGIN
    for view in range(2):
        assert (cell(sheet, 0, view, side=PICTURE) != 255).any(axis=2).mean() > 0.9
    rest = sheet[2 * (MARGIN + LINE) :, MARGIN + 2 * (PICTURE + MARGIN) :]
    assert (rest == 255).all()


def test_sheet_shows_a_limited_number_of_views() -> None:
    rows = [row_of("a.png")]
    shape = sheet_of(rows, views=100).shape
    assert shape == sheet_of(rows, views=MAX_VIEWS).shape
    assert shape[1] == MARGIN + (1 + MAX_VIEWS) * (MIN_STEP + MARGIN)


def test_title_fits_however_long() -> None:
    longest = Augmentation(
        rotation=123.456,
        width_shift=0.12345,
        height_shift=0.54321,
        shear=12.3456,
        zoom=0.12345,
        flip=True,
        jitter=0.12345,
        seed=2**32 - 1,
    )
    sheet = sheet_of([row_of("a.png")], views=1, augmentation=longest)
    title = sheet[MARGIN : MARGIN + LINE]
    assert (title[:, -2 * MARGIN : -MARGIN] != 255).any()
    assert (title[:, -MARGIN:] == 255).all()


NAMES = ["고양이", "a\x1b[31m", "new\nline", "\u202egpj", "x" * 2000, "\udcff"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_stays_on_its_line(name: str) -> None:
    plain = sheet_of([row_of("b.png"), row_of("", seed=1)], views=2)
    named = sheet_of([row_of("b.png"), row_of(name, seed=1)], views=2)
    upper = 2 * (MARGIN + LINE) + LINE + 48 + MARGIN
    changed = (plain != named).any(axis=(1, 2))
    assert changed[upper : upper + LINE].any()
    assert not np.delete(changed, np.s_[upper : upper + LINE]).any()
