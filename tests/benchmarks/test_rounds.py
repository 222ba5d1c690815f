"""Sides alternate; repeated measurements become a median and quartiles."""

import numpy as np
import pytest

from benchmarks.rounds import Spread, alternate


def test_sides_alternate_and_each_round_begins_with_the_next() -> None:
    order: list[str] = []
    reported: list[tuple[int, int]] = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    measured = alternate(
        {name: lambda name=name: side(name) for name in "abc"},  # type: ignore[misc]
        rounds=3,
        progress=lambda done, total: reported.append((done, total)),
    )
    assert "".join(order) == "abcbcacab"
    assert measured == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert reported == [(done, 9) for done in range(9)]


def test_spread_is_the_median_between_quartiles() -> None:
    values = np.random.default_rng(0).permutation(101).astype(float)
    assert Spread.of(list(values)) == Spread(50.0, 25.0, 75.0)
    assert Spread.of([3.0]).as_dict() == {"median": 3.0, "low": 3.0, "high": 3.0}


def test_ratios_within_rounds_are_independent_of_slow_rounds() -> None:
    slowness = np.array([1.0, 5.0, 2.0, 1.0, 8.0])
    spread = Spread.of_ratio(list(6 / slowness), list(2 / slowness))
    assert list(spread.as_dict().values()) == pytest.approx([3.0, 3.0, 3.0])
