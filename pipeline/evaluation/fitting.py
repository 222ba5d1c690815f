"""Fit heads side by side: a thread for each core, a process of its own where time is limited."""

import logging
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from pipeline.cores import usable_cores
from pipeline.errors import PipelineError
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.result import Fit
from pipeline.evaluation.rows import LabelledRows, TrialRows
from pipeline.evaluation.search import can_balance, search
from pipeline.heads.custom import failures_of
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import Head, load_head

DIVERGED = "diverged"
SECONDS_TO_START = 120.0  # for the imports of a process of its own; its clock starts after them

T = TypeVar("T")
Fits = list[Fit] | str  # of one head on one trial, one for each seed; or why there are none

log = logging.getLogger("pipeline")


class NotFittedError(PipelineError):
    """A head's process was stopped or died; the message is its row's status."""


def fit_heads(
    heads: Mapping[HeadRequest, Head], data: TrialRows, config: ClassifyConfig
) -> dict[HeadRequest, list[Fits]]:
    """Fit every head on every trial."""
    lock = Lock()

    @lru_cache(usable_cores() + 1)  # heads come to the trials in turn
    def rows_of(number: int) -> tuple[LabelledRows, LabelledRows]:
        splits = data.trials[number].splits
        return data.training_rows(splits.train), data.evaluation_rows(splits.validation)

    def fit(request: HeadRequest, head: Head, number: int) -> Fits:
        with lock:  # made once for all heads
            train, validation = rows_of(number)
        trial = data.trials[number]
        work = partial(
            _search_with_each_seed,
            train=train,
            validation=validation,
            refit=data.training_rows(trial.splits.validation) if config.refit else None,
            class_count=data.class_count,
            seeds=trial.seeds if head.is_stochastic else trial.seeds[:1],
            balanced=config.balance,
        )
        try:
            found = within(config, work, request.name)
        except PipelineError as error:  # out of time, or a custom head that failed
            return str(error)
        if config.balance and number == 0 and found and not can_balance(found[0].estimator):
            log.warning("%s has no class weights; it is fitted without", request.name)
        return found or DIVERGED

    return run_in_parallel(heads, len(data.trials), fit)


def _search_with_each_seed(head: Head, seeds: Sequence[int], **arguments: Any) -> list[Fit]:
    found = [search(head, seed=seed, **arguments) for seed in seeds]
    return [fit for fit in found if fit is not None]


def run_in_parallel(
    heads: Mapping[HeadRequest, Head], times: int, fit: Callable[[HeadRequest, Head, int], T]
) -> dict[HeadRequest, list[T]]:
    """Call ``fit(request, head, number)`` for every head and every number below ``times``.

    Deterministic heads run one on each core; stochastic ones, which use all cores by themselves,
    follow one after another. Each has one BLAS thread: that of NumPy and that of SciPy wait for
    each other's in busy loops (logistic on 1,200 × 512: 0.2 s so, 2.5 s with two threads).
    """
    found: dict[tuple[HeadRequest, int], Future[T]] = {}
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
        # the table of settings says what did not converge
        warnings.filterwarnings("ignore", module="sklearn")
        for alone in (False, True):
            pool = ThreadPoolExecutor(1 if alone else usable_cores())
            try:
                for number in range(times):
                    for request, head in heads.items():
                        if head.is_stochastic == alone:
                            found[request, number] = pool.submit(fit, request, head, number)
                for future in found.values():
                    future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    return {
        request: [found[request, number].result() for number in range(times)] for request in heads
    }


def within(config: ClassifyConfig, work: Callable[[Head], T], name: str) -> T:
    """What ``work(head)`` returns or raises; with a time limit, from a process that may be killed.

    Raises NotFittedError where that process was stopped or died.
    """
    if config.timeout is None:
        return _run(config, work, name)
    context = multiprocessing.get_context("spawn")  # a forked BLAS or TensorFlow can deadlock
    ours, theirs = context.Pipe()
    process = context.Process(target=_work_and_send, args=(theirs, config, work, name), daemon=True)
    with _deferred_interrupts():
        process.start()
    theirs.close()
    started = False
    try:
        if not ours.poll(SECONDS_TO_START):
            raise NotFittedError(f"did not start within {SECONDS_TO_START:g} s")
        ours.recv()
        started = True
        if not ours.poll(config.timeout):
            raise NotFittedError(f"stopped after {config.timeout:g} s")
        answer: T | Exception = ours.recv()
    except EOFError:
        process.join()
        raise NotFittedError(_exit_reason(process.exitcode or 0, started=started)) from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _exit_reason(exit_code: int, *, started: bool) -> str:
    if exit_code < 0:
        return f"was killed by signal {-exit_code} while it was fitted (out of memory?)"
    if not started:
        return "its process did not start: a script needs if __name__ == '__main__'"
    return f"ended with exit code {exit_code} while it was fitted"


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Hold Ctrl-C from a process started here, which would answer with a traceback as it imports.

    It inherits the mask of this thread.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else `start` starts it, which lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(config: ClassifyConfig, work: Callable[[Head], T], name: str) -> T:
    head = load_head(name, config.dense_grid)
    with failures_of(head):
        return work(head)


def _work_and_send(
    connection: Connection, config: ClassifyConfig, work: Callable[[Head], Any], name: str
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: the parent alone says so
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    warnings.filterwarnings("ignore", module="sklearn")
    load_head(name)  # its imports take none of its time
    connection.send("ready")
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            answer: Any = _run(config, work, name)
        except Exception as error:  # a bug gets its traceback in the parent
            answer = error
    try:
        connection.send(answer)
    except Exception as error:  # a custom head with a lambda in it
        connection.send(NotFittedError(f"cannot be sent to another process: {error}"))
