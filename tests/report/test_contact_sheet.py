"""The contact sheet shows every picture with its classes, for any name."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_images import draw

from pipeline.models.image_predictions import Prediction
from pipeline.report.sheets import COLUMNS, LINE, MARGIN, PICTURE, write_contact_sheet


def predict(path: str, *, classes: tuple[str, ...] = ("cat", "dog")) -> Prediction:
    shares = np.arange(len(classes), 0, -1.0)
    return Prediction(shares / shares.sum(), path=os.fsencode(path), classes=classes)


def sheet_of(predictions: list[Prediction], top: int = 2) -> np.ndarray:
    write_contact_sheet(Path("sheet.png"), predictions, top=top, title="title")
    with Image.open("sheet.png") as image:
        assert image.format == "PNG"
        return np.asarray(image)


def cell(sheet: np.ndarray, number: int, *, pictures: int) -> np.ndarray:
    """Return the pixels of a picture and the text below it."""
    rows = -(-pictures // COLUMNS)
    header = 2 * MARGIN + LINE
    height = (sheet.shape[0] - header) // rows
    row, column = divmod(number, COLUMNS)
    left = MARGIN + column * (PICTURE + MARGIN)
    return sheet[header + row * height :, left : left + PICTURE][:height]


def test_pictures_are_in_order_and_undistorted() -> None:
    for number in range(7):
        picture = Image.new("RGB", (400, 200), (number * 30, 0, 255))
        picture.save(f"{number}.png")
    sheet = sheet_of([predict(f"{number}.png") for number in range(7)])
    for number in range(7):
        picture = cell(sheet, number, pictures=7)[:PICTURE]
        assert tuple(picture[PICTURE // 2, PICTURE // 2]) == (number * 30, 0, 255)
        assert not picture[10].any()  # a bar above a picture that is twice as wide as high
    assert (cell(sheet, 7, pictures=7) == 255).all()


def test_length_of_a_bar_is_the_probability_of_its_class() -> None:
    draw(0, stripes=True).save("a.png")
    sheet = sheet_of([predict("a.png", classes=("", "", ""))], top=3)  # 1/2, 1/3, 1/6; no names
    text = cell(sheet, 0, pictures=1)[PICTURE:]
    blue = (text == (173, 216, 230)).all(axis=2).sum(axis=1)
    lengths = sorted({int(length) for length in blue if length}, reverse=True)
    for share in (1 / 2, 1 / 3):
        assert any(abs(length - share * PICTURE) < 2 for length in lengths)


NAMES = ["고양이", "a\x1b[31m", "new\nline", "\u202egpj", "x" * 200, "\udcff"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_stays_within_its_cell(name: str) -> None:
    path = f"{name}.png"
    draw(0, stripes=True).save(os.fsencode(path))
    draw(1, stripes=True).save("b.png")
    alone = sheet_of([predict("b.png")])
    both = sheet_of([predict("b.png"), predict(path, classes=(name, name + "2"))])
    assert both.shape == alone.shape
    assert (cell(both, 0, pictures=2) == cell(alone, 0, pictures=1)).all()
    shown = cell(both, 1, pictures=2)[PICTURE:]
    assert (shown != 255).any()
    header = 2 * MARGIN + LINE
    assert (both[header:, 2 * (PICTURE + MARGIN) :] == 255).all()  # nothing leaves its cell


def test_sheet_shows_at_most_ten_classes_of_a_picture() -> None:
    draw(0, stripes=True).save("a.png")
    made = [predict("a.png", classes=tuple(map(str, range(1000))))]
    assert sheet_of(made, top=1000).shape == sheet_of(made, top=10).shape


def test_a_missing_picture_is_a_grey_square() -> None:
    sheet = sheet_of([predict("gone.png")])
    assert (cell(sheet, 0, pictures=1)[:PICTURE] == 211).all()
