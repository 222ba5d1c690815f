"""Heads are fitted side by side, each thing once; one that takes too long is stopped."""

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
        rows=ViewRows.plain(len(LABELS)),
    )


def fit(name: str, data: TrialRows, **options: object) -> list[Fits]:
    """What one head gives on each trial."""
    request = HeadRequest(name)
    config = ClassifyConfig(**options)  # type: ignore[arg-type]
    return fit_heads({request: load_head(name)}, data, config)[request]


class Slow(DummyClassifier):  # type: ignore[misc]
    """Waits, and notes how many wait at the same time."""

    running = most = 0
    lock = threading.Lock()

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Slow":
        kind = type(self)
        with self.lock:
            kind.running += 1
            kind.most = max(kind.most, kind.running)
        time.sleep(0.1)
        with self.lock:
            kind.running -= 1
        return super().fit(X, y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("cores", [1, 3])
def test_heads_run_on_every_core_and_stochastic_ones_alone(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Beside(Slow):
        pass

    class Alone(Slow):
        pass

    monkeypatch.setattr(fitting, "usable_cores", lambda: cores)
    monkeypatch.setitem(HEADS, "beside", Head(Beside))
    monkeypatch.setitem(HEADS, "alone", Head(Alone, is_stochastic=True))
    heads = {HeadRequest(name): HEADS[name] for name in ("beside", "alone")}
    found = fit_heads(heads, trial_rows(), ClassifyConfig())
    assert [len(fits) for fits in found.values()] == [3, 3]
    assert (Beside.most, Alone.most) == (cores, 1)


def test_a_limit_on_time_changes_no_result() -> None:
    data = trial_rows()
    for free, limited in zip(fit("logistic", data), fit("logistic", data, timeout=60), strict=True):
        assert not isinstance(free, str)
        assert not isinstance(limited, str)
        np.testing.assert_array_equal(free[0].validation_scores, limited[0].validation_scores)


def test_a_head_that_takes_too_long_is_stopped() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 6000)
    data = TrialRows(
        features=random.normal(size=(6000, 400)).astype(np.float32),
        labels=labels,
        class_count=2,
        trials=EvaluationProtocol(folds=3)
        .plan_trials(draw_columns(labels.tolist()), ("a", "b"))
        .trials[:1],
        rows=ViewRows.plain(6000),
    )
    started = time.monotonic()
    assert fit("random_forest", data, timeout=0.3) == ["stopped after 0.3 s"]
    assert time.monotonic() - started < 60


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
    found = [fit(f"own_exits:{name}", one, timeout=60) for name in ("Dying", "Ending", "Leaving")]
    assert found == [
        ["was killed by signal 9 while it was fitted (out of memory?)"],
        ["ended with exit code 5 while it was fitted"],
        ["failed: SystemExit: 3"],
    ]


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
    data = TrialRows(np.zeros((12, 2), np.float32), labels, 2, trials, ViewRows.plain(12))
    heads = {HeadRequest("knn"): load_head("knn")}
    (found,) = fit_heads(heads, data, ClassifyConfig(timeout=60)).values()
    print(found[0])
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
    assert fit("own_leaving:Leaving", trial_rows()) == ["failed: SystemExit: 3"] * 3
    assert capsys.readouterr() == ("", "imported\n" + 3 * "good bye\n")
    with pytest.raises(UsageError, match="cannot import own_gone: SystemExit: no guard"):
        load_head("own_gone:head")


def test_a_head_that_cannot_leave_its_process_has_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_with_lambda.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    name, data = "own_with_lambda:with_lambda", trial_rows(3)
    assert not isinstance(fit(name, data)[0], str)
    status = fit(name, replace(data, trials=data.trials[:1]), timeout=60)[0]
    assert isinstance(status, str)
    assert status.startswith("cannot be sent to another process")
