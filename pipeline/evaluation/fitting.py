"""Fit heads in parallel: one thread per core, and one process per fit with a time limit."""

import logging
import math
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.cores import usable_cores
from pipeline.errors import PipelineError
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.fit_plan import MemoryGate, plan_fit
from pipeline.evaluation.result import Fit
from pipeline.evaluation.rows import LabelledRows, TrialRows
from pipeline.evaluation.search import can_balance, has_usual_size, search
from pipeline.heads.calibration import TemperatureScaling, class_scores
from pipeline.heads.custom import failures_of
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import Head, load_head
from pipeline.heads.scaler import root_mean_square
from pipeline.spec import CLASSES

DIVERGED = "diverged"
TIE = 1e-6  # of probabilities: `predict` may choose any of classes that differ by rounding only
SECONDS_TO_START = 120.0  # for the imports of a process; the time limit starts after them

T = TypeVar("T")
Fits = list[Fit] | str  # of one head on one trial: a fit per seed, or the reason why there is none

log = logging.getLogger("pipeline")


class NotFittedError(PipelineError):
    """The process of a fit was stopped or died; the message is the row's status."""


def fit_heads(
    heads: Mapping[HeadRequest, Head],
    data: TrialRows,
    config: ClassifyConfig,
    progress: Callable[[int, int], None] | None = None,
    memory: float = math.inf,
) -> dict[HeadRequest, list[Fits]]:
    """Fit every head on every trial; return the fits of each head, in the order of the trials.

    ``progress`` is called with (fits done, fits in all). Fits that run in parallel take at most
    ``memory`` bytes together.
    """
    lock, gate = Lock(), MemoryGate(memory)

    @lru_cache(usable_cores() + 1)  # all heads fit one trial before the next
    def rows_of(number: int) -> tuple[LabelledRows, LabelledRows]:
        splits = data.trials[number].splits
        return data.training_rows(splits.train), data.evaluation_rows(splits.validation)

    def fit(request: HeadRequest, head: Head, number: int) -> Fits:
        with lock:  # read once for all heads
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
            memory=memory,
        )
        try:
            plan = plan_fit(head, train, data.class_count, memory)
            with gate.reserve(plan.needed):
                fits = call_with_time_limit(config, work, request.name)
        except PipelineError as error:  # out of time, or a custom head failed
            return str(error)
        if number == 0 and fits:
            if config.balance and not can_balance(fits[0].estimator):
                log.warning("%s has no class weights; it is fitted without", request.name)
            if head.is_custom and data.task == CLASSES:
                with suppress(PipelineError), failures_of(head):  # nothing else needs predict
                    _warn_of_custom_head(request.name, fits[0].estimator, train, validation)
        return fits or DIVERGED

    return run_in_parallel(heads, len(data.trials), fit, progress)


def _warn_of_custom_head(
    name: str, estimator: Any, train: LabelledRows, validation: LabelledRows
) -> None:
    """Warn of scaled features, and of predictions of other classes than those of highest scores."""
    if not has_usual_size(np.asarray(train.features)):
        log.warning(
            "%s gets features divided by a power of two: their root mean square is %.1e",
            name, root_mean_square(np.asarray(train.features)),
        )  # fmt: skip
    features, class_count = np.asarray(validation.features), len(estimator.classes_)
    scores = class_scores(estimator, features, class_count)
    inner = estimator.estimator if isinstance(estimator, TemperatureScaling) else estimator
    predicted = class_scores(inner, features, class_count, method="predict")  # 1 or 0 per class
    differ = np.count_nonzero(scores.max(axis=1) - (scores * predicted).sum(axis=1) > TIE)
    if differ:
        log.warning(
            "%s predicts another class than that of its highest score for %s of %s validation "
            "images (%.1f %%); its row, predict and export use the scores: a threshold has no "
            "effect, and scores must be in the order of classes_",
            name, f"{differ:,}", f"{len(scores):,}", 100 * differ / len(scores),
        )  # fmt: skip


def _search_with_each_seed(head: Head, seeds: Sequence[int], **arguments: Any) -> list[Fit]:
    fits = [search(head, seed=seed, **arguments) for seed in seeds]
    return [fit for fit in fits if fit is not None]


def run_in_parallel(
    heads: Mapping[HeadRequest, Head],
    times: int,
    fit: Callable[[HeadRequest, Head, int], T],
    progress: Callable[[int, int], None] | None = None,
) -> dict[HeadRequest, list[T]]:
    """Call ``fit(request, head, number)`` for each head and number below ``times``; return results.

    Deterministic heads run in parallel, one per core; stochastic heads, which use all cores, follow
    one by one. BLAS has one thread: the BLAS of NumPy and that of SciPy wait for each other's
    threads in busy loops (logistic on 1,200 × 512: 0.2 s with one thread, 2.5 s with two).
    """
    futures: dict[tuple[HeadRequest, int], Future[T]] = {}
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")  # settings.csv records convergence
        for is_stochastic in (False, True):
            pool = ThreadPoolExecutor(1 if is_stochastic else usable_cores())
            try:
                for number in range(times):
                    for request, head in heads.items():
                        if head.is_stochastic == is_stochastic:
                            futures[request, number] = pool.submit(fit, request, head, number)
                for done, future in enumerate(as_completed(futures.values())):
                    future.result()
                    if progress:
                        progress(done + 1, len(heads) * times)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    return {
        request: [futures[request, number].result() for number in range(times)] for request in heads
    }


def call_with_time_limit(config: ClassifyConfig, work: Callable[[Head], T], name: str) -> T:
    """Return ``work(head)``; with a time limit, computed in a process that can be killed.

    Raises the errors of ``work``, and NotFittedError if the process was stopped or died.
    """
    if config.timeout is None:
        return _call(config, work, name)
    context = multiprocessing.get_context("spawn")  # a forked BLAS or TensorFlow can deadlock
    parent_end, child_end = context.Pipe()
    process = context.Process(
        target=_call_and_send, args=(child_end, config, work, name), daemon=True
    )
    with _deferred_interrupts():
        process.start()
    child_end.close()
    started = False
    try:
        if not parent_end.poll(SECONDS_TO_START):
            raise NotFittedError(f"did not start within {SECONDS_TO_START:g} s")
        parent_end.recv()
        started = True
        if not parent_end.poll(config.timeout):
            raise NotFittedError(f"stopped after {config.timeout:g} s")
        answer: T | Exception = parent_end.recv()
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
        return f"was killed by signal {-exit_code} during the fit (out of memory?)"
    if not started:
        return "did not start its process: a script needs if __name__ == '__main__'"
    return f"ended with exit code {exit_code} during the fit"


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Block Ctrl-C in a process started here, which would print a traceback during its imports.

    The process inherits the signal mask of this thread.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else `start` starts it and resets the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(config: ClassifyConfig, work: Callable[[Head], T], name: str) -> T:
    head = load_head(name, config.dense_grid, config.task or CLASSES)
    with failures_of(head):
        return work(head)


def _call_and_send(
    connection: Connection, config: ClassifyConfig, work: Callable[[Head], Any], name: str
) -> None:
    """In the child process: send ``"ready"`` after the imports, then the result or the error."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: only the parent reports it
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    warnings.filterwarnings("ignore", module="sklearn")
    load_head(name, task=config.task or CLASSES)  # imports do not count for the time limit
    connection.send("ready")
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            answer: Any = _call(config, work, name)
        except Exception as error:  # the parent raises it
            answer = error
    try:
        connection.send(answer)
    except Exception as error:  # such as a custom head with a lambda
        connection.send(NotFittedError(f"cannot be sent to another process: {error}"))
