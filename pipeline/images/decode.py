"""Decode the bytes of an image file to uint8 RGB pixels of one size; see docs/POLICIES.md.

The content decides the format, not the file name. Every error of Pillow becomes `UnreadableImage`.
"""

import contextlib
import hashlib
import importlib.util
import io
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.text import file_size, printable

BACKGROUND = (255, 255, 255)  # under transparency, as in browsers and print
PADDING = 0  # black, in grey and in colour
MAX_MEMORY = 240_000_000  # bytes of decoding in all threads: 60 megapixels of colour
MAX_FILE = 100_000_000  # bytes of an image file; larger files are films or archives

# Formats that Pillow detects by content and decodes without other programs: EPS runs Ghostscript,
# TGA accepts nearly any bytes.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "HEIF", "PPM", "ICO",
           "DIB", "QOI", "PCX", "SGI")  # fmt: skip

EXIF_ORIENTATION = 0x0112

# Bytes per pixel during decoding, by Pillow's mode; colours need four bytes.
BYTES_PER_PIXEL = {"1": 1, "L": 1, "RGB": 4, "YCbCr": 4, "I;16": 6, "I;16B": 6}
BYTES_PER_OTHER_PIXEL = 8  # of modes that are converted: before and after

# Pillow warns below its limit; MAX_MEMORY is lower.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of unexpected metadata


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason."""


def decode(data: bytes, *, image_size: int, resize: str = "squash") -> npt.NDArray[np.uint8]:
    """Decode an image file to (image_size, image_size, 3) uint8 RGB; raises UnreadableImage.

    EXIF orientation is applied, transparency laid over white, 16 bits scaled to 8; of several
    frames the first is used. ``squash`` resizes both sides to the square, as Keras' loaders do by
    default; ``crop`` cuts the centre square; ``pad`` adds black bars. Bilinear, antialiased.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return to_pixels(image, image_size=image_size, resize=resize)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's plugins raise errors of any type
        raise UnreadableImage(_reason(data, error)) from error


def to_pixels(image: Image.Image, *, image_size: int, resize: str) -> npt.NDArray[np.uint8]:
    """Convert an open image as `decode` does; raises UnreadableImage if it is too large."""
    pixels = image.width * image.height
    memory = pixels * BYTES_PER_PIXEL.get(image.mode, BYTES_PER_OTHER_PIXEL)
    with contextlib.suppress(Exception):  # a broken EXIF block does not affect the pixels
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            memory *= 2  # turning the image copies it
    if memory > MAX_MEMORY:
        raise UnreadableImage(_too_large(pixels))
    with _reserve_memory(memory):
        image.load()
        with contextlib.suppress(Exception):  # see above
            image = ImageOps.exif_transpose(image)
        rgb = _to_rgb(image)
        return np.asarray(_resize(rgb, image_size, resize).convert("RGB"))


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
    """Convert any Pillow mode to RGB, or to grey, which is smaller; see docs/POLICIES.md."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, BACKGROUND)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deep grey values to 0..255; Pillow's conversion would clip them to white.

    Integers have 16 bits, or 32 if a value exceeds 16; floats are in 0..1, or else range from
    their minimum to their maximum.
    """
    values = np.nan_to_num(np.asarray(image, np.float32))
    low, high = 0.0, 1.0
    if image.mode != "F":
        high = 65535.0 if values.max(initial=0) <= 65535 else 2.0**32 - 1
    elif values.min(initial=0) < 0 or values.max(initial=0) > 1:
        low, high = float(values.min()), float(values.max())
    values -= low
    values *= 255 / max(high - low, 1e-12)
    return Image.fromarray(np.rint(values, out=values).clip(0, 255).astype(np.uint8))


def _resize(image: Image.Image, size: int, policy: str) -> Image.Image:
    if policy == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if policy == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=PADDING)
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
        if b"<svg" in data[:1024]:
            return "a vector drawing (SVG), not an image of pixels"
        return "not an image, or in a format that Pillow does not read"
    if isinstance(error, EOFError) or "truncated" in message.lower():
        return f"truncated after {len(data):,} bytes"
    if isinstance(error, MemoryError):
        return "needs more memory than is free"
    return f"broken image ({printable(message) or type(error).__name__})"
