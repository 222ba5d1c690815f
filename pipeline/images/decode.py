"""From the bytes of an image file to uint8 RGB pixels of one size, see docs/POLICIES.md.

Content decides what a file is, not its name. Whatever Pillow raises becomes an `UnreadableImage`.
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

BACKGROUND = (255, 255, 255)  # behind transparency: what a browser or a printer shows
PADDING = 0  # black, in grey as in colour
MAX_MEMORY = 240_000_000  # bytes that decoding may take, in all threads: 60 megapixels of colour
MAX_FILE = 100_000_000  # bytes of an image file; what is larger is a film or an archive

# Formats that Pillow recognises by their content and decodes by itself: EPS would run Ghostscript,
# TGA takes nearly any bytes for an image.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "HEIF", "PPM", "ICO",
           "DIB", "QOI", "PCX", "SGI")  # fmt: skip

EXIF_ORIENTATION = 0x0112

# What an image takes per pixel while it is decoded, by Pillow's mode; colours take four bytes.
BYTES_PER_PIXEL = {"1": 1, "L": 1, "RGB": 4, "YCbCr": 4, "I;16": 6, "I;16B": 6}
BYTES_PER_OTHER_PIXEL = 8  # one that is converted: before and after

# Below its own limit Pillow only warns; ours, which is lower, decides.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of odd metadata


class UnreadableImage(Exception):
    """An image that gives no pixels; its message is the reason."""


def decode(data: bytes, *, image_size: int, resize: str = "squash") -> npt.NDArray[np.uint8]:
    """Decode an image file: (image_size, image_size, 3) uint8 RGB; raises UnreadableImage.

    EXIF orientation is applied, transparency laid over white, 16 bits scaled to 8, the first frame
    taken. ``squash`` resizes both sides alike, as Keras' loaders do by default; ``crop`` cuts the
    centre square; ``pad`` adds black bars. Bilinear, antialiased.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return to_pixels(image, image_size=image_size, resize=resize)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they like on broken files
        raise UnreadableImage(_reason(data, error)) from error


def to_pixels(image: Image.Image, *, image_size: int, resize: str) -> npt.NDArray[np.uint8]:
    """Convert an opened image as `decode` does; raises UnreadableImage if it is too large."""
    pixels = image.width * image.height
    memory = pixels * BYTES_PER_PIXEL.get(image.mode, BYTES_PER_OTHER_PIXEL)
    with contextlib.suppress(Exception):  # a broken EXIF block says nothing about the pixels
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            memory *= 2  # it is turned before it is made small
    if memory > MAX_MEMORY:
        raise UnreadableImage(_too_large(pixels))
    with _memory(memory):
        image.load()
        with contextlib.suppress(Exception):  # see above
            image = ImageOps.exif_transpose(image)
        rgb = _to_rgb(image)
        return np.asarray(_resized(rgb, image_size, resize).convert("RGB"))


_free_memory = MAX_MEMORY
_freed = threading.Condition()


@contextlib.contextmanager
def _memory(size: int) -> Iterator[None]:
    """Let threads decode large images one after another, and small ones at a time."""
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
    """SHA-256 over the bundled probe images as decoded here: part of the fingerprint."""
    digest = hashlib.sha256()
    for probe in sorted(resources.files("pipeline.images").joinpath("probes").iterdir(), key=str):
        digest.update(probe.name.encode())
        digest.update(decode(probe.read_bytes(), image_size=image_size, resize=resize).tobytes())
    return digest.hexdigest()


def register_heic() -> None:
    """Let Pillow read HEIC photographs, if the extra ``[heic]`` is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB, or to grey, which is the same and smaller; see docs/POLICIES.md."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, BACKGROUND)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deep grey values to 0..255; Pillow's own conversion would clip them to white.

    Integers are taken as 16-bit unless they exceed it, then as 32-bit; floats as 0..1 unless
    they exceed it, then from their least to their greatest.
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


def _resized(image: Image.Image, size: int, policy: str) -> Image.Image:
    if policy == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if policy == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=PADDING)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _too_large(pixels: int) -> str:
    claim = f"{pixels / 1e9:.1f} billion" if pixels >= 1e9 else f"{pixels / 1e6:.0f} million"
    return f"claims {claim} pixels: more than {file_size(MAX_MEMORY)} to decode"


def _reason(data: bytes, error: Exception) -> str:
    """What is wrong with the file, in words for people."""
    message = str(error)
    if isinstance(error, Image.DecompressionBombError):
        numbers = [int(word.strip("(")) for word in message.split() if word.strip("(").isdigit()]
        return _too_large(numbers[0]) if numbers else "claims too many pixels"
    if isinstance(error, UnidentifiedImageError):
        if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
            return "a HEIC photograph: pip install -e '.[heic]' to read it"
        if b"<svg" in data[:1024]:
            return "a vector drawing (SVG), not an image of pixels"
        return "not an image, or of a kind that Pillow does not read"
    if isinstance(error, EOFError) or "truncated" in message.lower():
        return f"truncated after {len(data):,} bytes"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return f"broken image ({printable(message) or type(error).__name__})"
