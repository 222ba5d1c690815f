"""Decode the bytes of an image file to uint8 RGB pixels of one size; see docs/POLICIES.md.

The content decides the format, not the file name. Every error of Pillow becomes `UnreadableImage`.
"""

import builtins
import contextlib
import hashlib
import importlib.util
import io
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.spec import FULL_RANGE, parse_range
from pipeline.text import file_size, printable

BACKGROUND = (255, 255, 255)  # under transparency, as in browsers and print
PADDING = 0  # black, in grey and in colour
MAX_MEMORY = 240_000_000  # bytes of decoding in all threads: 60 megapixels of colour

# Formats that Pillow detects by content and decodes without other programs: EPS runs Ghostscript,
# TGA accepts nearly any bytes.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "HEIF", "PPM", "ICO",
           "DIB", "QOI", "PCX", "SGI")  # fmt: skip

EXIF_ORIENTATION = 0x0112
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
TIFF_KINDS = {1: "uint", 2: "int", 3: "float"}  # by sample format
# Pillow decodes the high bytes of 16-bit colours. With the bytes swapped, it decodes the low ones.
COLOUR_16 = re.compile("(RGB[AX]?;16)([LBN])")
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
# libtiff decompresses to the byte order of this computer; Pillow expects that of the file.
NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
GREY_SCALES = {"L;2": 85, "L;4": 17}  # to 8 bits
ROWS_PER_BLOCK = 256  # of an image, whose numbers are scaled in float64

Form = tuple[int, str]  # image size, resize policy

# Bytes per pixel during decoding, by Pillow's mode; colours need four bytes.
BYTES_PER_PIXEL = {"1": 1, "L": 1, "RGB": 4, "YCbCr": 4, "I;16": 6, "I;16B": 6}
BYTES_PER_OTHER_PIXEL = 9  # of modes that are converted: before and after
BYTES_PER_COLOUR_16 = 20  # decoded twice

# Pillow warns below its limit; MAX_MEMORY is lower.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of unexpected metadata


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason."""


class Numbers(NamedTuple):
    """The type of the numbers in an image file, other than unsigned ones of up to 8 bits.

    ``low`` and ``high`` limit the type; floats have 0 and 1. ``inverted`` : the lowest is white.
    """

    dtype: str  # uint12, int32, float32
    low: float
    high: float
    inverted: bool = False


def decode(
    data: bytes, *, image_size: int, resize: str = "squash", range: str = FULL_RANGE
) -> npt.NDArray[np.uint8]:
    """Decode an image file to (image_size, image_size, 3) uint8 RGB; raises UnreadableImage.

    EXIF orientation is applied, transparency laid over white; of several frames the first is used.
    ``squash`` resizes both sides to the square, as Keras' loaders do by default; ``crop`` cuts the
    centre square; ``pad`` adds black bars. Bilinear, antialiased. ``contain``, for display, keeps
    the shape, (H, W, 3): the longer side is image_size.

    ``range`` is for files of more than 8 bits, of signed numbers or floats: ``full`` scales the
    range of their type to 0..255, ``LOW,HIGH`` these numbers; lower and higher ones are clipped.
    """
    return decode_forms(data, [(image_size, resize)], range=range)[image_size, resize]


def decode_forms(
    data: bytes, forms: Iterable[Form], *, range: str
) -> dict[Form, npt.NDArray[np.uint8]]:
    """Decode an image file once to several sizes; the values are what `decode` returns.

    ``forms`` : pairs (image size, resize). Raises UnreadableImage if one of them is not possible.
    """
    with _opened(data) as image:
        return _to_forms(image, forms, range)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image file; convert every error in the context to UnreadableImage."""
    if not data:
        raise UnreadableImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            yield image
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's plugins raise errors of any type
        raise UnreadableImage(_reason(data, error)) from error


def to_pixels(
    image: Image.Image, *, image_size: int, resize: str, range: str = FULL_RANGE
) -> npt.NDArray[np.uint8]:
    """Convert an open image as `decode` does; raises UnreadableImage if it is too large."""
    return _to_forms(image, [(image_size, resize)], range)[image_size, resize]


def _to_forms(
    image: Image.Image, forms: Iterable[Form], range: str
) -> dict[Form, npt.NDArray[np.uint8]]:
    numbers = numbers_of(image)
    if _raw_mode(image) in GREY_SCALES and "transparency" in image.info:
        image.info["transparency"] *= GREY_SCALES[_raw_mode(image)]  # Pillow scales only the pixels
    with _loaded(image, numbers, range) as (upright, values):
        if numbers is None or values is None:
            rgb = _to_rgb(upright)
        else:
            rgb = _to_8_bits(upright, values, numbers, range)
        return {form: np.asarray(_resize(rgb, *form).convert("RGB")) for form in forms}


