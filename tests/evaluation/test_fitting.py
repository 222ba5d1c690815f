"""Heads are fitted side by side, each thing once; one that takes too long is stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_columns, draw_features
from pipeline.evaluation.views import ViewRows
from pipeline.heads.head import Candidate, FitOptions, Head, HeadSpec
from pipeline.heads.majority import Majority, MajorityClassifier
from pipeline.heads.training import LabelledRows, Scaler, TrainingSet

from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation import fitting
from pipeline.evaluation.fitting import FitRules, TrialRows, fit_heads
from pipeline.evaluation.protocol import Protocol
from pipeline.heads import training
from pipeline.heads.registry import HeadRequest, load_head

LABELS = np.asarray(alternating_labels(120))


def trial_rows(folds: int = 3) -> TrialRows:
    columns = draw_columns(LABELS.tolist())
    return TrialRows(
        features=draw_features(LABELS, (10,)),
        labels=LABELS,
        class_count=2,
        trials=Protocol(folds=folds).divide(columns, ("cats", "dogs")).trials,
        rows=ViewRows.plain(len(LABELS)),
    )


class Slow(Head):
    """Waits, and notes how many wait at the same time."""

    def __init__(self, *, alone: bool) -> None:
        self.uses_all_cores = alone
        self.running = self.most = 0
        self.lock = threading.Lock()

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.1)
        with self.lock:
            self.running -= 1
        yield Candidate(spec=HeadSpec("slow"), classifier=MajorityClassifier(train.shares))


def test_heads_run_on_every_core_and_those_that_need_all_run_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fitting, "usable_cores", lambda: 3)
    beside, alone = Slow(alone=False), Slow(alone=True)
    heads = {HeadRequest("beside"): beside, HeadRequest("alone"): alone}
    found = fit_heads(heads, trial_rows(), FitRules())
    assert [len(fitted) for fitted in found.values()] == [3, 3]
    assert beside.most == 3
    assert alone.most == 1


def test_on_one_core_every_head_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "usable_cores", lambda: 1)
    heads = {HeadRequest("beside"): Slow(alone=False), HeadRequest("alone"): Slow(alone=True)}
    assert set(fit_heads(heads, trial_rows(), FitRules())) == set(heads)


def test_what_heads_share_is_computed_once_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    scaler = training.Scaler

    def counted(*arguments: object) -> Scaler:
        made.append(threading.get_ident())
        return scaler(*arguments)

    monkeypatch.setattr(training, "Scaler", counted)
    names = ("logistic", "ridge", "linear_svm", "lda")
    fit_heads({HeadRequest(name): load_head(name) for name in names}, trial_rows(), FitRules())
    assert len(made) == 3


def test_threads_that_need_one_another_s_properties_do_not_wait_for_ever() -> None:
    begun = threading.Event()

    class Pair:
        @training.ComputedOnce
        def outer(self) -> int:
            begun.set()
            time.sleep(0.2)  # until the other thread asks for the inner one
            return self.inner + 1

        @training.ComputedOnce
        def inner(self) -> int:
            return 1

    pair = Pair()
    found: list[int] = []
    first = threading.Thread(target=lambda: found.append(pair.outer), daemon=True)
    second = threading.Thread(target=lambda: found.append(pair.inner), daemon=True)
    first.start()
    begun.wait()
    second.start()
    for thread in (first, second):
        thread.join(10)
    assert sorted(found) == [1, 2]


def test_a_limit_on_time_changes_no_result() -> None:
    heads = {HeadRequest("logistic"): load_head("logistic")}
    data = trial_rows()
    free = fit_heads(heads, data, FitRules())[HeadRequest("logistic")]
    limited = fit_heads(heads, data, FitRules(timeout=60))[HeadRequest("logistic")]
    for one, other in zip(free, limited, strict=True):
        np.testing.assert_array_equal(
            one.choices[0].validation_scores, other.choices[0].validation_scores
        )


def test_a_head_that_takes_too_long_is_stopped() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 6000)
    data = TrialRows(
        features=random.normal(size=(6000, 400)).astype(np.float32),
        labels=labels,
        class_count=2,
        trials=Protocol(folds=3).divide(draw_columns(labels.tolist()), ("a", "b")).trials[:1],
        rows=ViewRows.plain(6000),
    )
    request = HeadRequest("random_forest")
    started = time.monotonic()
    (fitted,) = fit_heads({request: load_head(request.name)}, data, FitRules(timeout=0.3))[request]
    assert fitted.choices == ()
    assert fitted.status == "stopped after 0.3 s"
    assert time.monotonic() - started < 60


def test_a_head_that_fails_expectedly_has_a_status_and_a_bug_is_raised() -> None:
    class Failing(Majority):
        error: Exception = BadDataError("own head: no, thanks")

        def fit_candidates(self, *arguments: object) -> Iterator[Candidate]:
            raise self.error

    request = HeadRequest("failing")
    fitted = fit_heads({request: Failing()}, trial_rows(), FitRules())[request]
    assert {each.status for each in fitted} == {"own head: no, thanks"}
    Failing.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fit_heads({request: Failing()}, trial_rows(), FitRules())


OWN = """
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

