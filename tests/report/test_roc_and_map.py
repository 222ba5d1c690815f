"""Curves and the map equal independent computations."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from pipeline.evaluation.result import HeadPredictions
from pipeline.report.galleries import (
    MAX_POINTS,
    PICTURE_COLUMNS,
    PICTURE_ROWS,
    choose_pictures,
    pca_points,
    spread_rows,
)
from pipeline.report.roc import class_curves, macro_precision_recall, macro_roc


def predictions(count: int, class_count: int, *, seed: int, ties: bool = False) -> HeadPredictions:
    random = np.random.default_rng(seed)
    scores = random.random((count, class_count))
    return HeadPredictions(
        rows=np.arange(count),
        keys=np.zeros(count, "V32"),
        paths=np.zeros(count, "S1"),
        labels=random.integers(0, class_count, count),
        scores=scores.round(1) if ties else scores,
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ranking_curves_equal_scikit_learns(seed: int, ties: bool) -> None:
    test = predictions(120, 3, seed=seed, ties=ties)
    for label in range(3):
        found = class_curves(test, label)
        assert found is not None
        truth, scores = test.labels == label, test.scores[:, label]
        false_rate, true_rate, _ = roc_curve(truth, scores)
        np.testing.assert_allclose(found.roc, np.column_stack([false_rate, true_rate]))
        precision, recall, _ = precision_recall_curve(truth, scores)
        shown = slice(1, int((recall < 1).sum()) + 1)  # precision falls on where nothing is found
        assert recall[::-1][shown][-1] == 1
        np.testing.assert_allclose(found.precision_recall[1:, 0], recall[::-1][shown])
        np.testing.assert_allclose(found.precision_recall[1:, 1], precision[::-1][shown])
        assert found.average_precision == pytest.approx(average_precision_score(truth, scores))


def test_a_class_without_images_has_no_curve() -> None:
    test = predictions(60, 4, seed=1)
    test.labels[test.labels == 3] = 0
    curves = [class_curves(test, label) for label in range(4)]
    assert curves[3] is None
    mean = macro_roc([each for each in curves if each is not None])
    assert mean[-1].tolist() == [1, 1]


def test_perfect_scores_give_perfect_curves() -> None:
    test = predictions(1200, 100, seed=0)
    test.labels[:] = np.arange(1200) % 100
    test.scores[np.arange(1200), test.labels] += 1
    curves = [found for label in range(100) if (found := class_curves(test, label)) is not None]
    for found in curves:
        assert ((found.roc[:, 0] == 0) | (found.roc[:, 1] == 1)).all()
        assert (found.precision_recall[:, 1] == 1).all()
    assert macro_precision_recall(curves)[:, 1].tolist() == [1] * 101
    assert macro_roc(curves)[1:, 1].tolist() == [1] * 101


def test_area_of_mean_precision_is_the_mean_average_precision() -> None:
    test = predictions(2000, 4, seed=2)
    curves = [found for label in range(4) if (found := class_curves(test, label)) is not None]
    mean = macro_precision_recall(curves)
    expected = np.mean([each.average_precision for each in curves])
    assert mean[:, 1].mean() == pytest.approx(expected, abs=0.01)
    assert mean[-1, 1] > 0.2  # a quarter of the images are of each class


@pytest.mark.parametrize(("count", "width"), [(50, 8), (20, 60), (9, 3), (9, 2), (9, 1)])
def test_map_equals_scikit_learns_principal_components(count: int, width: int) -> None:
    features = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    features *= np.linspace(3, 1, width, dtype=np.float32)
    points, explained = pca_points(features)
    kept = min(2, width)
    expected = PCA(2).fit(features) if width > 1 else PCA(1).fit(features)
    np.testing.assert_allclose(
        explained[:kept], expected.explained_variance_ratio_[:kept], rtol=1e-5
    )
    coordinates = expected.transform(features)
    for axis in range(kept):
        inner = (points[:, axis] > 0) & (points[:, axis] < 1)
        correlation = np.corrcoef(points[inner, axis], coordinates[inner, axis])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_the_features_does_not_change_the_map(scale: float) -> None:
    features = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    points, explained = pca_points(features * np.float32(scale))
    expected_points, expected = pca_points(features)
    np.testing.assert_allclose(points, expected_points, atol=1e-5)
    assert explained == pytest.approx(expected, rel=1e-5)


def test_map_of_equal_features_does_not_fail() -> None:
    points, explained = pca_points(np.ones((5, 7), np.float32))
    assert explained == (0, 0)
    assert np.isfinite(points).all()


def test_each_picture_has_its_own_cell() -> None:
    features = np.random.default_rng(3).normal(size=(900, 5)).astype(np.float32)
    points, _ = pca_points(features)
    chosen, middles = choose_pictures(points)
    cells = {tuple(middle) for middle in middles}
    assert 20 < len(chosen) == len(cells) <= PICTURE_COLUMNS * PICTURE_ROWS


def test_many_rows_are_sampled_evenly_from_every_class() -> None:
    labels = np.repeat([0, 1], [6000, 2000])
    chosen = spread_rows(labels)
    assert len(chosen) == len(set(chosen.tolist())) == MAX_POINTS
    assert np.bincount(labels[chosen]).tolist() == pytest.approx([1500, 500], abs=1)
