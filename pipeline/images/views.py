"""Random transforms of an image, its views: the same for ever, everywhere, in any order.

A seed, the digest of the image file and the number of the view determine it, no generator, library,
thread or machine: cached views resume, grow from four to eight and repeat to the last bit. Random
numbers are bits of SHAKE-256; geometry is sums and products of IEEE doubles, in the order here.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from math import pi
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.spec import FINGERPRINT_DIGITS, check_fields, check_seed

VERSION = 1  # of the algorithm: to be raised with every change that changes a pixel

# The flag and the greatest value of each range; beyond, little of a picture may be left.
RANGES: dict[str, tuple[str, float]] = {
    "rotation": ("--rotation", 180),
    "width_shift": ("--shift", 0.9),
    "height_shift": ("--shift", 0.9),
    "shear": ("--shear", 45),
    "zoom": ("--zoom", 0.9),
    "jitter": ("--jitter", 0.9),
}

# Places of a view that are computed at once. Their doubles (120 kB) stay below what the C library
# maps anew for every array: two thirds of the time otherwise went into that.
PLACES_AT_ONCE = 5000

Pixels = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The ranges that random transforms are drawn from, each uniformly; 0 leaves a thing alone.

    As in Keras' ImageDataGenerator (`keras.src.legacy`) with ``fill_mode="nearest"``.

    Attributes
    ----------
    rotation, shear : greatest angle in degrees, either way, up to 180 and 45.
    width_shift, height_shift : greatest shift as a share of the width or height, up to 0.9.
    zoom : width and height are scaled by factors of their own, from 1 - zoom to 1 + zoom.
    flip : whether every other view, by chance, is mirrored left to right.
    jitter : the same as zoom for brightness, contrast and saturation, up to 0.9.

    Raises UsageError, naming the flag, where a range is out of bounds.
    """

    rotation: float = 0.0
    width_shift: float = 0.0
    height_shift: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    flip: bool = False
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, (flag, most) in RANGES.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise UsageError(f"{flag} is a number from 0 to {most}; received {value}")
            # 40 and 40.0 are one augmentation, with one digest; so are 0.0 and -0.0.
            object.__setattr__(self, name, abs(float(value)))

    def __str__(self) -> str:
        """For people: ``rotation 40°, shift 0.2, shear 0.2°, zoom 0.2, flip, seed 0``."""
        down = f" across {self.height_shift:g} down" * (self.height_shift != self.width_shift)
        parts = {
            f"rotation {self.rotation:g}°": self.rotation,
            f"shift {self.width_shift:g}{down}": self.width_shift or self.height_shift,
            f"shear {self.shear:g}°": self.shear,
            f"zoom {self.zoom:g}": self.zoom,
            "flip": self.flip,
            f"jitter {self.jitter:g}": self.jitter,
            f"seed {self.seed}": True,
        }
        return ", ".join(part for part, is_on in parts.items() if is_on)

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 over the canonical JSON of `to_dict`."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:FINGERPRINT_DIGITS]

    def to_dict(self) -> dict[str, float | int | bool]:
        """Every field and the version of the algorithm, for JSON."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Rebuild an augmentation from parsed JSON; raises ValueError if anything in it is odd."""
        kinds = {name: type(default) for name, default in cls().to_dict().items()}
        check_fields(values, kinds, "an", "augmentation")
        if (made := values["version"]) != VERSION:
            raise ValueError(f"views of version {made}, where this program draws {VERSION}")
        try:
            return cls(**{name: values[name] for name in kinds if name != "version"})
        except UsageError as error:
            raise ValueError(str(error)) from error


