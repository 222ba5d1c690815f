"""Charts put points where they belong; curves and the map equal independent computations."""

import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from pipeline.evaluation.result import Predictions
from pipeline.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    STYLES,
    TOP,
    Series,
    chart,
    log_axis,
    markers,
    number_axis,
    percent_axis,
    shade,
)
from pipeline.report.feature_map import (
    MOST_POINTS,
    PICTURE_COLUMNS,
    PICTURE_ROWS,
    cell_middle,
    choose_pictures,
    lay_out,
    spread_rows,
)
from pipeline.report.ranking import (
    COLUMNS,
    class_curves,
    macro_precision_recall,
    macro_roc,
    outline,
)


def predictions(count: int, class_count: int, *, seed: int, ties: bool = False) -> Predictions:
    random = np.random.default_rng(seed)
    scores = random.random((count, class_count))
    return Predictions(
        rows=np.arange(count),
        keys=np.zeros(count, "V32"),
        labels=random.integers(0, class_count, count),
        scores=scores.round(1) if ties else scores,
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ranking_curves_are_scikit_learns(seed: int, ties: bool) -> None:
    test = predictions(120, 3, seed=seed, ties=ties)
    for label in range(3):
        found = class_curves(test, label)
        assert found is not None
        truth, scores = test.labels == label, test.scores[:, label]
        false_rate, true_rate, _ = roc_curve(truth, scores, drop_intermediate=False)
        np.testing.assert_allclose(found.roc, np.column_stack([false_rate, true_rate]))
        precision, recall, _ = precision_recall_curve(truth, scores)
        drawn = slice(1, int((recall < 1).sum()) + 1)  # precision falls on where nothing is found
        assert recall[::-1][drawn][-1] == 1
        np.testing.assert_allclose(found.precision_recall[1:, 0], recall[::-1][drawn])
        np.testing.assert_allclose(found.precision_recall[1:, 1], precision[::-1][drawn])
        assert found.average_precision == pytest.approx(average_precision_score(truth, scores))


def test_a_class_without_images_has_no_curve_and_the_mean_goes_without_it() -> None:
    test = predictions(60, 4, seed=1)
    test.labels[test.labels == 3] = 0
    curves = [class_curves(test, label) for label in range(4)]
    assert curves[3] is None
    mean = macro_roc([each for each in curves if each is not None])
    assert mean[-1].tolist() == [1, 1]


def test_long_curves_are_thinned_between_their_ends() -> None:
    found = class_curves(predictions(5000, 2, seed=0), 1)
    assert found is not None
    drawn = outline(found.roc)
    assert len(drawn) <= 2 * COLUMNS + 1
    assert drawn[0].tolist() == [0, 0]
    assert drawn[-1].tolist() == [1, 1]


@pytest.mark.parametrize("positives", [3, 12, 400])
def test_drawn_curves_enclose_the_areas_that_stand_beside_them(positives: int) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([1, 0], [positives, 3000])
    scores = random.normal(2.0 * labels)
    test = replace(predictions(len(labels), 2, seed=0), labels=labels)
    test.scores[:] = np.column_stack([-scores, scores])
    found = class_curves(test, 1)
    assert found is not None
    drawn = outline(found.roc)
    assert len(drawn) < len(found.roc) / 2
    assert np.trapezoid(drawn[:, 1], drawn[:, 0]) == pytest.approx(found.roc_auc, abs=1 / COLUMNS)


def test_perfect_scores_are_drawn_perfect() -> None:
    test = predictions(1200, 100, seed=0)
    test.labels[:] = np.arange(1200) % 100
    test.scores[np.arange(1200), test.labels] += 1
    curves = [found for label in range(100) if (found := class_curves(test, label)) is not None]
    for found in curves:
        assert outline(found.roc).tolist() == [[0, 0], [0, 1], [1, 1]]
        assert outline(found.precision_recall).tolist() == [[0, 1], [1, 1]]
    assert macro_precision_recall(curves)[:, 1].tolist() == [1] * 101
    assert macro_roc(curves)[1:, 1].tolist() == [1] * 101


def test_mean_precision_has_the_mean_average_precision_for_area() -> None:
    test = predictions(2000, 4, seed=2)
    curves = [found for label in range(4) if (found := class_curves(test, label)) is not None]
    mean = macro_precision_recall(curves)
    expected = np.mean([each.average_precision for each in curves])
    assert mean[:, 1].mean() == pytest.approx(expected, abs=0.01)
    assert mean[-1, 1] > 0.2  # a quarter of the images are of each class


@pytest.mark.parametrize(("count", "width"), [(50, 8), (20, 60), (9, 3), (9, 2), (9, 1)])
def test_map_is_scikit_learns_principal_components(count: int, width: int) -> None:
    features = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    features *= np.linspace(3, 1, width, dtype=np.float32)
    found = lay_out(np.arange(count), features)
    kept = min(2, width)
    expected = PCA(2).fit(features) if width > 1 else PCA(1).fit(features)
    np.testing.assert_allclose(
        found.explained[:kept], expected.explained_variance_ratio_[:kept], rtol=1e-5
    )
    coordinates = expected.transform(features)
    for axis in range(kept):
        inner = (found.points[:, axis] > 0) & (found.points[:, axis] < 1)
        correlation = np.corrcoef(found.points[inner, axis], coordinates[inner, axis])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-4)


