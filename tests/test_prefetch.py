"""Results arrive in order, and nothing runs after the caller stops."""

import threading
import time
from contextlib import closing

import pytest

from pipeline.prefetch import prefetch


def test_results_arrive_in_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 * (item == 0))
        return -item

    results = list(prefetch(slow_first, range(20), threads=4, waiting=8))
    assert results == [(item, -item) for item in range(20)]


def test_number_of_threads_and_of_waiting_results_is_limited() -> None:
    together = threading.Barrier(2, timeout=10)  # breaks unless two items are computed at once
    started = []

    def items():  # type: ignore[no-untyped-def]
        for item in range(8):
            started.append(item)
            yield item

    with closing(prefetch(lambda _: together.wait(), items(), threads=2, waiting=4)) as results:
        next(results)
        assert started == [0, 1, 2, 3]
        next(results)
        assert started == [0, 1, 2, 3, 4]
        together.abort()


def test_error_is_raised_in_place_of_its_result() -> None:
    quotients = prefetch(lambda item: 1 / item, [1, 0, 2])
    assert next(quotients) == (1, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(quotients)


def test_results_before_a_failing_item_are_not_lost() -> None:
    def items():  # type: ignore[no-untyped-def]
        yield from range(5)
        raise OSError("unreadable")

    results = prefetch(lambda item: item, items(), threads=2, waiting=4)
    assert [next(results) for _ in range(5)] == [(item, item) for item in range(5)]
    with pytest.raises(OSError, match="unreadable"):
        next(results)


def test_closing_early_leaves_no_thread_running() -> None:
    started = []
    before = threading.active_count()
    with closing(prefetch(started.append, range(1000), threads=2, waiting=6)) as results:
        next(results)
    assert threading.active_count() == before
    assert len(started) <= 7
