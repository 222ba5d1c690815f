"""The novelty detector finds what is unlike normal rows, locally and as a whole."""

from typing import Any

import numpy as np
import pytest
from bundle_sets import bundle_of
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.heads.calibration import TemperatureScaling
from pipeline.heads.novelty import NoveltyDetector, alarm_threshold
from pipeline.models.bundle import check_savable, load_bundle, save_bundle
from pipeline.models.serialization import UnsavableError

SHAPE = (4, 5, 6)
PLACE = (2, 3)


def draw_maps(count: int, *, seed: int = 0) -> np.ndarray:
    """Return flat maps (N, 120): at each position one of three directions, with noise."""
    random = np.random.default_rng(seed)
    directions = np.repeat(np.eye(3), 2, axis=1)[random.integers(3, size=(count, *SHAPE[:2]))]
    maps = directions + 0.1 * random.normal(size=(count, *SHAPE))
    return maps.reshape(count, -1).astype(np.float32)


def with_defect(rows: np.ndarray) -> np.ndarray:
    """Return the maps with an unusual direction at `PLACE`."""
    maps = rows.reshape(-1, *SHAPE).copy()
    maps[:, *PLACE] = [1, -1, 1, -1, 1, -1]
    return maps.reshape(rows.shape)


def fit(rows: np.ndarray, **options: Any) -> NoveltyDetector:
    settings = {"map_shape": SHAPE, "random_state": 0} | options
    return NoveltyDetector(**settings).fit(rows, np.zeros(len(rows), int))


@pytest.mark.slow
@parametrize_with_checks([NoveltyDetector()])
def test_it_is_a_scikit_learn_classifier_of_two_classes(estimator: Any, check: Any) -> None:
    check(estimator)


def test_a_defect_is_found_and_its_position_has_the_highest_score() -> None:
    detector, rows = fit(draw_maps(80)), with_defect(draw_maps(40, seed=1))
    assert detector.predict(rows).all()
    scores = detector.position_scores(rows)
    assert scores.shape == (40, *SHAPE[:2])
    assert set(scores.reshape(40, -1).argmax(axis=1)) == {np.ravel_multi_index(PLACE, SHAPE[:2])}
    np.testing.assert_allclose(scores.max(axis=(1, 2)), detector.decision_function(rows))


def test_a_change_of_the_whole_image_that_moves_no_patch_is_found() -> None:
    rows = draw_maps(40, seed=1).reshape(-1, *SHAPE)
    same = rows[:, :1, :1].repeat(SHAPE[0], axis=1).repeat(SHAPE[1], axis=2)  # all patches usual
    detector = fit(draw_maps(80))
    assert detector.predict(same.reshape(40, -1)).all()
    assert np.mean(detector.position_scores(same.reshape(40, -1)) > 0) < 0.05


@pytest.mark.parametrize(("false_alarms", "count"), [(0.05, 200), (0.2, 60)])
def test_new_normal_images_exceed_the_threshold_as_rarely_as_stated(
    false_alarms: float, count: int
) -> None:
    shares = []
    for seed in range(8):
        rows = np.random.default_rng(seed).normal(size=(count + 300, 8)).astype(np.float32) + 1
        detector = fit(rows[:count], map_shape=None, false_alarms=false_alarms)
        shares.append(np.mean(detector.predict(rows[count:])))
    assert 0.6 * false_alarms < np.mean(shares) < 1.25 * false_alarms


def test_the_threshold_of_few_images_is_their_maximum() -> None:
    assert alarm_threshold(np.arange(18.0)) == 17
    assert alarm_threshold(np.arange(19.0)) == 18
    assert alarm_threshold(np.arange(39.0)) == 37
    assert alarm_threshold(np.arange(99.0), 0.5) == 49


