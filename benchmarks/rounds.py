"""Measure several sides alternately; summarize by median and quartiles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Median, lower and upper quartile of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of one or more values."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))

    @classmethod
    def of_ratio(cls, values: Sequence[float], others: Sequence[float]) -> Self:
        """Return the spread of values / others per round; a slow round cancels out."""
        return cls.of([value / other for value, other in zip(values, others, strict=True)])

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def alternate(
    sides: Mapping[str, Callable[[], T]],
    *,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[T]]:
    """Measure all sides one after another in each round: side -> its measurements.

    Each round begins with the next side, so that no side always follows the same one.
    """
    measured: dict[str, list[T]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for done, name in enumerate([*names[first:], *names[:first]], number * len(names)):
            if progress:
                progress(done, rounds * len(names))
            measured[name].append(sides[name]())
    return measured
