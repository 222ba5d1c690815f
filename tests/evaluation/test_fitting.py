"""Heads are fitted in parallel; one that takes too long is stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_columns, draw_features
from sklearn.dummy import DummyClassifier

from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation import fitting
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.fitting import Fits, fit_heads
from pipeline.evaluation.protocol import EvaluationProtocol
from pipeline.evaluation.rows import TrialRows, ViewRows
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import HEADS, Head, load_head

LABELS = np.asarray(alternating_labels(120))


def trial_rows(folds: int = 3) -> TrialRows:
    columns = draw_columns(LABELS.tolist())
    return TrialRows(
        features=draw_features(LABELS, (10,)),
        labels=LABELS,
        class_count=2,
        trials=EvaluationProtocol(folds=folds).plan_trials(columns, ("cats", "dogs")).trials,
        rows=ViewRows.unaugmented(len(LABELS)),
    )


def fit(name: str, data: TrialRows, **options: object) -> list[Fits]:
    """Fit one head on each trial."""
    request = HeadRequest(name)
    config = ClassifyConfig(**options)  # type: ignore[arg-type]
    return fit_heads({request: load_head(name)}, data, config)[request]


class Slow(DummyClassifier):  # type: ignore[misc]
    """Waits, and counts how many wait at the same time."""

    running = most = 0
    lock = threading.Lock()

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Slow":
        head = type(self)
        with self.lock:
            head.running += 1
            head.most = max(head.most, head.running)
        time.sleep(0.1)
        with self.lock:
            head.running -= 1
        return super().fit(X, y)  # type: ignore[no-any-return]


def test_heads_run_on_every_core_and_stochastic_ones_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Beside(Slow):
        pass

    class Alone(Slow):
        pass

    monkeypatch.setattr(fitting, "usable_cores", lambda: 3)
    monkeypatch.setitem(HEADS, "beside", Head(Beside))
    monkeypatch.setitem(HEADS, "alone", Head(Alone, is_stochastic=True))
    heads = {HeadRequest(name): HEADS[name] for name in ("beside", "alone")}
    fits = fit_heads(heads, trial_rows(), ClassifyConfig())
    assert [len(of_head) for of_head in fits.values()] == [3, 3]
    assert (Beside.most, Alone.most) == (3, 1)


def test_a_head_that_fails_expectedly_has_a_status_and_a_bug_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(DummyClassifier):  # type: ignore[misc]
        error: Exception = BadDataError("too many rows")

        def fit(self, *arguments: object) -> None:
            raise self.error

    monkeypatch.setitem(HEADS, "failing", Head(Failing))
    assert fit("failing", trial_rows()) == ["too many rows"] * 3
    Failing.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fit("failing", trial_rows())


def test_a_head_that_cannot_balance_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "near.py").write_text(
        "from sklearn.neighbors import KNeighborsClassifier as head\n"
    )
    for name in ("near:head", "knn", "prototype", "logistic", "dense"):
        config = ClassifyConfig(balance=True, dense=DenseConfig(epochs=1))
        request = HeadRequest(name)
        fit_heads({request: load_head(name)}, trial_rows(), config)
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} has no class weights; it is fitted without" for name in ("near:head", "knn")
    ]


HEADS_OF_OTHERS = """
import os, signal, sys, time
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

class Endless(DummyClassifier):
    def fit(self, *arguments, **more):
        time.sleep(600)

class Killed(DummyClassifier):
    def fit(self, *arguments, **more):
        os.kill(os.getpid(), signal.SIGKILL)

class Ending(DummyClassifier):
    def fit(self, *arguments, **more):
        os._exit(5)

class Leaving(DummyClassifier):
    def fit(self, *arguments, **more):
        print("good bye")
        sys.exit(3)

def with_lambda():
    return make_pipeline(FunctionTransformer(lambda rows: rows), LogisticRegression())
"""


def fit_custom(folder: Path, head: str, **options: object) -> list[Fits]:
    """Fit a custom head on one trial."""
    (folder / "custom.py").write_text(HEADS_OF_OTHERS)
    data = trial_rows()
    return fit(f"custom:{head}", replace(data, trials=data.trials[:1]), **options)


@pytest.mark.slow
def test_a_head_within_its_time_limit_is_fitted_and_any_other_is_stopped(tmp_path: Path) -> None:
    (free,), (limited,) = (
        fit_custom(tmp_path, "LogisticRegression", **options) for options in ({}, {"timeout": 60})
    )
    assert not isinstance(free, str)
    assert not isinstance(limited, str)
    np.testing.assert_array_equal(free[0].validation_scores, limited[0].validation_scores)
    assert fit_custom(tmp_path, "Endless", timeout=0.1) == ["stopped after 0.1 s"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no signals that kill")
@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Killed", "was killed by signal 9 during the fit (out of memory?)"),
        ("Ending", "ended with exit code 5 during the fit"),
        ("Leaving", "failed: SystemExit: 3"),
        ("with_lambda", "cannot be sent to another process"),
    ],
)
def test_a_process_without_a_fit_gives_a_status(tmp_path: Path, head: str, status: str) -> None:
    (reason,) = fit_custom(tmp_path, head, timeout=60)
    assert isinstance(reason, str)
    assert reason.startswith(status)


def test_a_custom_head_that_exits_or_prints_neither_ends_the_run_nor_reaches_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_custom(tmp_path, "Leaving") == ["failed: SystemExit: 3"]
    assert capsys.readouterr() == ("", "good bye\n")
    (tmp_path / "exits.py").write_text("import sys\nprint('imported')\nsys.exit('no guard')\n")
    with pytest.raises(UsageError, match="cannot import exits: SystemExit: no guard"):
        load_head("exits:head")
    assert capsys.readouterr() == ("", "imported\n")


SCRIPT = """
import sys, time
import numpy as np
from feature_sets import draw_columns
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.fitting import fit_heads
from pipeline.evaluation.protocol import EvaluationProtocol
from pipeline.evaluation.rows import TrialRows, ViewRows
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import load_head

def fit():
    labels = np.arange(12) % 2
    columns = draw_columns(labels.tolist())
    trials = EvaluationProtocol(folds=3).plan_trials(columns, ("a", "b")).trials[:1]
    data = TrialRows(np.zeros((12, 2), np.float32), labels, 2, trials, ViewRows.unaugmented(12))
    heads = {HeadRequest("knn"): load_head("knn")}
    (fits,) = fit_heads(heads, data, ClassifyConfig(timeout=60)).values()
    print(fits[0])
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


@pytest.mark.slow
def test_a_script_without_a_guard_gets_a_cure(tmp_path: Path) -> None:
    out, _ = start(tmp_path, UNGUARDED).communicate(timeout=60)
    assert out == "did not start its process: a script needs if __name__ == '__main__'\n"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes")
def test_ctrl_c_while_a_process_imports_shows_no_traceback(tmp_path: Path) -> None:
    script = start(tmp_path, INTERRUPTED)
    assert script.stdout is not None
    assert script.stdout.readline() == "importing\n"
    os.killpg(script.pid, signal.SIGINT)
    out, errors = script.communicate(timeout=60)
    assert (out, errors, script.returncode) == ("", "", 130)