def read_numbers(data: bytes) -> tuple[Numbers, npt.NDArray[Any]] | None:
    """Return type and values (H, W) or (H, W, C) of an image file; None if unsigned 8-bit.

    Of 16-bit colours of which Pillow reads one byte only, the other is 0. Raises UnreadableImage.
    """
    with _opened(data) as image:
        if (numbers := numbers_of(image)) is None:
            return None
        with _loaded(image, numbers, None) as (_, values):
            return None if values is None else (numbers, values)


def numbers_of(image: Image.Image) -> Numbers | None:
    """Return the type of the numbers in an image file that is not loaded yet.

    None for unsigned numbers of up to 8 bits, and for others that their header scales.
    """
    bits, kind, inverted = (32, "float", False) if image.mode == "F" else (16, "uint", False)
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits = tags.get(BITS_PER_SAMPLE, (1,))[0]
        kind = TIFF_KINDS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "uint")
        if kind == "uint" and bits <= 8:
            return None
        inverted = tags.get(PHOTOMETRIC) == 0
        if len(image.getbands()) > 1 and ";16" not in _raw_mode(image):
            raise UnreadableImage("planar 16-bit colours, which Pillow misreads: convert the file")
    elif not image.mode.startswith(("I", "F")) and ";16" not in _raw_mode(image):
        return None
    if kind == "float":
        return Numbers(f"float{bits}", 0, 1, inverted)
    limit = 2**bits
    low, high = (0, limit - 1) if kind == "uint" else (-limit // 2, limit // 2 - 1)
    return Numbers(f"{kind}{bits}", low, high, inverted)


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the layout of pixels in the file."""
    tiles: Any = getattr(image, "tile", None)  # none of an image in memory
    if not tiles:
        return ""
    if tiles[0].codec_name == "ppm" and tiles[0].args == ("RGB", 65535):
        return "RGB;16B"  # Pillow scales it to 8 bits
    arguments = tiles[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _set_raw_mode(image: Any, raw_mode: str) -> None:
    """Let Pillow decode the pixels as another layout."""

    def changed(tile: Any) -> Any:
        if tile.codec_name == "ppm":
            return tile._replace(codec_name="raw", args=(raw_mode, 0, 1))
        is_text = isinstance(tile.args, str)
        return tile._replace(args=raw_mode if is_text else (raw_mode, *tile.args[1:]))

    image.tile = [changed(tile) for tile in image.tile]


@contextlib.contextmanager
def _loaded(
    image: Any, numbers: Numbers | None, range: str | None
) -> Iterator[tuple[Image.Image, npt.NDArray[Any] | None]]:
    """Load an image, upright, and its numbers, within the limit of memory.

    There are no numbers of 16-bit colours if Pillow's high bytes suffice. ``range`` is None for a
    sample: numbers of which only the high bytes can be read will do.
    """
    pixels = image.width * image.height
    has_bands = len(image.getbands()) > 1
    has_colour_key = "transparency" in image.info  # Pillow compares it with the high bytes
    both_bytes = numbers is not None and has_bands and (range != FULL_RANGE or has_colour_key)
    low = _low_bytes(image) if both_bytes else None
    if both_bytes and low is None and range is not None:
        raise UnreadableImage(
            f"16-bit numbers ({image.mode}) of which Pillow reads the high byte only: save the "
            f"file as 16-bit grey, RGB or RGBA"
        )
    if _raw_mode(image) in NATIVE and image.tile[0].codec_name == "libtiff":
        _set_raw_mode(image, NATIVE[_raw_mode(image)])
    per_pixel = BYTES_PER_PIXEL.get(image.mode, BYTES_PER_OTHER_PIXEL)
    memory = pixels * (BYTES_PER_COLOUR_16 if both_bytes else per_pixel)
    if memory <= MAX_MEMORY and _is_turned(image):
        memory *= 2  # turning the image copies it
    if memory > MAX_MEMORY:
        raise UnreadableImage(_too_large(pixels))
    with _reserve_memory(memory):
        upright = _load_upright(image)
        values: npt.NDArray[Any] | None = None
        if both_bytes:
            values = np.asarray(upright).astype(np.uint16) << 8
            values |= 0 if low is None else np.asarray(_load_upright(low))
        elif numbers is not None and not has_bands:
            values = np.asarray(upright)
            if numbers.dtype in ("int8", "uint32"):  # Pillow has uint8 and int32 only
                values = values.view(numbers.dtype)
        yield upright, values


def _is_turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        return False  # `getexif` would load the image
    with contextlib.suppress(Exception):  # a broken EXIF block does not affect the pixels
        return bool(image.getexif().get(EXIF_ORIENTATION, 1) != 1)
    return False


def _load_upright(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(Exception):  # see above
        return ImageOps.exif_transpose(image)
    return image


def _low_bytes(image: Any) -> Image.Image | None:
    """Return an image that loads the low bytes of 16-bit colours, while ``image`` loads the high.

    None if Pillow cannot load them.
    """
    match = COLOUR_16.fullmatch(_raw_mode(image))
    is_planar = image.format == "TIFF" and image.tag_v2.get(PLANAR) == 2
    if match is None or is_planar or not isinstance(image.fp, io.BytesIO):
        return None
    _set_raw_mode(image, match[0])
    low = Image.open(io.BytesIO(image.fp.getbuffer()), formats=_formats())
    _set_raw_mode(low, match[1] + SWAPPED[match[2]])
    return low


_free_memory = MAX_MEMORY
_freed = threading.Condition()


@contextlib.contextmanager
def _reserve_memory(size: int) -> Iterator[None]:
    """Let threads decode large images one after another, and small ones at the same time."""
    global _free_memory
    with _freed:
        _freed.wait_for(lambda: size <= _free_memory)
        _free_memory -= size
    try:
        yield
    finally:
        with _freed:
            _free_memory += size
            _freed.notify_all()


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def pixels_digest(image_size: int, resize: str) -> str:
    """Compute the SHA-256 of the decoded probe images, which is part of the fingerprint."""
    digest = hashlib.sha256()
    for probe in sorted(resources.files("pipeline.images").joinpath("probes").iterdir(), key=str):
        digest.update(probe.name.encode())
        digest.update(decode(probe.read_bytes(), image_size=image_size, resize=resize).tobytes())
    return digest.hexdigest()


def register_heic() -> None:
    """Let Pillow read HEIC photographs if the extra ``[heic]`` is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert 8-bit modes of Pillow to RGB, or to grey, which is smaller; see docs/POLICIES.md."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, BACKGROUND)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _to_8_bits(
    image: Image.Image, values: npt.NDArray[Any], numbers: Numbers, range: str
) -> Image.Image:
    """Scale numbers to 0..255; Pillow's conversion would clip them to white.

    Raises UnreadableImage for floats outside 0..1, if the range is full.
    """
    key = image.info.get("transparency")  # the number, or colour, that is transparent in a PNG
    low, high = parse_range(range) or (numbers.low, numbers.high)
    scaled = np.empty(values.shape, np.uint8)
    for start in builtins.range(0, len(values), ROWS_PER_BLOCK):
        block = values[start : start + ROWS_PER_BLOCK].astype(np.float64)
        np.nan_to_num(block, copy=False, nan=low, posinf=high, neginf=low)
        if range == FULL_RANGE and (block.min() < low or block.max() > high):
            raise UnreadableImage(
                f"floats from {np.nanmin(values):g} to {np.nanmax(values):g}, outside 0 to 1: "
                f"extract with --range auto, or --range=LOW,HIGH"
            )
        block = np.rint((block - low) * (255 / (high - low))).clip(0, 255)
        scaled[start : start + ROWS_PER_BLOCK] = 255 - block if numbers.inverted else block
    if key is not None:
        is_clear = (values == key) if values.ndim == 2 else (values == key).all(axis=2)
        scaled[is_clear] = 255
    result = Image.fromarray(scaled)
    if result.mode == "RGBA":
        canvas = Image.new("RGB", result.size, BACKGROUND)
        canvas.paste(result, mask=image.getchannel("A"))
        return canvas
    return result