def test_map_of_equal_features_does_not_fail() -> None:
    found = lay_out(np.arange(5), np.ones((5, 7), np.float32))
    assert found.explained == (0, 0)
    assert np.isfinite(found.points).all()


def test_pictures_stand_in_cells_of_their_own() -> None:
    features = np.random.default_rng(3).normal(size=(900, 5)).astype(np.float32)
    found = lay_out(np.arange(900), features)
    chosen = choose_pictures(found)
    cells = {cell_middle(found.points[place]) for place in chosen}
    assert 20 < len(chosen) == len(cells) <= PICTURE_COLUMNS * PICTURE_ROWS


def test_many_rows_are_thinned_alike_in_every_class() -> None:
    labels = np.repeat([0, 1], [6000, 2000])
    chosen = spread_rows(np.arange(8000), labels)
    assert len(chosen) == len(set(chosen.tolist())) == MOST_POINTS
    assert np.bincount(labels[chosen]).tolist() == pytest.approx([1500, 500], abs=1)


def test_points_are_drawn_where_they_belong() -> None:
    axis = number_axis("x", np.array([0.0, 10.0]))
    points = np.array([[0, 0], [10, 10], [5, np.nan]])
    svg = chart([Series(points=points, style=0)], x=axis, y=axis, label="said")
    line = re.search(r'<path d="(M[^"]*L[^"]*)" class="line s0">', svg)
    assert line
    assert line[1] == f"M{LEFT:.1f} {BOTTOM:.1f}L{RIGHT:.1f} {TOP:.1f}"
    assert 'aria-label="said"' in svg


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 30.0], ["0", "10", "20", "30"]),
        ([0.012, 0.019], ["0.012", "0.014", "0.016", "0.018", "0.020"]),
        ([5.0, 5.0], ["5.0", "5.1", "5.2", "5.3", "5.4", "5.5"]),
        ([float("nan")], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_ticks_are_round_numbers(values: list[float], texts: list[str]) -> None:
    axis = number_axis("x", np.array(values), from_zero=values == [0.0, 30.0])
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks)
    if values != [5.0, 5.0]:
        assert [axis.text(tick) for tick in axis.ticks] == texts


def test_no_axis_of_shares_passes_100_percent() -> None:
    axis = percent_axis("right", np.array([0.93, 1.0]))
    assert axis.high == 1
    assert axis.text(axis.ticks[-1]) == "100"


def test_sizes_stand_where_they_are_halved() -> None:
    axis = log_axis("images", np.array([10.0, 20.0, 40.0]))
    assert [axis.text(tick) for tick in axis.ticks] == ["10", "20", "40"]
    low, middle, high = (axis.place(tick) for tick in axis.ticks)
    assert middle - low == pytest.approx(high - middle)


def test_styles_differ_in_shape_not_only_in_colour() -> None:
    shapes = {
        re.sub(r'class="[^"]*"', "", markers(np.zeros((1, 2)), style, 3.0))
        for style in range(STYLES)
    }
    assert len(shapes) == STYLES


def test_even_a_rare_mistake_is_shaded() -> None:
    assert [shade(share) for share in (0.0, 1e-4, 0.25, 1.0)] == [0, 1, 5, 10]
