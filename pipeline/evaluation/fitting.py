"""Fit heads side by side: a thread for each core, a process of its own where time is limited."""

import logging
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from threading import Lock

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from pipeline.cores import usable_cores
from pipeline.errors import PipelineError
from pipeline.evaluation.choose import Choice, choose
from pipeline.evaluation.protocol import Trial
from pipeline.heads.head import FitOptions, Head
from pipeline.heads.registry import HeadRequest, load_head
from pipeline.heads.settings import DenseSettings
from pipeline.heads.training import LabelledRows, TrainingSet

DIVERGED = "diverged"
SECONDS_TO_START = 120.0  # for the imports of a process of its own; its clock starts after them

log = logging.getLogger("pipeline")


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
    """One input of one cached layer, with the trials that divide it.

    features (N, D) float32 and labels (N,) int64 of all rows of the cache.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_count: int
    trials: Sequence[Trial]

    def take(self, rows: npt.NDArray[np.int64]) -> LabelledRows:
        """The features and labels of some rows."""
        return LabelledRows(self.features[rows], self.labels[rows])


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
                train = data.take(splits.train)
                self._made[number] = (
                    TrainingSet(train.features, train.labels, data.class_count, self._balanced),
                    data.take(splits.validation),
                )
            return self._made[number]


def fit_heads(
    heads: Mapping[HeadRequest, Head], data: TrialRows, rules: FitRules
) -> dict[HeadRequest, list[Fitted]]:
    """Fit every head on every trial; in order of the heads, then of the trials.

    Heads that keep one core busy run side by side, one on each core; those that use all cores by
    themselves follow, one after another. BLAS gets one thread for each: that of NumPy and that of
    SciPy wait for each other's threads in busy loops (the logistic path on 1,200 × 512 takes 0.2 s
    so, 2.5 s with two threads).
    """
    cores = usable_cores()
    learning = _Learning(data, balanced=rules.balanced, kept=cores + 1)
    found: dict[tuple[HeadRequest, int], Future[Fitted]] = {}

    def fit(request: HeadRequest, head: Head, number: int) -> Fitted:
        train, validation = learning.of(number)
        seeds = data.trials[number].seeds if head.draws else data.trials[number].seeds[:1]
        options = FitOptions(seeds=seeds, dense=rules.dense)
        return _fit(request, head, train, validation, options, rules)

    with threadpool_limits(limits=1, user_api="blas"):
        for alone in (False, True):
            pool = ThreadPoolExecutor(1 if alone else cores)
            try:
                for number in range(len(data.trials)):
                    for request, head in heads.items():
                        if head.uses_all_cores == alone:
                            found[request, number] = pool.submit(fit, request, head, number)
                for future in found.values():
                    future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    return {
        request: [found[request, number].result() for number in range(len(data.trials))]
        for request in heads
    }


def _fit(
    request: HeadRequest,
    head: Head,
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
    rules: FitRules,
) -> Fitted:
    if rules.timeout is not None:
        return _fit_within(rules.timeout, request, train, validation, options, refit=rules.refit)
    return _attempt(head, train, validation, options, refit=rules.refit)


def _attempt(
    head: Head,
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
    *,
    refit: bool,
) -> Fitted:
    try:
        choices = tuple(choose(head, train, validation, options, refit=refit))
    except PipelineError as error:  # a head of the user's own that failed
        return Fitted((), str(error))
    return Fitted(choices, "" if choices else DIVERGED)


def _fit_within(
    seconds: float,
    request: HeadRequest,
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
    *,
    refit: bool,
) -> Fitted:
    """Fit in a process of its own, which is killed when its time is up."""
    context = multiprocessing.get_context("spawn")  # a forked BLAS or TensorFlow can deadlock
    ours, theirs = context.Pipe()
    bare = replace(train)  # without what was computed of it, which would have to be copied
    process = context.Process(
        target=_fit_and_send,
        args=(theirs, request, bare, validation, options, refit),
        daemon=True,
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS_TO_START):
            return Fitted((), f"did not start within {SECONDS_TO_START:g} s")
        ours.recv()
        if not ours.poll(seconds):
            return Fitted((), f"stopped after {seconds:g} s")
        answer = ours.recv()
    except EOFError:
        return Fitted((), "died while it was fitted (out of memory?)")
    finally:
        process.kill()
        process.join()
    if isinstance(answer, Exception):
        raise answer
    fitted: Fitted = answer
    return fitted


def _fit_and_send(
    connection: Connection,
    request: HeadRequest,
    train: TrainingSet,
    validation: LabelledRows,
    options: FitOptions,
    refit: bool,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: the parent alone tells of it
    head = load_head(request.name)
    connection.send("ready")
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            answer: Fitted | Exception = _attempt(head, train, validation, options, refit=refit)
        except Exception as error:  # a bug: it gets its traceback in the parent
            answer = error
    try:
        connection.send(answer)
    except Exception as error:  # a head of the user's own, with a lambda in it
        connection.send(Fitted((), f"cannot be sent to another process: {error}"))
