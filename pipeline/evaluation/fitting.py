"""Fit heads side by side: a thread for each core, a process of its own where time is limited."""

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.cores import usable_cores
from pipeline.errors import PipelineError
from pipeline.evaluation.caches import DividedCache, images_of
from pipeline.evaluation.choose import Choice, choose
from pipeline.evaluation.inputs import read_input
from pipeline.evaluation.protocol import Trial
from pipeline.evaluation.views import ViewRows
from pipeline.heads.head import FitOptions, Head, Input
from pipeline.heads.registry import HeadRequest, load_head
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet

DIVERGED = "diverged"
SECONDS_TO_START = 120.0  # for the imports of a process of its own; its clock starts after them

T = TypeVar("T")
Work = Callable[[Head, TrainingSet, LabelledRows, FitOptions], T]  # of a module: sent by its name

log = logging.getLogger("pipeline")


class NotFittedError(PipelineError):
    """A head's process was stopped or died; the message is its row's status."""


@dataclass(frozen=True, kw_only=True)
class FitRules:
    """What a run sets for every fit.

    Attributes
    ----------
    dense : settings of the dense head.
    balanced : every class counts the same.
    refit : fit the chosen setting again on train and validation together.
    timeout : seconds for one head on one trial; None for no limit.
    """

    dense: tuple[DenseSettings, ...] = (DenseSettings(),)
    balanced: bool = False
    refit: bool = False
    timeout: float | None = None


@dataclass(frozen=True)
class Fitted:
    """The choices of one head on one trial, one for each seed; or why there are none."""

    choices: tuple[Choice, ...]
    status: str = ""


@dataclass(frozen=True)
class TrialRows:
    """One input of one cached layer, with the trials that divide its images.

    Attributes
    ----------
    features : (R, D) float32, of images and of their augmented views.
    labels : (N,) int64, of the images.
    rows : which image and which view each of the R shows.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_count: int
    trials: Sequence[Trial]
    rows: ViewRows

    @classmethod
    def read(cls, cache: DividedCache, layer: str, kind: Input, *, refit: bool = False) -> Self:
        """Read what a comparison needs, each row once.

        Of one division, what is learned from comes first, so that it need not be copied.

        Parameters
        ----------
        refit : validation images are learned from, too.
        """
        trials, rows = cache.division.trials, cache.views.rows
        train, judged = images_of(trials)
        first = rows.to_learn_from(trials[0].splits.train if len(trials) == 1 else train)
        needed = [rows.of_view(judged, view) for view in range(rows.averaged + 1)]
        if refit:
            needed += [rows.to_learn_from(trial.splits.validation) for trial in trials]
        wanted = np.concatenate([first, np.setdiff1d(np.concatenate(needed), first)])
        return cls(
            features=read_input(cache.views.table, layer, wanted, kind),
            labels=cache.table.columns.labels,
            class_count=len(cache.table.classes),
            trials=trials,
            rows=rows.take(wanted),
        )

    def to_learn_from(self, images: npt.NDArray[np.int64]) -> LabelledRows:
        """All chosen views of some images: what a head is fitted on."""
        rows = self.rows.to_learn_from(images)
        return LabelledRows(self._features(rows), self.labels[self.rows.images[rows]])

    def as_they_are(self, images: npt.NDArray[np.int64]) -> LabelledRows:
        """Some images, without augmentation."""
        return LabelledRows(self._features(self.rows.of_view(images)), self.labels[images])

    def to_judge(self, images: npt.NDArray[np.int64]) -> LabelledRows:
        """Some images as they are, with the views that predictions are averaged over."""
        views = range(1, self.rows.averaged + 1)
        others = tuple(self._features(self.rows.of_view(images, view)) for view in views)
        return replace(self.as_they_are(images), views=others)

    def _features(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows that follow one another are not copied."""
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self.features[rows[0] : rows[0] + len(rows)]
        return self.features[rows]


class _Learning:
    """What each trial learns from and chooses on, made once for all heads and threads.

    Only the latest few trials are kept: heads come to them in turn.
    """

    def __init__(self, data: TrialRows, *, balanced: bool, kept: int) -> None:
        self._data = data
        self._balanced = balanced
        self._kept = kept
        self._made: dict[int, tuple[TrainingSet, LabelledRows]] = {}
        self._lock = Lock()

    def of(self, number: int) -> tuple[TrainingSet, LabelledRows]:
        """Training set and validation rows of a trial."""
        with self._lock:
            if number not in self._made:
                while len(self._made) >= self._kept:
                    del self._made[next(iter(self._made))]
                data, splits = self._data, self._data.trials[number].splits
                train = data.to_learn_from(splits.train)
                self._made[number] = (
                    TrainingSet(train.features, train.labels, data.class_count, self._balanced),
                    data.to_judge(splits.validation),
                )
            return self._made[number]


