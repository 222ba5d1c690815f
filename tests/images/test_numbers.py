"""Images of more or other numbers than 0 to 255: the table of docs/POLICIES.md, and ``--range``."""

import io
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from pipeline.errors import BadDataError
from pipeline.images.decode import UnreadableImage, decode
from pipeline.images.source import FolderSource
from pipeline.images.value_range import choose_range

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "pipeline/models/templates/predict.py"
SIZE = 32
RAMP = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)  # from black to white
TRANSPARENT = RAMP < 0.4  # of images with alpha
DTYPES = {"8": "u1", "16": "u2", "32": "u4", "64": "u8", "signed 8": "i1", "signed 16": "i2",
          "signed 32": "i4", "float 16": "f2", "float 32": "f4", "float 64": "f8"}  # fmt: skip


def numbers(dtype: str, ramp: np.ndarray = RAMP) -> np.ndarray:
    """A ramp over the full range of a type."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return ramp.astype(kind)
    limits = np.iinfo(kind)
    span = float(limits.max) - limits.min
    scaled = [round(value * span) + limits.min for value in ramp.ravel().tolist()]
    return np.array(np.clip(scaled, limits.min, limits.max).reshape(ramp.shape), kind)


def png_file(bits: int, *, colour: bool = False, alpha: bool = False, **options: Any) -> bytes:
    top = 2**bits - 1
    grey = np.rint(RAMP * top).astype(int)
    bands = [grey] * (3 if colour else 1)
    if alpha:
        bands.append(np.where(TRANSPARENT, 0, top))
    file = io.BytesIO()
    if "palette" not in options:
        options = {"greyscale": not colour, "alpha": alpha, **options}
    writer = png.Writer(SIZE, SIZE, bitdepth=bits, **options)
    writer.write(file, np.stack(bands, axis=-1).reshape(SIZE, -1).tolist())
    return file.getvalue()


def key_of(bits: int) -> int:
    """A number that some pixels of the ramp have, neither black nor white unless it has 1 bit."""
    return 1 if bits == 1 else int(np.rint(RAMP[10, 10] * (2**bits - 1)))


def palette(bits: int, *, transparent: int | None = None) -> list[tuple[int, ...]]:
    greys = [round(255 * index / (2**bits - 1)) for index in range(2**bits)]
    if transparent is None:
        return [(grey, grey, grey) for grey in greys]
    return [(grey, grey, grey, 255 * (index != transparent)) for index, grey in enumerate(greys)]


def tiff_file(dtype: str, order: str, *, bands: int = 1, **options: Any) -> bytes:
    values = numbers(dtype)
    if options.get("photometric") == "miniswhite":
        values = numbers(dtype, 1 - RAMP)
    if bands > 1:
        values = np.stack([values] * bands, axis=-1)
    if bands in (2, 4):
        values[..., -1] = np.where(TRANSPARENT, 0, numbers(dtype).max())
        options["extrasamples"] = ["unassalpha"]
    if options.get("planarconfig") == "separate":
        values = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    options.setdefault("photometric", "rgb" if bands > 2 else "minisblack")
    file = io.BytesIO()
    tifffile.imwrite(file, values, byteorder="<" if "little" in order else ">", **options)
    return file.getvalue()


def tiff_of_one_bit(order: str, *, photometric: str = "minisblack") -> bytes:
    is_white = RAMP >= 0.5
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        is_white if photometric == "minisblack" else ~is_white,
        photometric=photometric,
        byteorder="<" if "little" in order else ">",
    )
    return file.getvalue()


def make_file(name: str, column: str) -> bytes:
    """The file of a cell of the table."""
    kind, _, rest = name.partition(", ")
    dtype = DTYPES.get(column, "")
    if kind.startswith("PNG"):
        bits = int(column.split()[0])
        key = key_of(bits)
        if "palette" in name:
            return png_file(bits, palette=palette(bits, transparent=key if rest else None))
        colour = "RGB" in name
        options = {"transparent": (key,) * 3 if colour else key} if "key" in name else {}
        return png_file(bits, colour=colour, alpha="alpha" in name or "RGBA" in name, **options)
    if kind.startswith("TIFF"):
        photometric = {"photometric": "miniswhite"} if "white is 0" in name else {}
        if column == "1 bit":
            return tiff_of_one_bit(name, **photometric)
        planar = {"planarconfig": "separate"} if "planes" in name else {}
        if "deflated" in name:
            planar = {"compression": "zlib"}
        bands = 4 if "RGBA" in name else 3 if "RGB" in name else 2 if "alpha" in name else 1
        if bands == 2:
            planar = {"planarconfig": "contig"}
        return tiff_file(dtype, name, bands=bands, **planar, **photometric)
    if name == "JPEG 2000 grey":
        file = io.BytesIO()
        Image.fromarray(numbers(dtype)).save(file, "JPEG2000", irreversible=False)
        return file.getvalue()
    if column == "float 32":
        return b"Pf\n32 32\n-1.0\n" + numbers("<f4")[::-1].tobytes()
    bands = 3 if name == "PPM" else 1
    header = b"P%d 32 32 %d\n" % (6 if name == "PPM" else 5, 2 ** int(column) - 1)
    return header + np.repeat(numbers(f">{dtype}")[..., None], bands, axis=2).tobytes()


def expected_levels(name: str, column: str) -> np.ndarray:
    """What the table promises: 256 levels of the full range, transparent pixels white."""
    bits = int(column.split()[0]) if column[0].isdigit() else 8
    top = 2 ** min(bits, 16) - 1
    stored = np.rint(RAMP * top) if not (bits == 1 and "TIFF" in name) else (RAMP >= 0.5) * 1.0
    levels = np.rint(stored * (255 / top)) if bits < 8 else np.rint(RAMP * 255)
    if "alpha" in name or "RGBA" in name:
        levels[TRANSPARENT] = 255
    if "key" in name or "transparent" in name:
        levels[np.rint(RAMP * top) == key_of(bits)] = 255
    return levels


def table_of_the_document() -> list[tuple[str, str, str]]:
    """The cells that are not empty: file, numbers, result."""
    text = (ROOT / "docs/POLICIES.md").read_text("utf-8")
    table = text[text.index("| file | 1 bit") :].partition("\n\n")[0]
    (_, *columns), _, *rows = (
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        for line in table.splitlines()
    )
    return [
        (name, column, result)
        for name, *results in rows
        for column, result in zip(columns, results, strict=True)
        if result
    ]


CELLS = table_of_the_document()


@pytest.fixture(scope="module")
def exported_decode() -> Callable[..., Any]:
    return runpy.run_path(str(TEMPLATE))["decode"]  # type: ignore[no-any-return]


def test_table_has_every_kind_of_number() -> None:
    assert len(CELLS) > 100
    assert {result for _, _, result in CELLS} == {"exact", "±1", "skipped"}


@pytest.mark.parametrize(("name", "column", "result"), CELLS)
def test_each_file_of_the_table_is_decoded_as_it_says(
    name: str, column: str, result: str, exported_decode: Callable[..., Any], tmp_path: Path
) -> None:
    data = make_file(name, column)
    file = tmp_path / "image"
    file.write_bytes(data)
    if result == "skipped":
        with pytest.raises(UnreadableImage):
            decode(data, image_size=SIZE)
        with pytest.raises(Exception, match=r"identify|planar"):
            exported_decode(str(file), SIZE, "squash")
        return
    pixels = decode(data, image_size=SIZE)
    error = np.abs(pixels.astype(int) - expected_levels(name, column)[..., None])
    assert error.max() <= (1 if result == "±1" else 0)
    np.testing.assert_array_equal(exported_decode(str(file), SIZE, "squash"), pixels)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "bands"),
    [
        ("u2", 0, 4095, 1),
        ("u2", 0, 4095, 3),
        ("u2", 0, 4095, 4),
        ("u2", 30000, 31000, 1),
        ("u4", 4_000_000_000, 4_000_001_000, 1),
        ("i1", -20, 100, 1),
        ("i2", -1024, 3071, 1),
        ("i4", -70000, 5, 1),
        ("f4", -0.001, 0.002, 1),
        ("f4", 1e20, 3e20, 1),
    ],
)
def test_range_maps_numbers_of_every_type(
    dtype: str,
    low: float,
    high: float,
    bands: int,
    exported_decode: Callable[..., Any],
    tmp_path: Path,
) -> None:
    values = (low + (1.2 * RAMP - 0.1) * (high - low)).astype(dtype)  # a tenth is clipped
    if bands > 1:
        values = np.stack([values] * bands, axis=-1)
        values[..., 3:] = 65535
    file = tmp_path / "image.tif"
    extra = ["unassalpha"] if bands == 4 else None
    photometric = "rgb" if bands > 1 else "minisblack"
    tifffile.imwrite(file, values, photometric=photometric, extrasamples=extra)
    pixels = decode(file.read_bytes(), image_size=SIZE, range=f"{low},{high}")
    grey = values if bands == 1 else values[..., 0]
    shares = (grey.astype(np.float64) - low) / (high - low)
    expected = np.rint(shares * 255).clip(0, 255)
    assert np.abs(pixels - expected[..., None]).max() <= (1 if dtype == "f4" else 0)
    exported = exported_decode(str(file), SIZE, "squash", f"{low},{high}")
    np.testing.assert_array_equal(exported, pixels)


def test_range_does_not_touch_images_of_8_bits() -> None:
    data = png_file(8, colour=True)
    np.testing.assert_array_equal(
        decode(data, image_size=SIZE, range="0,4095"), decode(data, image_size=SIZE)
    )


def test_turned_16_bit_image_equals_the_upright_one(exported_decode: Any, tmp_path: Path) -> None:
    upright = Image.fromarray(numbers("u2"))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    pixels = decode(file.read_bytes(), image_size=SIZE)
    np.testing.assert_array_equal(pixels[..., 0], np.rint(RAMP * 255))
    np.testing.assert_array_equal(exported_decode(str(file), SIZE, "squash"), pixels)


def test_floats_outside_the_full_range_give_a_reason() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.float32(RAMP * 255), photometric="minisblack")
    with pytest.raises(UnreadableImage, match=r"from 0 to 255, outside 0 to 1: .* --range auto"):
        decode(file.getvalue(), image_size=SIZE)


def test_not_a_number_is_black() -> None:
    values = np.float32(RAMP)
    values[0] = np.nan
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack")
    assert not decode(file.getvalue(), image_size=SIZE)[0].any()


def write_set(folder: Path, *arrays: np.ndarray) -> list[bytes]:
    """Write TIFF files of grey or RGB arrays; return their names."""
    folder.mkdir(exist_ok=True)
    for number, values in enumerate(arrays):
        photometric = "rgb" if values.ndim == 3 else "minisblack"
        tifffile.imwrite(folder / f"{number:03}.tif", values, photometric=photometric)
    return [f"{number:03}.tif".encode() for number in range(len(arrays))]


def noise(low: float, high: float, dtype: str, count: int = 8) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    values = random.uniform(low, high, (count, SIZE, SIZE))
    values[:, 0, 0] = high  # one hot pixel in a thousand
    return [each.astype(dtype) for each in values]


@pytest.mark.parametrize(
    ("arrays", "chosen"),
    [
        (noise(0, 4095, "u2"), "0,4095"),
        (noise(3, 3900, "u2"), "0,4095"),
        ([np.stack([each] * 3, axis=-1) for each in noise(0, 1000, "u2")], "0,1023"),
        (noise(0, 65535, "u2"), "0,65535"),
        (noise(30100, 31000, "u2"), "30080,31040"),
        (noise(-1000, 3000, "i2"), "-1024,4095"),
        (noise(0, 255, "f4"), "0,256"),
        (noise(-3e-9, 1e-9, "f4"), f"{-(2.0**-28)!r},{2.0**-29!r}"),
        (noise(0, 200, "u1"), "full"),
    ],
)
def test_auto_range_covers_what_the_set_uses(
    arrays: list[np.ndarray], chosen: str, tmp_path: Path
) -> None:
    assert choose_range(FolderSource(tmp_path), write_set(tmp_path, *arrays), "auto") == chosen
    few = write_set(tmp_path, *arrays[:3])
    assert choose_range(FolderSource(tmp_path), few, "auto") == chosen  # stays as the set grows


def test_auto_range_of_several_types_is_bad_data(tmp_path: Path) -> None:
    paths = write_set(tmp_path, *noise(0, 4095, "u2", 2), *noise(0, 1, "f4", 2))
    with pytest.raises(BadDataError, match=r"float32 and uint16 .* --range=LOW,HIGH"):
        choose_range(FolderSource(tmp_path), paths, "auto")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (noise(0, 4095, "u2"), ["uint16 images", "use 16 of 256 grey levels", "--range=0,4095"]),
        (noise(-1024, 3071, "i2"), ["int16 images", "use 16 of 256", "--range=-1024,4095"]),
        (noise(0, 0.01, "f4"), ["float32 images", "use 3 of 256", "auto"]),
        ([np.stack([each] * 3, axis=-1) for each in noise(0, 4095, "u2")], ["16 of 256"]),
        (noise(0, 65000, "u2"), []),
        (noise(0, 1, "f4"), []),
        (noise(0, 40, "u1"), []),
    ],
)
def test_scan_warns_of_numbers_in_a_small_part_of_their_range(
    arrays: list[np.ndarray], words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert choose_range(FolderSource(tmp_path), write_set(tmp_path, *arrays), "full") == "full"
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(words)
    assert all(word in warnings[0] for word in words)


def test_auto_range_covers_all_parts_of_the_set_all_channels_and_rare_spots(tmp_path: Path) -> None:
    dark_first = [*noise(0, 250, "u2", 40), *noise(2000, 4000, "u2", 40)]
    assert (
        choose_range(FolderSource(tmp_path), write_set(tmp_path, *dark_first), "auto") == "0,4095"
    )
    mixed = [*noise(0, 250, "u2", 40), *noise(0, 1, "f4", 40)]
    with pytest.raises(BadDataError, match="share no range"):
        choose_range(FolderSource(tmp_path), write_set(tmp_path, *mixed), "auto")
    blue = [np.stack([each // 20, each // 20, each], axis=-1) for each in noise(0, 4095, "u2")]
    assert choose_range(FolderSource(tmp_path), write_set(tmp_path, *blue), "auto") == "0,4095"
    spots = [np.zeros((SIZE, SIZE), np.uint16) for _ in range(4)]
    for image in spots:
        image[3, 4] = 3000
    assert choose_range(FolderSource(tmp_path), write_set(tmp_path, *spots), "auto") == "0,4095"


def test_alpha_is_no_number_and_high_bytes_tell_of_12_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rgba = np.full((SIZE, SIZE, 4), 65535, np.uint16)
    rgba[..., :3] = np.rint(RAMP * 4095)[..., None]
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert choose_range(FolderSource(tmp_path), [b"a.tif"], "auto") == "0,4095"
    grey_alpha = np.stack([np.rint(RAMP * 4095), np.full_like(RAMP, 65535)], axis=-1)
    with (tmp_path / "b.png").open("wb") as file:
        writer = png.Writer(SIZE, SIZE, greyscale=True, alpha=True, bitdepth=16)
        writer.write(file, grey_alpha.astype(int).reshape(SIZE, -1).tolist())
    assert choose_range(FolderSource(tmp_path), [b"b.png"], "full") == "full"
    assert "uint16 images" in caplog.text
    with pytest.raises(UnreadableImage, match="save the file as 16-bit grey"):
        decode((tmp_path / "b.png").read_bytes(), image_size=SIZE, range="0,4095")


@pytest.mark.parametrize(
    ("arrays", "range", "words"),
    [
        (noise(20000, 60000, "u2"), "0,4095", "100 % of their pixels become black or white"),
        (noise(0, 200, "u2"), "0,4095", "use 13 of 256 grey levels"),
        (noise(0, 200, "u1"), "0,4095", "the range 0,4095 has no effect"),
        (noise(0, 4095, "u2"), "0,4095", ""),
    ],
)
def test_range_that_does_not_fit_the_images_is_warned_of(
    arrays: list[np.ndarray],
    range: str,
    words: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert choose_range(FolderSource(tmp_path), write_set(tmp_path, *arrays), range) == range
    assert words in caplog.text
    assert bool(caplog.records) == bool(words)


def test_range_applies_to_ppm_of_16_bits(exported_decode: Any, tmp_path: Path) -> None:
    values = np.repeat(np.rint(RAMP * 4095).astype(">u2")[..., None], 3, axis=2)
    data = b"P6 32 32 65535\n" + values.astype(">u2").tobytes()
    pixels = decode(data, image_size=SIZE, range="0,4095")
    assert np.abs(pixels[..., 0] - RAMP * 255).max() <= 0.6
    (tmp_path / "a.ppm").write_bytes(data)
    exported = exported_decode(str(tmp_path / "a.ppm"), SIZE, "squash", "0,4095")
    np.testing.assert_array_equal(exported, pixels)
