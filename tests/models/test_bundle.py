"""What is saved comes back bit for bit, and a run's models are found by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_sets import bundle_of, draw_rows, fit_head, scores_of
from pipeline.heads.linear import LinearClassifier
from pipeline.heads.majority import MajorityClassifier
from pipeline.models.classifiers import FORMS, UnsavableError

from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.heads.calibration import Calibrated
from pipeline.heads.registry import HEADS
from pipeline.models.bundle import find_bundle, load_bundle, newest_run, rows_of, save_bundle


class Foreign(MajorityClassifier):
    """Not of the list, though it looks like one that is."""


ROW = {"input": "pooled", "layer": "l", "cache": "c.h5", "recommended": False}


@pytest.mark.parametrize("class_count", [2, 4])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_comes_back_with_the_same_scores(
    name: str, class_count: int, tmp_path: Path
) -> None:
    bundle = bundle_of(fit_head(name, class_count), class_count)
    save_bundle(bundle, tmp_path / "model.skops")
    loaded = load_bundle(tmp_path / "model.skops")
    np.testing.assert_array_equal(scores_of(loaded), scores_of(bundle))
    assert loaded.classifier.parameters == bundle.classifier.parameters
    assert replace(loaded, classifier=bundle.classifier) == bundle


def test_every_kind_of_classifier_that_has_a_form_is_tried_above() -> None:
    used: set[str] = set()
    for name in HEADS:
        classifier = fit_head(name)
        used.add(f"{type(classifier).__module__}:{type(classifier).__name__}")
        if isinstance(classifier, Calibrated):
            inner = classifier.classifier
            used.add(f"{type(inner).__module__}:{type(inner).__name__}")
    scaler = FORMS["scaler"].source  # a part of svm_rbf
    top_block = FORMS["top_block"].source  # in test_top_block.py
    assert used | {scaler, top_block} == {form.source for form in FORMS.values()}


def test_rows_are_flattened_or_averaged() -> None:
    maps = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
    np.testing.assert_array_equal(rows_of(maps, "flat"), maps.reshape(2, 24))
    np.testing.assert_array_equal(rows_of(maps, "pooled"), maps.mean(axis=(1, 2)))
    np.testing.assert_array_equal(rows_of(maps[:, 0, 0], "pooled"), maps[:, 0, 0])


def test_what_has_no_safe_form_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    for classifier, reason in (
        (Foreign(np.ones(2) / 2), "has no form on disk"),
        (LinearClassifier(np.full((1, 12), np.nan), np.zeros(1), True), "not all finite"),
        (LinearClassifier(np.full((1, 12), 1e31), np.zeros(1), True), "within 1e.30"),
        (Calibrated(MajorityClassifier(np.ones(2) / 2), 1e7), "temperature is not within"),
    ):
        with pytest.raises(UnsavableError, match=reason):
            save_bundle(bundle_of(classifier), path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose knn is recommended and whose ``mine:make`` could not be saved."""
    (tmp_path / "run" / "models").mkdir(parents=True)
    classifier = fit_head("majority")
    rows: list[dict[str, Any]] = []
    for stem, head, kind in (
        ("ridge-2", "ridge", "flat"),
        ("ridge", "ridge", "pooled"),
        ("knn", "knn", "pooled"),
    ):
        model = f"models/{stem}.skops"
        save_bundle(bundle_of(classifier, head=head), tmp_path / "run" / model)
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


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("mine:make", r"mine:make was not saved \(it is code\); saved are: ridge, knn"),
        ("lda", "has no head lda; saved are: ridge, knn"),
        ("../../knn", "has no head"),
    ],
)
def test_a_head_that_is_not_there_is_told_with_those_that_are(
    run: Path, head: str, told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        find_bundle(run, head)


def test_no_run_no_results_and_results_that_lead_elsewhere_are_refused(
    run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="leave out --head knn"):
        find_bundle(run / "models" / "knn.skops", "knn")
    with pytest.raises(NoInputError, match="no run of classify"):
        find_bundle(tmp_path / "elsewhere")
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
        with pytest.raises(BadDataError, match=r"no results\.json of classify"):
            find_bundle(run)


def test_a_run_of_before_models_were_saved_says_so(run: Path) -> None:
    write_results(run, {"run": {}, "rows": [ROW | {"head": "knn", "recommended": True}]})
    with pytest.raises(UsageError, match="by an older version"):
        find_bundle(run)


def test_the_newest_run_is_the_one_written_last(run: Path, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path) == run
    with pytest.raises(NoInputError, match=r"run python -m pipeline\.classify first"):
        newest_run(tmp_path / "empty")


def test_predicting_of_no_rows_gives_none() -> None:
    nothing = draw_rows().features[:0]
    for name in ("random_forest", "knn", "logistic"):
        assert fit_head(name).scores(nothing).shape == (0, 2)


def test_a_link_out_of_the_run_is_refused_and_one_within_it_is_followed(
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
