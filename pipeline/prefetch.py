"""Results in order, computed in threads ahead of whoever wants them."""

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
    name: str = "ahead",
) -> Generator[tuple[Item, Result]]:
    """Yield items, taken in the calling thread as they are needed, with what is computed of them.

    At most ``waiting`` results are ahead, done or not; by default one more than threads, so that
    none of these is ever idle. Raises what an item's computation raised, in its place, and what
    taking the next item raised, behind the results of all before it.

    Who may stop before the end closes it: the garbage collector would join its threads wherever
    it happens to run, and inside `threading` itself that is a deadlock.
    """
    most = threads + 1 if waiting is None else waiting
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        results: deque[tuple[Item, Future[Result]]] = deque()
        failed: Exception | None = None
        taken = iter(items)
        try:
            while True:
                try:
                    item = next(taken)
                except StopIteration:
                    break
                except Exception as error:
                    failed = error
                    break
                results.append((item, pool.submit(compute, item)))
                if len(results) >= most:
                    yield _first(results)
            while results:
                yield _first(results)
        finally:
            for _, result in results:
                result.cancel()
        if failed is not None:
            raise failed


def _first(results: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    """Take it out, once it is there: nothing here holds it while the next is waited for."""
    item, result = results.popleft()
    return item, result.result()