def test_views_of_an_image_do_not_lower_the_threshold() -> None:
    rows = draw_maps(60)
    views = np.concatenate([rows, rows + 1e-3, rows - 1e-3])
    images, new = np.tile(np.arange(60), 3), draw_maps(300, seed=1)
    detector = NoveltyDetector(map_shape=SHAPE, random_state=0)
    labels = np.zeros(len(views), int)
    assert np.mean(detector.fit(views, labels, groups=images).predict(new)) < 0.12
    assert np.mean(detector.fit(views, labels).predict(new)) > 0.5  # each image knows its views


def test_only_rows_of_the_first_class_are_learned() -> None:
    normal, others = draw_maps(40), with_defect(draw_maps(10, seed=1))
    labels = np.repeat([0, 1], [40, 10])
    detector = NoveltyDetector(map_shape=SHAPE, random_state=0)
    detector.fit(np.concatenate([normal, others]), labels)
    expected = detector.decision_function(others)
    detector.fit(np.concatenate([normal, draw_maps(10, seed=2)]), labels)
    np.testing.assert_array_equal(detector.decision_function(others), expected)
    np.testing.assert_array_equal(fit(normal).decision_function(others), expected)


@pytest.mark.parametrize("unit", [1e-30, 1e-3, 1e30])
def test_decisions_do_not_depend_on_the_unit_of_features(unit: float) -> None:
    rows, new = draw_maps(40), draw_maps(30, seed=1)
    scores = fit(rows).decision_function(new)
    scaled = fit(rows * np.float32(unit)).decision_function(new * np.float32(unit))
    np.testing.assert_allclose(scaled, scores, atol=1e-4)


def test_a_small_bank_contains_rare_patches() -> None:
    random = np.random.default_rng(0)
    rows = np.eye(20)[np.minimum(random.integers(400, size=600), 19)]  # 19 of them are rare
    rows = (rows + 0.01 * random.normal(size=rows.shape)).astype(np.float32)
    detector = fit(rows, map_shape=None, bank_size=25)
    assert len(detector.patches_) == 25
    assert set(detector.patches_.argmax(axis=1)) == set(rows.argmax(axis=1))


def test_rows_of_another_shape_and_single_images_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot reshape"):
        fit(draw_maps(40), map_shape=(7, 7, 3))
    with pytest.raises(ValueError, match="two normal images or more"):
        fit(draw_maps(1))


def test_dead_positions_and_constant_features_are_normal() -> None:
    rows = draw_maps(40).reshape(-1, *SHAPE)
    rows[:, 0] = 0
    detector = fit(rows.reshape(40, -1))
    assert np.isfinite(detector.decision_function(draw_maps(5))).all()
    constant = fit(np.ones((40, 120), np.float32))
    assert not constant.predict(np.ones((3, 120), np.float32)).any()


def test_a_saved_detector_gives_the_same_scores_and_a_changed_one_is_refused(
    tmp_path: Any,
) -> None:
    rows = draw_maps(60)
    labels = np.repeat([0, 1], [40, 20])
    rows[labels == 1] = with_defect(rows[labels == 1])
    detector = NoveltyDetector(map_shape=SHAPE, random_state=0).fit(rows, labels)
    scaled = TemperatureScaling(detector).fit(rows, labels)
    bundle = bundle_of(scaled, head="novelty", input="flat", shape=SHAPE)
    save_bundle(bundle, tmp_path / "novelty.skops")
    loaded = load_bundle(tmp_path / "novelty.skops").estimator
    np.testing.assert_array_equal(loaded.predict_proba(rows), scaled.predict_proba(rows))
    np.testing.assert_array_equal(
        loaded.estimator.position_scores(rows), detector.position_scores(rows)
    )
    for name, value in (
        ("map_shape", (4, 5, 7)),
        ("patches_", detector.patches_[:, :5]),
        ("means_", detector.means_[0]),
        ("scale_", np.zeros(2)),
        ("threshold_", "high"),
    ):
        original = getattr(detector, name)
        setattr(detector, name, value)
        with pytest.raises(UnsavableError):
            check_savable(bundle_of(scaled, head="novelty", input="flat", shape=SHAPE))
        setattr(detector, name, original)
