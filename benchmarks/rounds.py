"""Sides measured in turn, and what repeated measurements say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, between the lower and the upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of one value or more."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))

    @classmethod
    def of_ratio(cls, values: Sequence[float], others: Sequence[float]) -> Self:
        """Of values / others round by round: what slows a whole round down cancels out."""
        return cls.of([value / other for value, other in zip(values, others, strict=True)])

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def alternate(
    sides: Mapping[str, Callable[[], T]],
    *,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[T]]:
    """Measure all sides, one after another, round after round: side -> its measurements.

    Each round begins with the next side, so that none is always measured behind the same one.
    """
    measured: dict[str, list[T]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for place, name in enumerate([*names[first:], *names[:first]]):
            if progress:
                progress(number * len(names) + place, rounds * len(names))
            measured[name].append(sides[name]())
    return measured
