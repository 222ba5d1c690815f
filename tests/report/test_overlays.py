"""Heat maps over photographs."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.models.heatmaps import Heatmap
from pipeline.report.overlays import AGAINST, FOR, LONGER_SIDE, blend, overlay


def draw_heatmap(values: list[list[float]]) -> Heatmap:
    return Heatmap("a\x1b강", np.array(values, float), "cam")


def png(width: int, height: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(file, "PNG", exif=exif)
    return file.getvalue()


def tint(picture: Image.Image, x: float, y: float) -> str:
    """Return the colour at a place in 0 … 1: for, against or none."""
    place = int(x * picture.width), int(y * picture.height)
    red, _, blue = picture.getpixel(place)  # type: ignore[misc]
    return "none" if abs(red - blue) < 8 else "for" if red > blue else "against"


LEFT_FOR = draw_heatmap([[1, 0, 0, -1]] * 4)


def test_evidence_for_and_against_have_their_colours_where_it_lies() -> None:
    drawn = blend(Image.new("RGB", (100, 50), "grey"), LEFT_FOR, "squash")
    assert drawn.size == (100, 50)
    assert [tint(drawn, x, 0.5) for x in (0.05, 0.5, 0.95)] == ["for", "none", "against"]
    strongest = np.asarray(drawn)[25, 5]
    assert np.abs(strongest - (0.75 * np.array(FOR) + 0.25 * 128)).max() < 12
    assert np.abs(np.asarray(drawn)[25, 95] - (0.75 * np.array(AGAINST) + 0.25 * 128)).max() < 12


def test_crop_shows_the_part_that_the_base_saw() -> None:
    drawn = blend(Image.new("RGB", (100, 50), "grey"), LEFT_FOR, "crop")
    assert drawn.size == (50, 50)
    assert tint(drawn, 0.05, 0.5) == "for"


def test_pad_leaves_out_evidence_in_the_bars() -> None:
    in_bars = draw_heatmap([[1] * 4, [0] * 4, [0] * 4, [-1] * 4])
    drawn = blend(Image.new("RGB", (200, 100), "grey"), in_bars, "pad")
    assert drawn.size == (200, 100)
    assert tint(drawn, 0.5, 0.5) == "none"
    sides = blend(Image.new("RGB", (200, 100), "grey"), LEFT_FOR, "pad")
    assert [tint(sides, x, 0.5) for x in (0.02, 0.98)] == ["for", "against"]


def test_small_evidence_is_scaled_to_the_strongest() -> None:
    tiny = draw_heatmap([[1e-9, 0, 0, -1e-9]])
    drawn = blend(Image.new("RGB", (100, 50), "grey"), tiny, "squash")
    assert tint(drawn, 0.02, 0.5) == "for"


def test_flat_map_has_no_colour() -> None:
    drawn = blend(Image.new("RGB", (100, 50), "grey"), draw_heatmap([[3, 3], [3, 3]]), "squash")
    assert np.ptp(np.asarray(drawn)) == 0


@pytest.mark.parametrize(("size", "shape"), [((60, 30), (448, 224)), ((3000, 20), (448, 3))])
def test_overlay_has_the_shape_of_the_photograph_and_a_legend(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    drawn = overlay(png(*size), LEFT_FOR)
    assert drawn.width == shape[0]
    assert drawn.height > shape[1]
    assert np.asarray(drawn)[shape[1] :].min() < 100  # letters
    turned = overlay(png(*size, orientation=6), LEFT_FOR)
    assert turned.height > LONGER_SIDE


def test_pixels_are_drawn_as_the_base_saw_them() -> None:
    drawn = overlay(np.full((32, 32, 3), 128, np.uint8), LEFT_FOR, resize="crop")
    assert drawn.width == LONGER_SIDE
    picture = drawn.crop((0, 0, LONGER_SIDE, LONGER_SIDE))
    assert [tint(picture, x, 0.5) for x in (0.05, 0.95)] == ["for", "against"]