def with_lambda():
    return make_pipeline(FunctionTransformer(lambda rows: rows), LogisticRegression())
"""


EXITS = """
import os, signal, sys
from sklearn.dummy import DummyClassifier

class Dying(DummyClassifier):
    def fit(self, *arguments, **more):
        os.kill(os.getpid(), signal.SIGKILL)

class Ending(DummyClassifier):
    def fit(self, *arguments, **more):
        os._exit(5)

class Leaving(DummyClassifier):
    def fit(self, *arguments, **more):
        print("good bye")
        sys.exit(3)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no signals that kill")
def test_a_process_that_dies_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_exits.py").write_text(EXITS)
    monkeypatch.syspath_prepend(tmp_path)
    data = trial_rows()
    one = replace(data, trials=data.trials[:1])
    heads = [HeadRequest(f"own_exits:{name}") for name in ("Dying", "Ending", "Leaving")]
    found = fit_heads({each: load_head(each.name) for each in heads}, one, FitRules(timeout=60))
    assert [fitted.status for (fitted,) in found.values()] == [
        "was killed by signal 9 while it was fitted (out of memory?)",
        "ended with exit code 5 while it was fitted",
        "failed: SystemExit: 3",
    ]


SCRIPT = """
import sys, time
import numpy as np
from feature_sets import draw_columns
from pipeline.evaluation.fitting import FitRules, TrialRows, fit_heads
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.views import ViewRows
from pipeline.heads.registry import HeadRequest, load_head

def fit():
    labels = np.arange(12) % 2
    trials = Protocol(folds=3).divide(draw_columns(labels.tolist()), ("a", "b")).trials[:1]
    data = TrialRows(np.zeros((12, 2), np.float32), labels, 2, trials, ViewRows.plain(12))
    heads = {HeadRequest("knn"): load_head("knn")}
    (found,) = fit_heads(heads, data, FitRules(timeout=60)).values()
    print(found[0].status)
"""
UNGUARDED = SCRIPT + "fit()"
INTERRUPTED = f"""{SCRIPT}
if __name__ == "__mp_main__":
    print("importing", flush=True)
    time.sleep(1)
if __name__ == "__main__":
    try:
        fit()
    except KeyboardInterrupt:
        sys.exit(130)
"""


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(script)
    tests = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, folder / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))},
    )


def test_a_script_without_a_guard_is_told_what_it_needs(tmp_path: Path) -> None:
    out, _ = start(tmp_path, UNGUARDED).communicate(timeout=60)
    assert out == "its process did not start: a script needs if __name__ == '__main__'\n"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes")
def test_ctrl_c_while_a_process_imports_shows_no_traceback(tmp_path: Path) -> None:
    script = start(tmp_path, INTERRUPTED)
    assert script.stdout is not None
    assert script.stdout.readline() == "importing\n"
    os.killpg(script.pid, signal.SIGINT)
    out, errors = script.communicate(timeout=60)
    assert (out, errors, script.returncode) == ("", "", 130)


def test_a_head_that_exits_or_prints_neither_ends_the_run_nor_reaches_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_leaving.py").write_text(f"{EXITS}\nprint('imported')\n")
    (tmp_path / "own_gone.py").write_text("import sys\nsys.exit('no guard')\n")
    monkeypatch.syspath_prepend(tmp_path)
    request = HeadRequest("own_leaving:Leaving")
    fitted = fit_heads({request: load_head(request.name)}, trial_rows(), FitRules())[request]
    assert {each.status for each in fitted} == {"failed: SystemExit: 3"}
    assert capsys.readouterr() == ("", "imported\n" + 3 * "good bye\n")
    with pytest.raises(UsageError, match="cannot import own_gone: SystemExit: no guard"):
        load_head("own_gone:head")


def test_a_head_that_cannot_leave_its_process_has_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_with_lambda.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    request = HeadRequest("own_with_lambda:with_lambda")
    head = load_head(request.name)
    data = trial_rows()
    assert fit_heads({request: head}, data, FitRules())[request][0].choices
    fitted = fit_heads({request: head}, data, FitRules(timeout=60))[request][0]
    assert fitted.status.startswith("cannot be sent to another process")
