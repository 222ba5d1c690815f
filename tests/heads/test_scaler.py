"""One scale for all features."""

import numpy as np
import pytest
from feature_sets import draw_rows
from sklearn.utils.estimator_checks import check_estimator

from pipeline.heads.scaler import CommonScaler, root_mean_square


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


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_scaling_without_centering_multiplies_by_a_power_of_two(unit: float) -> None:
    rows = draw_rows(90)[0].features * np.float32(unit)
    scaled = CommonScaler(with_mean=False).fit_transform(rows)
    mantissas, _ = np.frexp(rows)
    np.testing.assert_array_equal(np.frexp(scaled)[0], mantissas)
    assert 2**-0.5 <= root_mean_square(scaled) <= 2**0.5


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_constant_features_are_centered_and_divided_by_their_size(unit: float) -> None:
    scaler = CommonScaler().fit(np.full((5, 2), 3 * unit, np.float32))
    np.testing.assert_array_equal(scaler.transform(np.full((5, 2), 3 * unit, np.float32)), 0)
    np.testing.assert_allclose(scaler.transform(np.full((5, 2), 6 * unit, np.float32)), 1)


def test_root_mean_square_neither_overflows_nor_vanishes() -> None:
    rows = draw_rows(90)[0].features
    expected = np.sqrt(np.mean(rows.astype(np.float64) ** 2))
    assert root_mean_square(rows) == pytest.approx(expected, rel=1e-12)
    for factor in (2.0**-110, 2.0**110):
        assert root_mean_square(rows * np.float32(factor)) == root_mean_square(rows) * factor
    assert root_mean_square(np.zeros((3, 2), np.float32)) == 1
