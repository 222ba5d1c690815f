"""``python -m pipeline.classify`` as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import assert_one_line, modules_loaded_by, run_command
from feature_sets import alternating_labels, folder_splits, write_cache
from synthetic_images import make_image_folder

LABELS = alternating_labels(100)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(
        tmp_path / "cache" / "synthetic.h5", labels=LABELS, splits=folder_splits(100)
    )


def test_newest_cache_is_used_and_its_run_is_written(cache: Path) -> None:
    old = write_cache(cache.with_name("old.h5"), labels=LABELS)
    os.utime(old, (1, 1))
    finished = run_command("classify", "--heads", "logistic,majority")
    assert "using the newest cache: cache/synthetic.h5" in finished.stderr
    lines = [line for line in finished.stdout.splitlines() if not line.startswith("note: ")]
    assert lines[0].split()[:2] == ["head", "test"]
    assert {line.split()[0] for line in lines[2:4]} == {"logistic", "majority"}
    folder = Path(lines[-1].removeprefix("written to "))
    written = {path.name for path in folder.iterdir()}
    assert written == {
        "predictions.csv",
        "results.csv",
        "results.json",
        "results.md",
        "settings.csv",
        "suspects.csv",
        "confusion.png",
        "report.html",
        "models",
    }
    models = sorted(path.name for path in (folder / "models").iterdir())
    assert models == ["logistic.skops", "majority.skops"]


def test_columns_are_chosen_and_explained(cache: Path) -> None:
    finished = run_command(
        "classify", cache, "--heads", "logistic", "--columns", "verdict,log-loss", "--no-audit"
    )
    header, _, row, legend, *_ = finished.stdout.splitlines()
    assert header.split() == ["verdict", "log", "loss"]
    assert row.split()[:2] == ["best", "*"]
    assert legend.startswith("*: recommended")


def test_an_unknown_column_is_refused_before_the_work(cache: Path) -> None:
    finished = run_command("classify", cache, "--columns", "head,accuracy", check=2)
    assert "--columns has no accuracy; choose from head, test, " in finished.stderr
    assert not Path("results").exists()


def test_dense_head_logs_each_epoch_and_draws_curves(cache: Path) -> None:
    finished = run_command(
        "classify", cache, "--heads", "dense", "--epochs", "3", "--units", "4", "--verbose"
    )
    for epoch in ("epoch 1/3", "epoch 2/3", "epoch 3/3"):
        assert epoch in finished.stderr
    assert "epochs=3 units=4" in finished.stdout
    (folder,) = Path("results").iterdir()
    assert (folder / "curves.png").is_file()


def test_json_on_stdout_equals_results_json(cache: Path) -> None:
    finished = run_command("classify", cache, "--heads", "ridge", "--json", "--out", "elsewhere")
    document = json.loads(finished.stdout)
    (folder,) = Path("elsewhere").iterdir()
    assert document == json.loads((folder / "results.json").read_text("utf-8"))
    assert document["run"]["command"].endswith("--heads ridge --json --out elsewhere")
    assert document["run"]["folder"] == folder.as_posix()


@pytest.mark.slow
def test_heads_of_scikit_learn_do_not_load_tensorflow(cache: Path) -> None:
    heads = "fast,svm_rbf"
    loaded = modules_loaded_by("classify", cache, "--heads", heads, "--no-audit")
    assert "sklearn" in loaded
    assert not {"tensorflow", "keras"} & loaded


def test_help_loads_no_library() -> None:
    loaded = modules_loaded_by("classify", "--help")
    assert not {"numpy", "h5py", "sklearn", "tensorflow", "keras", "matplotlib", "rich"} & loaded
    finished = run_command("classify", "--help")
    assert "example:\n  python -m pipeline.classify" in finished.stdout


def test_views_are_counted_in_log_table_and_report(tmp_path: Path) -> None:
    cache = write_cache(
        tmp_path / "c.h5", labels=LABELS, splits=folder_splits(100), views=4, tta=True
    )
    plain = write_cache(tmp_path / "d.h5", labels=LABELS, splits=folder_splits(100))
    refused = run_command("classify", plain, "--heads", "ridge", "--tta", check=2)
    assert f"{cache} does: name it" in assert_one_line(refused)
    finished = run_command("classify", cache, "--heads", "ridge", "--views", "2", "--tta")
    assert "train       30 cats, 30 dogs × 3 views" in finished.stderr
    assert "test        10 cats, 10 dogs × 5 views" in finished.stderr
    folder = Path(finished.stdout.splitlines()[-1].removeprefix("written to "))
    (row,) = json.loads((folder / "results.json").read_text("utf-8"))["rows"]
    assert (row["views"], row["tta"]) == (2, 4)
    trained = "Heads are trained on each training image and 2 augmented views of it; train"
    averaged = "Probabilities on validation and test are means over each image and 4 augmented"
    counts = {
        "results.md": "(train 60 × 3 views, validation 20 × 5 views, test 20 × 5 views)",
        "report.html": "60 images of 2 classes, 30 each × 3 views",
    }
    for name, count in counts.items():
        text = (folder / name).read_text("utf-8")
        assert trained in text
        assert averaged in text
        assert count in text


CACHE = "cache/synthetic.h5"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("nowhere.h5", 66, "run python -m pipeline.extract first"),
        ("--cache-dir empty", 66, "no feature cache in empty/"),
        ("text.h5", 65, "not a feature cache"),
        (f"{CACHE} --heads logistc", 2, "did you mean logistic?"),
        (f"{CACHE} --layer block9", 2, "choose from block5_pool"),
        (f"{CACHE} --split 60/40", 2, "such as 60/20/20"),
        (f"{CACHE} --cv 2", 2, "needs 3 folds"),
        (f"{CACHE} --cv 90", 65, "try --cv 50"),
        (f"{CACHE} --group folder", 2, "matches none of 100 images"),
        (f"{CACHE} --group foldr", 2, "did you mean folder?"),
        (f"{CACHE} --head nothing", 2, "expected MODULE:FACTORY"),
        (f"{CACHE} --head gone:head", 2, "gone"),
        (f"{CACHE} --labels gone.csv", 66, "gone.csv"),
        (f"{CACHE} --labels text.h5", 65, "text.h5"),
        (f"{CACHE} other.h5", 65, "compare caches of the same classes"),
        ("one.h5", 65, "two classes or more"),
        ("few.h5", 65, "add images"),
        (f"{CACHE} --views 1", 2, "extract with --views 1"),
        (f"{CACHE} --tta", 2, "extract with --views and --tta"),
        (f"{CACHE} --out text.h5", 73, "choose another --out"),
        (f"{CACHE} --save none --check", 2, "Leave out one"),
    ],
)
def test_invalid_input_is_one_line_and_an_exit_code(
    cache: Path, words: str, code: int, message: str
) -> None:
    Path("text.h5").write_text("no HDF5")
    write_cache(Path("other.h5"), labels=LABELS, classes=("cats", "frogs"))
    write_cache(Path("one.h5"), labels=[0] * 20, classes=("cats",))
    write_cache(Path("few.h5"), labels=[0, 1, 0])
    finished = run_command("classify", *words.split(), check=code)
    assert message in assert_one_line(finished)


def test_refused_options_do_not_wait_for_scikit_learn(cache: Path) -> None:
    for words, code in (
        ("--split 60/20", 2),
        ("--cv 1", 2),
        ("--group folders", 2),
        ("--labels gone.csv", 66),
        ("--head gone:head", 2),
        ("--layer block9", 2),
    ):
        loaded = modules_loaded_by("classify", cache, *words.split(), check=code)
        assert "sklearn" not in loaded, words


def test_missing_class_folder_is_named_with_a_cure_that_works(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "set", per_class=6, splits=("train", "val", "test"))
    shutil.rmtree(root / "val/striped")
    run_command("extract", root, "--base", "pixels")
    message = assert_one_line(run_command("classify", "--heads", "majority", check=65))
    assert "val/ has no image of striped: add images in val/striped, or cross-val" in message
    (option,) = re.findall(r"--cv \d", message)
    run_command("classify", "--heads", "majority", *option.split())


def test_invalid_options_are_usage_errors() -> None:
    for words in (
        "--epochs 0", "--dropout 1", "--learning-rate -1", "--optimizer adamw", "--smooth x",
        "--views -1", "--unknown",
    ):  # fmt: skip
        finished = run_command("classify", *words.split(), check=2)
        assert "Traceback" not in finished.stderr
        assert "error: " in finished.stderr


DELETING_HEAD = """
from pathlib import Path
from sklearn.dummy import DummyClassifier