def fit_heads(
    heads: Mapping[HeadRequest, Head], data: TrialRows, rules: FitRules
) -> dict[HeadRequest, list[Fitted]]:
    """Fit every head on every trial; in order of the heads, then of the trials."""
    learning = _Learning(data, balanced=rules.balanced, kept=usable_cores() + 1)

    def fit(request: HeadRequest, head: Head, number: int) -> Fitted:
        train, validation = learning.of(number)
        seeds = data.trials[number].seeds if head.draws else data.trials[number].seeds[:1]
        options = FitOptions(seeds=seeds, dense=rules.dense)
        refit = data.to_learn_from(data.trials[number].splits.validation) if rules.refit else None
        work = partial(choose, refit=refit)
        try:
            choices = within(rules.timeout, work, request, head, train, validation, options)
        except PipelineError as error:  # out of time, or a head of the user's own that failed
            return Fitted((), str(error))
        return Fitted(tuple(choices), "" if choices else DIVERGED)

    return side_by_side(heads, len(data.trials), fit)


def side_by_side(
    heads: Mapping[HeadRequest, Head], times: int, fit: Callable[[HeadRequest, Head, int], T]
) -> dict[HeadRequest, list[T]]:
    """Call ``fit(request, head, number)`` for every head and every number below ``times``.

    Heads that keep one core busy run side by side, one on each core; those that use all cores by
    themselves follow, one after another. BLAS gets one thread for each: that of NumPy and that of
    SciPy wait for each other's threads in busy loops (the logistic path on 1,200 × 512 takes 0.2 s
    so, 2.5 s with two threads).
    """
    found: dict[tuple[HeadRequest, int], Future[T]] = {}
    with threadpool_limits(limits=1, user_api="blas"):
        for alone in (False, True):
            pool = ThreadPoolExecutor(1 if alone else usable_cores())
            try:
                for number in range(times):
                    for request, head in heads.items():
                        if head.uses_all_cores == alone:
                            found[request, number] = pool.submit(fit, request, head, number)
                for future in found.values():
                    future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    return {
        request: [found[request, number].result() for number in range(times)] for request in heads
    }


def within(
    seconds: float | None,
    work: Work[T],
    request: HeadRequest,
    head: Head,
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
) -> T:
    """What ``work`` returns; with a limit, from a process of its own that is killed when it is up.

    Raises NotFittedError where that process was stopped or died, and whatever ``work`` raises.
    """
    if seconds is None:
        return work(head, train, validation, options)
    context = multiprocessing.get_context("spawn")  # a forked BLAS or TensorFlow can deadlock
    ours, theirs = context.Pipe()
    bare = replace(train)  # without what was computed of it, which would have to be copied
    process = context.Process(
        target=_work_and_send,
        args=(theirs, work, request, bare, validation, options),
        daemon=True,
    )
    with _interrupts_held():
        process.start()
    theirs.close()
    started = False
    try:
        if not ours.poll(SECONDS_TO_START):
            raise NotFittedError(f"did not start within {SECONDS_TO_START:g} s")
        ours.recv()
        started = True
        if not ours.poll(seconds):
            raise NotFittedError(f"stopped after {seconds:g} s")
        answer: T | Exception = ours.recv()
    except EOFError:
        process.join()
        raise NotFittedError(_why_it_ended(process.exitcode or 0, started=started)) from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _why_it_ended(exit_code: int, *, started: bool) -> str:
    if exit_code < 0:
        return f"was killed by signal {-exit_code} while it was fitted (out of memory?)"
    if not started:
        return "its process did not start: a script needs if __name__ == '__main__'"
    return f"ended with exit code {exit_code} while it was fitted"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Have a process that is started here wait with Ctrl-C until it asks for it.

    While it imports it would answer with a traceback. It inherits the mask of this thread.
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


def _work_and_send(
    connection: Connection,
    work: Work[Any],
    request: HeadRequest,
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: the parent alone tells of it
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    head = load_head(request.name)
    connection.send("ready")
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            answer: Any = work(head, train, validation, options)
        except Exception as error:  # a bug gets its traceback in the parent
            answer = error
    try:
        connection.send(answer)
    except Exception as error:  # a head of the user's own, with a lambda in it
        connection.send(NotFittedError(f"cannot be sent to another process: {error}"))
