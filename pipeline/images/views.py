"""Views: random transforms of an image, the same in every version, on every machine, in any order.

The seed, the digest of the image file and the number of the view determine a view, independent of
libraries and threads: an interrupted run continues with the same views, eight views include the
same first four, and another run repeats them to the last bit. Random numbers are bits of SHAKE-256;
the geometry is sums and products of IEEE doubles in the order written here.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from math import pi
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.spec import check_fields, check_seed, json_digest

VERSION = 1  # of the algorithm: increase it with every change that changes a pixel

# Flag and largest value of each range; larger ones may leave little of an image.
RANGES: dict[str, tuple[str, float]] = {
    "rotation": ("--rotation", 180),
    "width_shift": ("--shift", 0.9),
    "height_shift": ("--shift", 0.9),
    "shear": ("--shear", 45),
    "zoom": ("--zoom", 0.9),
    "jitter": ("--jitter", 0.9),
}

# Pixels of a view that are computed at a time: 120 kB of doubles. Above 128 kB the C library maps
# new memory for every array, which took two thirds of the time.
PIXELS_AT_A_TIME = 5000

Pixels = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The ranges of random transforms, all uniform; 0 changes nothing.

    As in Keras' ImageDataGenerator (`keras.src.legacy`) with ``fill_mode="nearest"``.

    Attributes
    ----------
    rotation, shear : largest angle in degrees, in both directions, up to 180 and 45.
    width_shift, height_shift : largest shift as a fraction of the width or height, up to 0.9.
    zoom : width and height have separate scale factors, from 1 - zoom to 1 + zoom.
    flip : whether each view is mirrored left to right with probability 1/2.
    jitter : as zoom, for brightness, contrast and saturation, up to 0.9.

    Raises UsageError, with the flag, if a range is out of bounds.
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
        for name, (flag, maximum) in RANGES.items():
            value = getattr(self, name)
            if not 0 <= value <= maximum:
                raise UsageError(f"{flag} is a number from 0 to {maximum}; received {value}")
            # 40 and 40.0, 0.0 and -0.0 have the same digest
            object.__setattr__(self, name, abs(float(value)))

    def __str__(self) -> str:
        """Format for people: ``rotation 40°, shift 0.2, shear 0.2°, zoom 0.2, flip, seed 0``."""
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
        """The `pipeline.spec.json_digest` of `to_dict`."""
        return json_digest(self.to_dict())

    def to_dict(self) -> dict[str, float | int | bool]:
        """Return every field and the version of the algorithm, for JSON."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Create an augmentation from parsed JSON; raises ValueError for unexpected contents."""
        kinds = {name: type(default) for name, default in cls().to_dict().items()}
        check_fields(values, kinds, "augmentation")
        if (version := values["version"]) != VERSION:
            raise ValueError(f"views of version {version}; expected version {VERSION}")
        try:
            return cls(**{name: values[name] for name in kinds if name != "version"})
        except UsageError as error:
            raise ValueError(str(error)) from error


