"""Results come in order, whatever order they were computed in; nothing runs on unwanted."""

import threading
import time
from contextlib import closing

import pytest

from pipeline.prefetch import prefetch


def test_order_is_that_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 * (item == 0))
        return -item

    found = list(prefetch(slow_first, range(20), threads=4, waiting=8))
    assert found == [(item, -item) for item in range(20)]


def test_so_many_are_computed_at_a_time_and_no_more_wait() -> None:
    together = threading.Barrier(2, timeout=10)  # broken where one is computed alone
    taken = []

    def items():  # type: ignore[no-untyped-def]
        for item in range(8):
            taken.append(item)
            yield item

    with closing(prefetch(lambda _: together.wait(), items(), threads=2, waiting=4)) as results:
        next(results)
        assert taken == [0, 1, 2, 3]
        next(results)
        assert taken == [0, 1, 2, 3, 4]
        together.abort()


def test_an_error_comes_in_its_items_place() -> None:
    quotients = prefetch(lambda item: 1 / item, [1, 0, 2])
    assert next(quotients) == (1, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(quotients)


def test_what_was_computed_before_the_items_fail_is_not_lost() -> None:
    def items():  # type: ignore[no-untyped-def]
        yield from range(5)
        raise OSError("unreadable")

    results = prefetch(lambda item: item, items(), threads=2, waiting=4)
    assert [next(results) for _ in range(5)] == [(item, item) for item in range(5)]
    with pytest.raises(OSError, match="unreadable"):
        next(results)


def test_who_stops_early_leaves_nothing_running() -> None:
    started = []
    before = threading.active_count()
    with closing(prefetch(started.append, range(1000), threads=2, waiting=6)) as results:
        next(results)
    assert threading.active_count() == before
    assert len(started) <= 7
