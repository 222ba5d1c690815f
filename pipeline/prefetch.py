"""Compute results in threads ahead of the caller, in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    compute: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int = 1,
    waiting: int | None = None,
    name: str = "prefetch",
) -> Generator[tuple[Item, Result]]:
    """Yield each item with its result; the calling thread iterates over the items.

    At most ``waiting`` results are computed ahead, finished or not; by default one more than
    ``threads``, so that no thread is idle. An error of ``compute`` is raised in place of its
    result, an error of ``items`` after the results of all earlier items.

    A caller that may stop early must close the generator: otherwise the garbage collector joins
    its threads, which deadlocks inside `threading`.
    """
    max_results = threads + 1 if waiting is None else waiting
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        results: deque[tuple[Item, Future[Result]]] = deque()
        failed: Exception | None = None
        iterator = iter(items)
        try:
            while True:
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                except Exception as error:
                    failed = error
                    break
                results.append((item, pool.submit(compute, item)))
                if len(results) >= max_results:
                    yield _pop_first(results)
            while results:
                yield _pop_first(results)
        finally:
            for _, result in results:
                result.cancel()
        if failed is not None:
            raise failed


def _pop_first(results: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    """Remove and return the first result, so that nothing here keeps it in memory."""
    item, result = results.popleft()
    return item, result.result()
