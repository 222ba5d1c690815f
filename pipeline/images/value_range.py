"""Measure which numbers the deep images of a set use: uint16, signed or float, not 8-bit ones.

Black and white are the same numbers for the whole set: a range per image would change what
brightness means from image to image.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadDataError
from pipeline.images.decode import MAX_FILE, Numbers, UnreadableImage, read_numbers
from pipeline.spec import FULL_RANGE, format_range
from pipeline.text import counted

AUTO_RANGE = "auto"

SAMPLED_FILES = 64  # of a set, evenly spread; most are 8-bit, which their header says
SAMPLED_DEEP_FILES = 16  # of these, decoded
SAMPLED_NUMBERS = 10_000  # of a file
PERCENTILES = (0.1, 99.9)  # outside are hot and dead pixels
GREY_LEVELS = 256
FEW_LEVELS = 80  # a third of the range, or less: 14 bits in a 16-bit file leave 64

log = logging.getLogger("pipeline")


def choose_range(root: Path, paths: Sequence[bytes], requested: str) -> str:
    """Return the value range of a set's deep images, ``full`` or ``LOW,HIGH``; log what they use.

    ``auto`` is decided from the percentiles of a sample of files. A set without deep images has the
    full range. Raises BadDataError for ``auto`` if the files have several types of numbers.
    """
    count = min(SAMPLED_FILES, len(paths))
    sample = [paths[index] for index in np.linspace(0, len(paths) - 1, count).astype(int)]
    found = _read_sample(root, sample)
    if not found:
        if requested == AUTO_RANGE:
            return FULL_RANGE
        if requested != FULL_RANGE:
            log.warning("--range: %s have 8 bits or fewer", counted(len(sample), "sampled image"))
        return requested
    types = Counter(numbers for numbers, _ in found)
    chosen = requested
    for numbers, files in types.most_common():
        values = np.concatenate([values for each, values in found if each == numbers])
        low, high = np.percentile(values, PERCENTILES).tolist()
        suggested = format_range(*snap(low, high, numbers))
        log.info(
            "%s of %s: %s, 99.8 %% of the pixels from %s to %s%s",
            counted(files, "file"), counted(len(found), "sampled deep file"), numbers.dtype,
            f"{low:,.6g}", f"{high:,.6g}", _bits_used(high, numbers),
        )  # fmt: skip
        if requested == AUTO_RANGE:
            if len(types) > 1:
                names = " and ".join(sorted(each.dtype for each in types))
                raise BadDataError(
                    f"--range auto: the images have {names} numbers, which share no range: set "
                    f"--range=LOW,HIGH, or convert them to one type"
                )
            chosen = suggested
            log.info("--range auto: %s becomes black, %s white", *chosen.split(","))
        elif requested == FULL_RANGE:
            levels = (high - low) / (numbers.high - numbers.low) * GREY_LEVELS
            if levels < FEW_LEVELS and high > low:
                log.warning(
                    "the %s images use %s of %d grey levels: their numbers are mostly from %s to "
                    "%s, the type's from %s to %s; extract with --range=%s, or auto",
                    numbers.dtype, f"{math.ceil(levels):,}", GREY_LEVELS, f"{low:,.6g}",
                    f"{high:,.6g}", f"{numbers.low:,}", f"{numbers.high:,}", suggested,
                )  # fmt: skip
    return chosen


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
    root: Path, paths: Sequence[bytes]
) -> list[tuple[Numbers, npt.NDArray[np.float64]]]:
    """Return types and some finite numbers of the deep images among files; skip unreadable ones."""
    found: list[tuple[Numbers, npt.NDArray[np.float64]]] = []
    for path in paths:
        if len(found) == SAMPLED_DEEP_FILES:
            break
        file = root / os.fsdecode(path)
        try:
            deep = read_numbers(file.read_bytes()) if file.stat().st_size <= MAX_FILE else None
        except (OSError, UnreadableImage):
            continue
        if deep is not None:
            values = deep[1].reshape(-1)[:: max(1, deep[1].size // SAMPLED_NUMBERS)]
            found.append((deep[0], values[np.isfinite(values)].astype(np.float64)))
    return [(numbers, values) for numbers, values in found if len(values)]
