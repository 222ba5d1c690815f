"""Measure which numbers the deep images of a set use: uint16, signed or float, not 8-bit ones.

Black and white are the same numbers for the whole set: a range per image would change what
brightness means from image to image.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from pipeline.cores import usable_cores
from pipeline.errors import BadDataError
from pipeline.images.decode import Numbers, UnreadableImage, read_numbers
from pipeline.images.source import MAX_FILE, ImageSource
from pipeline.spec import FULL_RANGE, format_range, parse_range
from pipeline.text import counted

AUTO_RANGE = "auto"

SAMPLED_FILES = 64  # of a set, evenly spread
SAMPLED_PIXELS = 10_000  # of a file
PERCENTILES = (0.1, 99.9)  # outside are hot and dead pixels
MAX_CLIPPED = 0.1  # share of the pixels outside a range, without a warning
GREY_LEVELS = 256
FEW_LEVELS = 80  # a third of the range, or less: 14 bits in a 16-bit file leave 64

log = logging.getLogger("pipeline")


def choose_range(source: ImageSource, paths: Sequence[bytes], requested: str) -> str:
    """Return the value range of a set's deep images, ``full`` or ``LOW,HIGH``; log what they use.

    ``auto`` is decided from the percentiles of a sample of files. A set without deep images has the
    full range. Raises BadDataError for ``auto`` if the files have several types of numbers.
    """
    count = min(SAMPLED_FILES, len(paths))
    sample = [paths[index] for index in np.linspace(0, len(paths) - 1, count).astype(int)]
    found = _read_sample(source, sample)
    if not found:
        if requested == AUTO_RANGE:
            return FULL_RANGE
        if requested != FULL_RANGE:
            log.warning(
                "the range %s has no effect: %s have 8 bits or fewer",
                requested, counted(len(sample), "sampled image"),
            )  # fmt: skip
        return requested
    types = Counter(numbers for numbers, _ in found)
    if requested == AUTO_RANGE and len(types) > 1:
        names = " and ".join(sorted(each.dtype for each in types))
        raise BadDataError(
            f"--range auto: the images have {names} numbers, which share no range: set "
            f"--range=LOW,HIGH, or convert them to one type"
        )
    chosen = requested
    for numbers, files in types.most_common():
        values = np.concatenate([values for each, values in found if each == numbers])
        low, high = np.percentile(values, PERCENTILES).tolist()
        if low == high:  # nearly all pixels are background
            low, high = float(values.min()), float(values.max())
        suggested = format_range(*snap(low, high, numbers))
        log.info(
            "%s of %d sampled: %s, mostly from %s to %s%s",
            counted(files, "file"), len(sample), numbers.dtype, f"{low:,.6g}", f"{high:,.6g}",
            _bits_used(high, numbers),
        )  # fmt: skip
        if requested == AUTO_RANGE:
            chosen = suggested
            log.info("--range auto: %s becomes black, %s white", *chosen.split(","))
        else:
            _warn_of_misfit(values, (low, high), numbers, requested, suggested)
    return chosen


def _warn_of_misfit(
    values: npt.NDArray[np.float64],
    used: tuple[float, float],
    numbers: Numbers,
    requested: str,
    suggested: str,
) -> None:
    """Log if a range leaves the numbers few grey levels, or clips many of them."""
    black, white = parse_range(requested) or (numbers.low, numbers.high)
    low, high = used
    levels = math.ceil((min(high, white) - max(low, black)) / (white - black) * GREY_LEVELS)
    clipped = float(np.mean((values < black) | (values > white)))
    if clipped > MAX_CLIPPED:
        problem = f"{100 * clipped:.0f} % of their pixels become black or white"
    elif levels < FEW_LEVELS and high > low:
        problem = f"they use {levels:,} of {GREY_LEVELS} grey levels"
    else:
        return
    log.warning(
        "the %s images, mostly from %s to %s, do not fit the range %s%s: %s; extract with "
        "--range=%s, or auto",
        numbers.dtype, f"{low:,.6g}", f"{high:,.6g}", requested,
        f" ({numbers.low:,} to {numbers.high:,})" if requested == FULL_RANGE else "", problem,
        suggested,
    )  # fmt: skip


def snap(low: float, high: float, numbers: Numbers) -> tuple[float, float]:
    """Round a range outwards, so that it stays the same with a few images more.

    A range that starts near 0 starts at 0 and ends at a power of two (minus 1 for integers): 12-bit
    data have 0 to 4095. Negative limits are powers of two, too. Other ranges are rounded to an
    eighth of a power of two, and all are limited to the type.
    """
    if not low < high:
        return numbers.low, numbers.high
    is_float = numbers.dtype.startswith("float")
    if low > high / 2 or high < low / 2:  # far from 0
        step = 2.0 ** (math.floor(math.log2(high - low)) - 3)
        snapped = math.floor(low / step) * step, math.ceil(high / step) * step
    else:
        top = 2.0 ** math.ceil(math.log2(high + (not is_float))) - (not is_float) if high > 0 else 0
        snapped = (-(2.0 ** math.ceil(math.log2(-low))) if low < 0 else 0.0), top
    if is_float:
        return snapped
    return max(snapped[0], numbers.low), min(snapped[1], numbers.high)


def _bits_used(high: float, numbers: Numbers) -> str:
    """Return ``, 12 of 16 bits`` for unsigned numbers."""
    if not numbers.dtype.startswith("uint"):
        return ""
    bits = numbers.dtype.removeprefix("uint")
    return f", {max(1, math.ceil(math.log2(high + 1)))} of {bits} bits"


def _read_sample(
    source: ImageSource, paths: Sequence[bytes]
) -> list[tuple[Numbers, npt.NDArray[np.float64]]]:
    """Return types and some finite numbers of the deep images among files; skip unreadable ones.

    The lowest and the highest number of a file are among them.
    """

    def read(path: bytes) -> tuple[Numbers, npt.NDArray[np.float64]] | None:
        try:
            is_image = source.stat(path).size <= MAX_FILE
            deep = read_numbers(source.read(path)) if is_image else None
        except (OSError, UnreadableImage):
            return None
        if deep is None:
            return None
        numbers, values = deep
        pixels = values.reshape(values.shape[0] * values.shape[1], -1)[:, :3]  # without alpha
        some = np.random.default_rng(0).integers(0, len(pixels), SAMPLED_PIXELS)
        extremes = np.array([np.nanmin(pixels), np.nanmax(pixels)], np.float64)
        chosen = np.concatenate([pixels[some].astype(np.float64).ravel(), extremes])
        return numbers, chosen[np.isfinite(chosen)]

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = [item for item in pool.map(read, paths) if item is not None]
    return [(numbers, values) for numbers, values in found if len(values)]
