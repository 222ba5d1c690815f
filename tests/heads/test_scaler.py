"""One scale for all features."""

import numpy as np
import pytest
from feature_sets import draw_rows
from sklearn.utils.estimator_checks import check_estimator

from pipeline.heads.scaler import CommonScaler


@pytest.mark.parametrize("with_mean", [True, False])
def test_it_is_a_scikit_learn_transformer(with_mean: bool) -> None:
    check_estimator(CommonScaler(with_mean=with_mean))


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_rows_have_a_mean_square_of_one_whatever_the_unit(unit: float) -> None:
    train, validation = draw_rows(90)
    scaler = CommonScaler().fit(train.features * np.float32(unit))
    scaled = scaler.transform(train.features * np.float32(unit))
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    assert np.mean((scaled**2).sum(axis=1)) == pytest.approx(1)
    expected = (validation.features - train.features.mean(axis=0)) / np.sqrt(
        train.features.var(axis=0).sum()
    )
    found = scaler.transform(validation.features * np.float32(unit))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scaling_without_centering_preserves_angles() -> None:
    rows = draw_rows(90)[0].features
    scaled = CommonScaler(with_mean=False).fit_transform(rows)
    np.testing.assert_allclose(
        scaled[:, :1] / scaled[:, 1:2], rows[:, :1] / rows[:, 1:2], rtol=1e-6
    )


def test_constant_features_are_only_centered() -> None:
    np.testing.assert_array_equal(CommonScaler().fit_transform(np.full((5, 2), 3.0)), 0)