def _resize(image: Image.Image, size: int, policy: str) -> Image.Image:
    if policy == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if policy == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=PADDING)
    if policy == "contain":
        factor = size / max(image.size)
        sides = [max(1, round(side * factor)) for side in image.size]
        return image.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _too_large(pixels: int) -> str:
    count = f"{pixels / 1e9:.1f} billion" if pixels >= 1e9 else f"{pixels / 1e6:.0f} million"
    return f"claims {count} pixels: more than {file_size(MAX_MEMORY)} to decode"


def _reason(data: bytes, error: Exception) -> str:
    """Return the reason, for people, why a file cannot be decoded."""
    message = str(error)
    if isinstance(error, Image.DecompressionBombError):
        numbers = [int(word.strip("(")) for word in message.split() if word.strip("(").isdigit()]
        return _too_large(numbers[0]) if numbers else "claims too many pixels"
    if isinstance(error, UnidentifiedImageError):
        if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
            return "a HEIC photograph: pip install -e '.[heic]' to read it"
        if data.startswith(b"PK\3\4"):
            return "a zip archive: unpack it first"
        if b"<svg" in data[:1024]:
            return "a vector drawing (SVG), not an image of pixels"
        if data[:4] in (b"II*\0", b"MM\0*"):
            return "a TIFF of numbers that Pillow does not read: convert it to 8 or 16 bits"
        return "not an image, or in a format that Pillow does not read"
    if isinstance(error, EOFError) or "truncated" in message.lower():
        return f"truncated after {len(data):,} bytes"
    if isinstance(error, MemoryError):
        return "needs more memory than is free"
    return f"broken image ({printable(message) or type(error).__name__})"
