"""A loaded bundle equals the saved one bit for bit, and a run's models are found by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_sets import bundle_of, draw_rows, fit_head, scores_of

from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.evaluation.search import parameter_count
from pipeline.heads.calibration import class_scores
from pipeline.heads.registry import HEADS
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.runs import find_bundle, newest_run

ROW = {"input": "pooled", "layer": "l", "cache": "c.h5", "recommended": False}


@pytest.mark.parametrize("name", HEADS)
def test_loaded_head_has_the_scores_of_the_saved_one(name: str, tmp_path: Path) -> None:
    for class_count in (2, 4):
        bundle = bundle_of(fit_head(name, class_count), class_count)
        save_bundle(bundle, tmp_path / "model.skops")
        loaded = load_bundle(tmp_path / "model.skops")
        np.testing.assert_array_equal(scores_of(loaded), scores_of(bundle))
        assert parameter_count(loaded.estimator) == parameter_count(bundle.estimator)
        assert replace(loaded, estimator=bundle.estimator) == bundle
        no_rows = draw_rows().features[:0]
        assert class_scores(loaded.estimator, no_rows, class_count).shape == (0, class_count)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run that recommends knn and could not save ``mine:make``."""
    (tmp_path / "run" / "models").mkdir(parents=True)
    estimator = fit_head("majority")
    rows: list[dict[str, Any]] = []
    for stem, head, kind in (
        ("ridge-2", "ridge", "flat"),
        ("ridge", "ridge", "pooled"),
        ("knn", "knn", "pooled"),
    ):
        model = f"models/{stem}.skops"
        save_bundle(bundle_of(estimator, head=head), tmp_path / "run" / model)
        rows.append(ROW | {"head": head, "input": kind, "model": model})
    rows[2]["recommended"] = True
    rows.append(ROW | {"head": "mine:make", "model": ""})
    not_saved = [ROW | {"head": "mine:make", "reason": "it is code"}]
    write_results(tmp_path / "run", {"run": {"not_saved": not_saved}, "rows": rows})
    return tmp_path / "run"


def write_results(run: Path, document: Any) -> None:
    (run / "results.json").write_text(json.dumps(document))


def test_a_model_is_found_by_run_head_input_or_file(run: Path) -> None:
    def stem(head: str | None = None) -> str:
        return find_bundle(run, head).stem

    assert stem() == "knn"
    assert stem("ridge") == "ridge-2"  # the first row: the best on validation
    assert stem("ridge:pooled") == "ridge"
    assert stem("ridge-2") == "ridge-2"
    file = run / "models" / "knn.skops"
    assert find_bundle(file) == file
    assert load_bundle(file).head == "knn"


def test_a_missing_head_is_refused_with_the_names_of_the_saved_ones(run: Path) -> None:
    for head, message in (
        ("mine:make", r"mine:make was not saved \(it is code\); saved heads: ridge, knn"),
        ("lda", "has no head lda; saved heads: ridge, knn"),
        ("../../knn", "has no head"),
    ):
        with pytest.raises(UsageError, match=message):
            find_bundle(run, head)


def test_missing_runs_and_results_with_foreign_paths_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --head knn"):
        find_bundle(run / "models" / "knn.skops", "knn")
    with pytest.raises(NoInputError, match="does not exist"):
        find_bundle(tmp_path / "elsewhere")
    with pytest.raises(NoInputError, match="not a run"):
        find_bundle(tmp_path)
    with pytest.raises(NoInputError, match="does not exist"):
        load_bundle(tmp_path / "elsewhere")
    outside = ROW | {"head": "knn", "model": "models/../../knn.skops", "recommended": True}
    for document in (
        {"run": {}, "rows": [outside]},
        {"run": {}, "rows": [ROW | {"head": 3}]},
        {"run": {}, "rows": {"head": 3}},
        {"rows": []},
        [],
    ):
        write_results(run, document)
        with pytest.raises(BadDataError, match=r"not a results\.json of classify"):
            find_bundle(run)


def test_a_run_of_an_older_version_without_models_says_so(run: Path) -> None:
    write_results(run, {"run": {}, "rows": [ROW | {"head": "knn", "recommended": True}]})
    with pytest.raises(UsageError, match="by an older version"):
        find_bundle(run)


def test_the_newest_run_is_the_one_written_last(run: Path, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path) == run
    with pytest.raises(NoInputError, match=r"run python -m pipeline\.classify first"):
        newest_run(tmp_path / "empty")


def test_the_newest_run_with_a_saved_head_is_used_and_named(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "unsaved").mkdir()
    rows = [ROW | {"head": "knn", "recommended": True}]
    write_results(tmp_path / "unsaved", {"run": {}, "rows": rows})
    assert newest_run(tmp_path) == run
    assert f"{tmp_path / 'unsaved'} has no saved head: using {run}" in caplog.text
    shutil.rmtree(run / "models")
    assert newest_run(tmp_path) == tmp_path / "unsaved"


def test_a_link_out_of_the_run_is_refused_and_one_inside_it_is_followed(
    run: Path, tmp_path: Path
) -> None:
    model = run / "models" / "knn.skops"
    outside = model.rename(tmp_path / "outside.skops")
    for target in (outside, model):  # elsewhere, and itself
        model.unlink(missing_ok=True)
        model.symlink_to(target)
        with pytest.raises(BadDataError, match="a link out of the run") as caught:
            find_bundle(run)
        assert caught.value.exit_code == 65
    model.unlink()
    model.symlink_to("ridge.skops")
    linked = tmp_path / "linked"
    linked.symlink_to(run)
    assert load_bundle(find_bundle(linked)).head == "ridge"