# light: 4 pixels of 32 and a flip, as ResNet was trained (He et al. 2016, 4.2).
# book: Deep Learning with Python, 5.2 and 5.3. Its ``shear_range=0.2`` is taken as Keras takes it
#   since 2018, in degrees; to the Keras of 2017 it was radians (keras#8868): --shear 11.5.
# strong: the book's, its zoom doubled, with AutoAugment's greatest shear, a slope of 0.3 (Cubuk et
#   al. 2019), and the colour jitter that Facebook's ResNets in Torch were trained with.
POLICIES = {
    "light": Augmentation(width_shift=0.125, height_shift=0.125, flip=True),
    "book": Augmentation(
        rotation=40, width_shift=0.2, height_shift=0.2, shear=0.2, zoom=0.2, flip=True
    ),
    "strong": Augmentation(
        rotation=40, width_shift=0.2, height_shift=0.2, shear=17, zoom=0.4, flip=True, jitter=0.4
    ),
}


def choose_augmentation(
    policy: str = "book", *, shift: float | None = None, seed: int = 0, **ranges: float | None
) -> Augmentation:
    """A policy of `POLICIES`, what is not None replaced; raises UsageError as `Augmentation`."""
    if policy not in POLICIES:
        raise UsageError(f"--augment is one of {', '.join(POLICIES)}; received {policy!r}")
    ranges |= {"width_shift": shift, "height_shift": shift}
    changes: dict[str, Any] = {name: value for name, value in ranges.items() if value is not None}
    return replace(POLICIES[policy], seed=seed, **changes)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What is done to one image, once it is drawn.

    Angles are in degrees, shifts (to the right, and down) shares of width and height; with a zoom
    below 1 the image grows; it is mirrored at last.
    """

    rotation: float = 0.0
    width_shift: float = 0.0
    height_shift: float = 0.0
    shear: float = 0.0
    width_zoom: float = 1.0
    height_zoom: float = 1.0
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


def draw_view(
    pixels: Pixels, *, augmentation: Augmentation, image_digest: bytes, view: int
) -> Pixels:
    """Draw a view of an image: (S, S, 3) uint8 -> (S, S, 3) uint8; view 0 is the image itself."""
    if view == 0:
        return pixels
    return transform_pixels(pixels, draw_transform(augmentation, image_digest, view))


def draw_transform(augmentation: Augmentation, image_digest: bytes, view: int) -> Transform:
    """The transform of a view of the image with this SHA-256.

    Each number has its own place among the random bits: changing one range leaves the others' be.
    """
    source = f"view {VERSION} {augmentation.seed} {image_digest.hex()} {view}"
    bits = hashlib.shake_256(source.encode()).digest(10 * 8)
    # numbers from [0, 1): the first 53 of every 64 bits
    numbers: list[float] = ((np.frombuffer(bits, ">u8") >> 11) / 2**53).tolist()
    uniforms = iter(numbers)

    def between(middle: float, spread: float) -> float:
        return middle + spread * (2 * next(uniforms) - 1)

    return Transform(
        rotation=between(0, augmentation.rotation),
        width_shift=between(0, augmentation.width_shift),
        height_shift=between(0, augmentation.height_shift),
        shear=between(0, augmentation.shear),
        width_zoom=between(1, augmentation.zoom),
        height_zoom=between(1, augmentation.zoom),
        flip=next(uniforms) < 0.5 and augmentation.flip,
        brightness=between(1, augmentation.jitter),
        contrast=between(1, augmentation.jitter),
        saturation=between(1, augmentation.jitter),
    )


def transform_pixels(pixels: Pixels, transform: Transform) -> Pixels:
    """Transform an image: (S, S, 3) uint8 -> (S, S, 3) uint8.

    The geometry is that of Keras' `apply_affine_transform`: about the centre, each place of the
    result looks at the image through zoom, shear, shift, rotation, in this order, bilinearly, and
    beyond an edge sees the edge. Mirroring and colours follow. Keras' ImageDataGenerator hands its
    shift in height over as the one in width, and the other way round; here each is what it says.
    """
    size = len(pixels)
    # (S,) pixels from the centre, to the right or down
    steps: Doubles = np.arange(size, dtype=np.float64) - (size - 1) / 2
    across = -steps if transform.flip else steps
    from_row, from_column = _geometry(transform, size)
    planes = np.stack([pixels[..., channel] for channel in range(3)])  # (3, S, S)
    height = max(1, PLACES_AT_ONCE // size)
    strips = []
    for top in range(0, size, height):
        down = steps[top : top + height, None]
        rows, columns = (  # (h, S) each: where the image is looked at
            (of_across * across + at_centre) + of_down * down
            for of_across, of_down, at_centre in (from_row, from_column)
        )
        strips.append(_interpolated(planes, rows, columns))
    if (transform.brightness, transform.contrast, transform.saturation) != (1, 1, 1):
        # Whole numbers: whatever order they are added in, their sums are the same.
        sums = sum(strip.sum(axis=(1, 2), dtype=np.int64) for strip in strips)  # (3,)
        mean = float(_grey(sums / size**2))
        strips = [_recoloured(strip, transform, mean) for strip in strips]
    return np.stack(list(np.concatenate(strips, axis=1)), axis=-1)


def _sine(degrees: float) -> float:
    """The sine as a sum that has the same last bit everywhere, which `math.sin` has not."""
    angle = degrees * (pi / 180)
    term = total = angle
    for n in range(3, 45, 2):  # enough for 360 degrees
        term *= -angle * angle / (n * (n - 1))
        total += term
    return total


def _geometry(transform: Transform, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Factors of (distance right of the centre, distance below it, 1) for row and for column."""
    slant = transform.rotation + transform.shear
    sine, cosine = _sine(transform.rotation), _sine(transform.rotation + 90)
    right, below = transform.width_shift * size, transform.height_shift * size
    centre = (size - 1) / 2
    row = (
        transform.width_zoom * sine,
        transform.height_zoom * _sine(slant + 90),
        right * sine + below * cosine + centre,
    )
    column = (
        transform.width_zoom * cosine,
        -transform.height_zoom * _sine(slant),
        right * cosine - below * sine + centre,
    )
    return row, column