# light: 4 pixels of 32 and a flip, as in the training of ResNet (He et al. 2016, 4.2).
# book: Deep Learning with Python, 5.2 and 5.3. Its ``shear_range=0.2`` is in degrees, as in Keras
#   since 2018; in Keras of 2017 it was in radians (keras#8868): --shear 11.5.
# strong: the book's with twice the zoom, AutoAugment's largest shear, a slope of 0.3 (Cubuk et al.
#   2019), and the colour jitter of Facebook's ResNets in Torch.
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
    """Return a policy with the values that are not None; raises UsageError as `Augmentation`."""
    if policy not in POLICIES:
        raise UsageError(f"--augment is one of {', '.join(POLICIES)}; received {policy!r}")
    ranges |= {"width_shift": shift, "height_shift": shift}
    changes: dict[str, Any] = {name: value for name, value in ranges.items() if value is not None}
    return replace(POLICIES[policy], seed=seed, **changes)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """The transform of one view.

    Angles are in degrees; shifts, to the right and down, are fractions of width and height; a zoom
    below 1 enlarges the image; the flip comes last.
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


def draw_view(pixels: Pixels, augmentation: Augmentation, image_digest: bytes, view: int) -> Pixels:
    """Compute a view of an image: (S, S, 3) uint8 -> (S, S, 3) uint8; view 0 is the image."""
    if view == 0:
        return pixels
    return transform_pixels(pixels, draw_transform(augmentation, image_digest, view))


def draw_transform(augmentation: Augmentation, image_digest: bytes, view: int) -> Transform:
    """Draw the transform of a view of the image with this SHA-256.

    Each number uses fixed random bits: changing one range does not change the other numbers.
    """
    source = f"view {VERSION} {augmentation.seed} {image_digest.hex()} {view}"
    bits = hashlib.shake_256(source.encode()).digest(10 * 8)
    # numbers in [0, 1): the first 53 of every 64 bits
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

    The geometry is that of Keras' `apply_affine_transform`: zoom, shear, shift and rotation, in
    this order and about the centre, map each pixel of the result to a position in the image, where
    it is interpolated bilinearly; beyond an edge, the edge is repeated. Flip and colours follow.
    Keras' ImageDataGenerator exchanges the shifts of width and height; this function does not.
    """
    size = len(pixels)
    # (S,) distances from the centre in pixels, to the right or down
    steps: Doubles = np.arange(size, dtype=np.float64) - (size - 1) / 2
    across = -steps if transform.flip else steps
    from_row, from_column = _geometry(transform, size)
    planes = np.stack([pixels[..., channel] for channel in range(3)])  # (3, S, S)
    height = max(1, PIXELS_AT_A_TIME // size)
    strips = []
    for top in range(0, size, height):
        down = steps[top : top + height, None]
        rows, columns = (  # (h, S) each: positions in the image
            (of_across * across + at_centre) + of_down * down
            for of_across, of_down, at_centre in (from_row, from_column)
        )
        strips.append(_interpolate(planes, rows, columns))
    if (transform.brightness, transform.contrast, transform.saturation) != (1, 1, 1):
        # sums of integers do not depend on the order
        sums = sum(strip.sum(axis=(1, 2), dtype=np.int64) for strip in strips)  # (3,)
        mean = float(_grey(sums / size**2))
        strips = [_change_colours(strip, transform, mean) for strip in strips]
    return np.stack(list(np.concatenate(strips, axis=1)), axis=-1)


def _sine(degrees: float) -> float:
    """Compute a sine with the same last bit on every machine, unlike `math.sin`."""
    angle = degrees * (pi / 180)
    term = total = angle
    for n in range(3, 45, 2):  # enough for 360 degrees
        term *= -angle * angle / (n * (n - 1))
        total += term
    return total


def _geometry(transform: Transform, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the factors of (distance to the right, distance down, 1) for row and column."""
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


def _interpolate(planes: Pixels, rows: Doubles, columns: Doubles) -> Pixels:
    """Interpolate an image (3, S, S) at rows, columns (h, S) -> (3, h, S) uint8.

    As scipy's affine_transform with order 1 and mode "nearest", in a third of the time. A C
    compiler may round a product and a sum once; NumPy rounds after each operation.
    """
    size = planes.shape[-1]
    rows, columns = rows.clip(0, size - 1), columns.clip(0, size - 1)
    upper, left = rows.astype(np.intp), columns.astype(np.intp)
    rows -= upper  # now the weight of the lower neighbour
    columns -= left
    corner = upper * size + left
    flat = planes.reshape(3, -1)  # (3, S·S)

    def neighbour(offset: int) -> Doubles:
        # the last row and column have no neighbour: "clip" returns any, with the weight 0
        values: Pixels = flat.take(corner + offset, axis=1, mode="clip")  # (3, h, S)
        return values.astype(np.float64)

    above = _blend(neighbour(0), neighbour(1), columns)
    below = _blend(neighbour(size), neighbour(size + 1), columns)
    return _round(_blend(above, below, rows))


def _blend(first: Doubles, second: Doubles, weight: Doubles) -> Doubles:
    """Compute first + weight · (second - first), in the memory of the second."""
    second -= first
    second *= weight
    second += first
    return second


def _change_colours(planes: Pixels, transform: Transform, mean: float) -> Pixels:
    """Change brightness, contrast about the mean grey, then saturation of (3, h, S) uint8.

    As torchvision's ColorJitter, but values are clipped to 0..255 once, at the end.
    """
    scale = transform.brightness * transform.contrast
    values = planes.astype(np.float64)
    values *= scale
    values += (transform.brightness - scale) * mean
    grey = (1 - transform.saturation) * _grey(values)
    values *= transform.saturation
    values += grey
    return _round(values.clip(0, 255))


def _grey(planes: Doubles) -> Doubles:
    """Compute the luma of ITU-R 601, as Pillow does: (3, ...) -> (...)."""
    red, green, blue = planes
    grey: Doubles = 0.299 * red + 0.587 * green + 0.114 * blue
    return grey


def _round(values: Doubles) -> Pixels:
    """Round values within 0..255 to integers."""
    return np.rint(values, out=values).astype(np.uint8)
