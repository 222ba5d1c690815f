"""The path of Kornblith et al.: 45 penalties on the mean log loss, all of them solved."""

import numpy as np
import pytest
from feature_sets import draw_rows
from sklearn.linear_model import LogisticRegression

from pipeline.evaluation.search import fit_grid, has_converged
from pipeline.heads.kornblith import KornblithRegression
from pipeline.heads.registry import L2_PENALTIES, load_head


def test_grid_is_45_penalties_evenly_spaced_the_strongest_first() -> None:
    np.testing.assert_allclose(L2_PENALTIES, np.logspace(-6, 5, 45)[::-1])


@pytest.mark.parametrize(
    ("signal", "class_count"), [(0.1, 3), (3.0, 2)], ids=["overlapping", "separable"]
)
def test_points_of_the_path_are_the_optima_on_features_of_size_one(
    signal: float, class_count: int
) -> None:
    train, validation = draw_rows(120, class_count, signal=signal)
    path = list(
        fit_grid(load_head("kornblith"), train, validation, class_count=class_count, seed=0)
    )
    assert [params["l2"] for params, _ in path] == list(L2_PENALTIES)
    assert all(has_converged(estimator) for _, estimator in path)
    features = train.features.astype(np.float64)
    size = np.sqrt(np.mean(features**2))
    for params, estimator in path[::11]:
        reference = LogisticRegression(
            C=1 / (len(train) * params["l2"]), solver="newton-cholesky", tol=1e-10, max_iter=1000
        ).fit(features / size, train.labels)
        np.testing.assert_allclose(
            estimator.predict_proba(features), reference.predict_proba(features / size), atol=1e-4
        )
        error = np.linalg.norm(estimator.coef_ * size - reference.coef_)
        assert error < 1e-3 * np.linalg.norm(reference.coef_)
    if class_count == 2:  # no point stays where a stronger penalty's ended
        lengths = np.array([np.linalg.norm(estimator.coef_) for _, estimator in path])
        assert np.all(np.diff(lengths) > 0.01 * lengths[:-1])


def test_a_fit_that_stopped_early_has_not_converged() -> None:
    train, _ = draw_rows(300, signal=3.0)
    stopped = KornblithRegression(1e-6, max_iter=2).fit(train.features, train.labels)
    assert not has_converged(stopped)