class Deleting(DummyClassifier):
    def predict_proba(self, X):
        Path("cache/synthetic.h5").unlink(missing_ok=True)
        return super().predict_proba(X)
"""


def test_a_failed_audit_is_a_line_and_the_table_is_complete(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as of a large cache, whose features the audit reads again
    monkeypatch.setattr("pipeline.evaluation.audit_features.MAX_BYTES", 0)
    Path("mine.py").write_text(DELETING_HEAD)
    words = ("--heads", "majority", "--head", "mine:Deleting")
    finished = run_command("classify", cache, *words)  # the cache is gone when the audit begins
    (folder,) = Path("results").iterdir()
    document = json.loads((folder / "results.json").read_text("utf-8"))
    (line,) = (line for line in document["run"]["notices"] if line.startswith("the audit failed ("))
    assert line.endswith("; the table is complete")
    assert f"note: {line}" in finished.stdout
    assert "Traceback" not in finished.stderr
    assert {row["head"] for row in document["rows"]} == {"majority", "mine:Deleting"}
    assert line in (folder / "results.md").read_text("utf-8").replace("\\", "")
    report = (folder / "report.html").read_text("utf-8")
    assert report.count("the audit failed") == 4  # the notice, and in place of three sections
    assert "the section Map of the features of the report failed" in report
    assert (folder / "models" / "majority.skops").is_file()


def interrupt_classify(folder: Path, *words: str, after: str) -> tuple[str, float]:
    """Send SIGINT half a second after a line of stderr; return what follows, and the seconds."""
    random = np.random.default_rng(0)
    cache = write_cache(
        folder / "large.h5",
        labels=alternating_labels(4000),
        splits=folder_splits(4000),
        layers={"a": random.random((4000, 500), np.float32)},
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.classify", cache, *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    while not process.stderr.readline().startswith(after):
        pass
    time.sleep(0.5)
    interrupted = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    return stderr, time.monotonic() - interrupted


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.slow
def test_interrupted_fit_ends_at_once(tmp_path: Path) -> None:
    stderr, seconds = interrupt_classify(
        tmp_path, "--heads", "majority,linear_svm,svm_rbf", after="fitting 3 heads"
    )
    assert stderr == "error: interrupted\n"
    assert seconds < 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_interrupted_audit_leaves_the_table_and_says_where(tmp_path: Path) -> None:
    stderr, _ = interrupt_classify(tmp_path, "--heads", "majority", after="audit:")
    (folder,) = Path("results").iterdir()
    *audit, last = stderr.splitlines()
    assert all(line.startswith("audit: ") for line in audit)
    assert last == (
        f"error: interrupted before the report; the table is complete in {folder.as_posix()}"
    )
    assert json.loads((folder / "results.json").read_text("utf-8"))["rows"]
    assert {path.name for path in folder.iterdir()} == {
        "predictions.csv", "results.csv", "results.json", "results.md", "settings.csv",
        "confusion.png", "models",
    }  # fmt: skip
