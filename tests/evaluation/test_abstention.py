"""Coverage on test, and classes that are left out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import run_command
from feature_sets import alternating_labels, folder_splits, write_cache
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pipeline.cache.file import read_table
from pipeline.evaluation.abstention import leave_classes_out
from pipeline.evaluation.caches import open_caches
from pipeline.evaluation.compare import compare_heads
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.result import Comparison
from pipeline.heads.scaler import CommonScaler
from pipeline.models.neighbors import NEAREST, CachedNeighbors
from pipeline.models.rejection import Rejector
from pipeline.report.html import report_html

CLASSES = ("ant", "bee", "cat")
CONFIG = ClassifyConfig(heads="logistic", seed=0)


def write(
    class_count: int = 3, *, count: int = 600, signal: float = 1.2, **options: object
) -> Path:
    return write_cache(
        Path("set.h5"),
        labels=alternating_labels(count, class_count),
        classes=CLASSES[:class_count],
        shape=(24,),
        signal=signal,
        **options,
    )


def test_coverage_on_test_is_as_promised_over_many_divisions() -> None:
    path = write(signal=0.6)
    kept = total = 0
    gains = []
    for seed in range(8):
        outcome = compare_heads(
            path, CONFIG, split="30/35/35", split_seed=seed, audit=False, keep=False
        ).shown
        assert outcome.conformity is not None
        is_kept = outcome.conformity > 1 - 0.95
        kept, total = kept + is_kept.sum(), total + len(is_kept)
        assert outcome.result.coverage == is_kept.mean()
        assert outcome.result.kept_accuracy == outcome.test.correct[is_kept].mean()
        gains.append(outcome.result.kept_accuracy - outcome.result.test_accuracy)
    # 210 images of validation: of one division, thresholds vary by more than the binomial interval
    low, high = (binom.ppf(share, total // 2, 0.95) / (total // 2) for share in (0.001, 0.999))
    assert low <= kept / total <= high
    assert np.mean(gains) > 0


def test_folds_are_calibrated_on_the_predictions_of_test_and_one_split_on_validation() -> None:
    path = write(count=150)
    for options, part in (({"cv": 3}, "test"), ({"split": "40/30/30"}, "validation")):
        outcome = compare_heads(path, CONFIG, audit=False, **options).shown
        predictions = getattr(outcome, part)
        calibration = outcome.bundle.calibration_set
        assert len(calibration) == len(predictions)
        np.testing.assert_array_equal(calibration.labels, predictions.labels)
        np.testing.assert_array_equal(calibration.probability, predictions.scores.max(axis=1))
        rows = np.arange(len(predictions))
        expected = predictions.scores[rows, predictions.labels]
        np.testing.assert_array_equal(calibration.label_probability, expected)
        assert len(outcome.conformity) == len(outcome.test)


@pytest.mark.parametrize("many", [100, 20_000])  # rows: more are taken from features in memory
def test_left_out_class_is_measured_as_by_hand(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr("pipeline.evaluation.abstention.MANY_ROWS", many)
    path = write(splits=folder_splits(600))
    comparison = compare_heads(path, CONFIG)
    table = read_table(path)
    features, labels, splits = (
        table.features("block5_pool"), table.columns.labels, table.columns.splits
    )  # fmt: skip
    left_out = {each.label: each for each in comparison.findings.left_out}
    assert sorted(left_out) == [0, 1, 2]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    C = comparison.shown.setting["logisticregression__C"]
    for label, found in left_out.items():
        train = (splits == 1) & (labels != label)
        test = np.flatnonzero(splits == 3)
        scaler = CommonScaler().fit(features[train])
        head = LogisticRegression(C=C, tol=1e-8, max_iter=10_000)
        head.fit(scaler.transform(features[train]), labels[train])
        doubt = -head.predict_proba(scaler.transform(features[test])).max(axis=1)
        similar = unit[test].astype(np.float64) @ unit.T
        similar[:, labels == label] = -1
        similar[np.arange(len(test)), test] = -1
        distance = 1 - -np.sort(-similar, axis=1)[:, :NEAREST].mean(axis=1)
        is_left_out = labels[test] == label
        assert found.images == is_left_out.sum()
        assert found.confidence == pytest.approx(roc_auc_score(is_left_out, doubt), abs=1e-3)
        assert found.distance == pytest.approx(roc_auc_score(is_left_out, distance), abs=1e-6)
        assert found.joint > min(found.confidence, found.distance)
    assert comparison.findings.left_out_auroc == np.mean([e.joint for e in left_out.values()])


def test_predict_measures_distances_to_the_same_images_as_classify(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.evaluation.abstention.MAX_REFERENCES", 90)
    path = write(splits=folder_splits(600))
    outcome = compare_heads(path, CONFIG, audit=False).shown
    known = outcome.bundle.calibration_set
    assert known.references == 90
    table, rows = read_table(path), outcome.validation.rows
    rejector = Rejector(known, CLASSES, CachedNeighbors(table, "block5_pool"))
    digests = [table.columns.digests[row].tobytes() for row in rows]
    found = rejector(table.features("block5_pool", rows), outcome.validation.scores, digests)
    distances = [each["rejection"].distance for each in found]
    np.testing.assert_allclose(distances, known.distance, atol=1e-6)


def test_classes_of_many_images_are_left_out_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(splits=folder_splits(600))
    whole = compare_heads(path, CONFIG).findings
    monkeypatch.setattr("pipeline.evaluation.abstention.MAX_FITTED", 120)
    sampled = compare_heads(path, CONFIG).findings
    assert "120 of 360 training images" in sampled.notices[-1]
    assert len(sampled.left_out) == 3
    assert sampled.left_out_auroc == pytest.approx(whole.left_out_auroc, abs=0.1)


def test_of_two_classes_only_the_distance_tells_them_apart() -> None:
    comparison = compare_heads(write(2, splits=folder_splits(600)), CONFIG)
    for each in comparison.findings.left_out:
        assert np.isnan(each.confidence)
        assert each.joint == each.distance > 0.7


def test_slow_head_leaves_no_class_out_and_says_why() -> None:
    path = write(splits=folder_splits(600))
    (cache,) = open_caches([path], CONFIG)
    outcome = compare_heads(path, CONFIG, audit=False).shown
    slow = replace(outcome, result=replace(outcome.result, fit_seconds=500.0))
    reason = leave_classes_out(slow, cache, CONFIG)
    assert reason == "3 fits of logistic would take 4 min 10 s, more than 20 s"
    assert isinstance(leave_classes_out(outcome, cache, CONFIG), list)


def test_columns_sections_and_no_audit() -> None:
    path = write(splits=folder_splits(600))
    command = ("classify", path, "--heads", "logistic,majority", "--save", "none", "--json")
    for options, has_audit in (((), True), (("--no-audit",), False)):
        document = json.loads(run_command(*command, *options).stdout)
        logistic, majority = document["rows"]
        assert 0.9 < logistic["coverage"] <= 1
        assert logistic["kept_accuracy"] >= logistic["test_accuracy"]
        assert (logistic["left_out_auroc"] is not None) == has_audit
        assert majority["left_out_auroc"] is None
        text = Path(document["run"]["folder"], "report.html").read_text()
        assert ">None of these<" in text
        assert ("Classes that were left out" in text) == has_audit
    shown = run_command(*command[:-1], "--no-audit", "--columns", "head,coverage,kept").stdout
    assert shown.splitlines()[0].split() == ["head", "coverage", "%", "kept", "%"]


def test_sets_too_small_to_reject_one_image_in_twenty_have_no_coverage() -> None:
    comparison: Comparison = compare_heads(write(count=60, splits=folder_splits(60)), CONFIG)
    assert np.isnan(comparison.shown.result.coverage)
    assert "None of these" not in report_html(comparison, command=None)