def _interpolated(planes: Pixels, rows: Doubles, columns: Doubles) -> Pixels:
    """Look at an image (3, S, S) between its pixels: rows, columns (h, S) -> (3, h, S) uint8.

    As scipy's affine_transform with order 1 and mode "nearest", in a third of its time; and a C
    compiler may round a product and a sum as one, NumPy's operations each round for themselves.
    """
    size = planes.shape[-1]
    rows, columns = rows.clip(0, size - 1), columns.clip(0, size - 1)
    upper, left = rows.astype(np.intp), columns.astype(np.intp)
    rows -= upper  # from here on the share of the lower neighbour
    columns -= left
    corner = upper * size + left
    flat = planes.reshape(3, -1)  # (3, S·S)

    def neighbour(offset: int) -> Doubles:
        # The last row's and column's have none: "clip" takes any, and its share is 0.
        found: Pixels = flat.take(corner + offset, axis=1, mode="clip")  # (3, h, S)
        return found.astype(np.float64)

    above = _blended(neighbour(0), neighbour(1), columns)
    below = _blended(neighbour(size), neighbour(size + 1), columns)
    return _whole(_blended(above, below, rows))


def _blended(first: Doubles, second: Doubles, share: Doubles) -> Doubles:
    """first + share · (second - first), in the place of the second."""
    second -= first
    second *= share
    second += first
    return second


def _recoloured(planes: Pixels, transform: Transform, mean: float) -> Pixels:
    """Change brightness, contrast about the mean grey, then saturation: (3, h, S) uint8 alike.

    As torchvision's ColorJitter, but values are cut to 0..255 once, at the end.
    """
    scale = transform.brightness * transform.contrast
    values = planes.astype(np.float64)
    values *= scale
    values += (transform.brightness - scale) * mean
    grey = (1 - transform.saturation) * _grey(values)
    values *= transform.saturation
    values += grey
    return _whole(values.clip(0, 255))


def _grey(planes: Doubles) -> Doubles:
    """Luma of ITU-R 601, as Pillow's: (3, ...) -> (...)."""
    red, green, blue = planes
    grey: Doubles = 0.299 * red + 0.587 * green + 0.114 * blue
    return grey


def _whole(values: Doubles) -> Pixels:
    """The nearest whole numbers, from values within 0..255."""
    return np.rint(values, out=values).astype(np.uint8)
