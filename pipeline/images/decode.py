"""From the bytes of an image file to uint8 RGB pixels of one size. Never ends a run.

Content decides what a file is, not its name. docs/POLICIES.md lists what is done with every odd
kind of image. Whatever Pillow raises becomes an `UnreadableImage` with a reason for people.
"""

import hashlib
import importlib.util
import io
import warnings
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

RESIZE_POLICIES = ("squash", "crop", "pad")
BACKGROUND = (255, 255, 255)  # behind transparency: what a browser or a printer shows
PADDING = (0, 0, 0)
MAX_PIXELS = 178_956_970  # Pillow's own bomb limit; a 108-megapixel phone stays below it

# Between Pillow's first limit and the one above it only warns; ours is the one that decides.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """An image that gives no pixels; its message is the reason."""


def decode(data: bytes, *, image_size: int, resize: str = "squash") -> npt.NDArray[np.uint8]:
    """Decode an image file: bytes -> (image_size, image_size, 3) uint8 RGB.

    EXIF orientation is applied, transparency laid over white, 16 bits scaled to 8, the first frame
    taken. ``squash`` resizes both sides alike, as Keras' loaders do by default; ``crop`` cuts the
    centre square; ``pad`` adds black bars. Bilinear, antialiased.

    Raises UnreadableImage.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(_too_large(image.width * image.height))
            image.load()
            rgb = _to_rgb(_upright(image))
        return np.asarray(_resized(rgb, image_size, resize))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they like on broken files
        raise UnreadableImage(_reason(data, error)) from error


@cache
def pixels_digest(image_size: int, resize: str) -> str:
    """SHA-256 over the bundled probe images as decoded and resized here.

    It is part of the fingerprint: another decoder that gives the same pixels keeps every cache
    valid; one that gives others voids them.
    """
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB; see docs/POLICIES.md."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Scale deep grey values to 0..255; Pillow's own conversion would clip them to white.

    Integers are taken as 16-bit unless they exceed it, then as 32-bit; floats as 0..1 unless
    they exceed it, then from their least to their greatest.
    """
    numbers = np.nan_to_num(values.astype(np.float64))
    low, high = 0.0, 1.0
    if np.issubdtype(values.dtype, np.integer):
        high = 65535.0 if numbers.max(initial=0) <= 65535 else 2.0**32 - 1
    elif numbers.min(initial=0) < 0 or numbers.max(initial=0) > 1:
        low, high = float(numbers.min()), float(numbers.max())
    scaled = (numbers - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _resized(image: Image.Image, size: int, policy: str) -> Image.Image:
    if policy == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if policy == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=PADDING)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _too_large(pixels: int) -> str:
    claim = f"{pixels / 1e9:.1f} billion" if pixels >= 1e9 else f"{pixels / 1e6:.0f} million"
    return f"claims {claim} pixels (at most {MAX_PIXELS / 1e6:.0f} million are decoded)"


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
    return f"broken image ({message or type(error).__name__})".replace("\n", " ")
