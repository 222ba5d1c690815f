"""Decoding: any image becomes RGB of one size, or gives a reason."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_images import draw

from pipeline.images.decode import UnreadableImage, decode, pixels_digest

PICTURE = draw(3, stripes=True, size=(120, 80)).resize((120, 80)).convert("RGB")


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def outcome_of(data: bytes) -> np.ndarray | str:
    """The pixels, or the reason why there are none."""
    try:
        return decode(data, image_size=16)
    except UnreadableImage as error:
        return str(error)


def test_squash_equals_pillows_bilinear_resize() -> None:
    expected = np.asarray(PICTURE.resize((50, 50), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode(encoded(PICTURE), image_size=50), expected)


def test_crop_scales_the_short_side_and_keeps_the_centre() -> None:
    middle = PICTURE.resize((60, 40), Image.Resampling.BILINEAR).crop((10, 0, 50, 40))
    pixels = decode(encoded(PICTURE), image_size=40, resize="crop")
    np.testing.assert_array_equal(pixels, np.asarray(middle))


def test_pad_keeps_the_proportions_between_black_bars() -> None:
    pixels = decode(encoded(PICTURE), image_size=60, resize="pad")
    assert not pixels[:10].any()
    assert not pixels[50:].any()
    inner = np.asarray(PICTURE.resize((60, 40), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels[10:50], inner)


def test_all_exif_orientations_agree() -> None:
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    upright = decode(encoded(PICTURE), image_size=48)
    for orientation, steps in turns.items():
        stored = PICTURE
        for step in steps:
            stored = stored.transpose(step)
        exif = Image.Exif()
        exif[0x0112] = orientation
        np.testing.assert_array_equal(decode(encoded(stored, exif=exif), image_size=48), upright)


def test_sixteen_bit_grey_equals_its_eight_bit_version() -> None:
    grey = np.asarray(PICTURE.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    difference = decode(encoded(deep), image_size=48).astype(int) - decode(
        encoded(PICTURE.convert("L")), image_size=48
    )
    assert abs(difference).max() <= 1


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (10, 10), (200, 0, 0, 0))
    assert (decode(encoded(clear), image_size=8) == 255).all()
    half = Image.new("LA", (10, 10), (0, 128))
    assert abs(decode(encoded(half), image_size=8).astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    ("mode", "format"), [("CMYK", "JPEG"), ("P", "GIF"), ("1", "PNG"), ("L", "JPEG")]
)
def test_other_modes_equal_pillows_own_conversion(mode: str, format: str) -> None:
    data = encoded(PICTURE.convert(mode), format)
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(data, image_size=48), np.asarray(expected))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "MPO", "TIFF"])
def test_first_frame_of_several_is_used(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert abs(decode(data, image_size=4)[0, 0].astype(int) - (255, 0, 0)).max() <= 3


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.jpg")
    pixels = decode((tmp_path / "picture.jpg").read_bytes(), image_size=30)
    np.testing.assert_array_equal(pixels, decode(encoded(PICTURE), image_size=30))


def test_image_too_large_to_decode_is_refused_by_its_header() -> None:
    header = b"P5 20000 13000 255\n"  # PNM: 260 MB of grey pixels, none of them present
    with pytest.raises(UnreadableImage, match="claims 260 million pixels"):
        decode(header + b"\0", image_size=32)


def test_formats_that_run_other_programs_are_not_opened() -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "EPS")
    with pytest.raises(UnreadableImage, match="not an image"):
        decode(buffer.getvalue(), image_size=32)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_extreme_shapes_are_decoded(size: tuple[int, int], resize: str) -> None:
    data = encoded(Image.new("RGB", size, "white"))
    assert decode(data, image_size=32, resize=resize).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just text", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "vector drawing"),
        (b"\0\0\0\x18ftypheic" + bytes(64), r"\[heic\]"),
        (encoded(PICTURE, "JPEG")[:900], "truncated after 900 bytes"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0," + bytes(4) + b"\xff\xff\xff\xff\0\x02", "billion pixels"),
    ],
)
def test_data_that_is_not_an_image_gives_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode(data, image_size=32)


def test_any_cut_or_flipped_byte_gives_pixels_or_a_reason() -> None:
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        content = encoded(PICTURE, format)
        for _ in range(40):
            broken = bytearray(content[: rng.integers(1, len(content))])
            broken[rng.integers(len(broken))] ^= int(rng.integers(1, 256))
            outcome = outcome_of(bytes(broken))
            assert isinstance(outcome, str) or outcome.shape == (16, 16, 3)
            assert len(outcome)


def test_pixels_digest_depends_on_size_and_policy() -> None:
    digests = {pixels_digest(size, policy) for size in (32, 48) for policy in ("squash", "crop")}
    assert len(digests) == 4


@pytest.mark.real_data
def test_odd_images_give_pixels_or_a_reason(assets: Path) -> None:
    folder = assets / "data" / "odd_images"
    outcomes = {path.name: outcome_of(path.read_bytes()) for path in folder.iterdir()}
    assert outcomes["truncated.jpg"] == "truncated after 6,698 bytes"
    assert "4.4 billion pixels" in outcomes["bomb_4gpx.gif"]
    assert outcomes["zero_bytes.jpg"] == "empty file"
    assert isinstance(outcomes["png_named_jpg.jpg"], np.ndarray)


@pytest.mark.parametrize(
    ("size", "shape"),
    [((40, 20), (4, 8)), ((20, 40), (8, 4)), ((2, 2), (8, 8)), ((900, 1), (1, 8))],
)
def test_contained_images_keep_their_shape(size: tuple[int, int], shape: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    assert decode(file.getvalue(), image_size=8, resize="contain").shape == (*shape, 3)
