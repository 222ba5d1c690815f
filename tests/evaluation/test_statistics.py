"""Statistics agree with statsmodels; intervals cover the true value as often as they claim."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from pipeline.evaluation.statistics import (
    holm,
    mcnemar_exact,
    standard_error,
    wilson_interval,
)

DRAWS = 20


def draw_correct(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classifiers that are mostly right and mostly on the same images."""
    first = random.random(count) < random.uniform(0.4, 1)
    return first, np.where(random.random(count) < random.uniform(0, 0.3), ~first, first)


def test_wilson_interval_equals_statsmodels() -> None:
    random = np.random.default_rng(0)
    for count in random.integers(1, 2000, DRAWS).tolist():
        for correct in (0, count, int(random.integers(count + 1)), random.uniform(0, count)):
            expected = proportion_confint(correct, count, alpha=0.05, method="wilson")
            assert wilson_interval(correct, count) == pytest.approx(expected, abs=1e-12)


def test_exact_mcnemar_equals_statsmodels() -> None:
    random = np.random.default_rng(0)
    for count in random.integers(1, 600, DRAWS).tolist():
        first, second = draw_correct(random, count)
        table = [
            [np.sum(first & second), np.sum(first & ~second)],
            [np.sum(~first & second), np.sum(~first & ~second)],
        ]
        assert mcnemar_exact(first, second) == pytest.approx(mcnemar(table, exact=True).pvalue)
        assert mcnemar_exact(second, first) == mcnemar_exact(first, second)


def test_exact_mcnemar_equals_statsmodels_where_few_differ() -> None:
    for only_first in range(9):
        for only_second in range(9):
            first = np.arange(only_first + only_second) < only_first
            expected = mcnemar([[3, only_first], [only_second, 3]], exact=True).pvalue
            assert mcnemar_exact(first, ~first) == pytest.approx(expected)
    correct = np.arange(9) < 7
    assert mcnemar_exact(correct, correct) == 1.0


def test_holm_equals_statsmodels() -> None:
    random = np.random.default_rng(0)
    for count in (1, 5, 11):
        p_values = random.uniform(size=count) ** 3
        p_values[random.integers(count)] = p_values[0]  # ties, too
        expected = multipletests(p_values, method="holm")[1]
        np.testing.assert_allclose(holm(p_values), expected, rtol=1e-12)


def test_holm_does_not_count_nan() -> None:
    corrected = holm([0.01, math.nan, 0.03, math.nan, 0.02])
    np.testing.assert_allclose(corrected, [0.03, math.nan, 0.04, math.nan, 0.04])
    assert np.isnan(holm([math.nan])).all()
    assert len(holm([])) == 0


def test_standard_errors_equal_the_spread_of_repeated_draws() -> None:
    random = np.random.default_rng(0)
    pool = np.stack(draw_correct(random, 100_000)).astype(float)
    samples = [pool[:, random.integers(pool.shape[1], size=400)] for _ in range(1000)]
    differences = [first - second for first, second in samples]
    paired = np.mean([standard_error(each) for each in differences])
    assert paired == pytest.approx(np.std([each.mean() for each in differences]), rel=0.05)
    apart = [first.mean() - second.mean() for (first, _), (_, second) in pairwise(samples)]
    unpaired = np.mean([np.hypot(*map(standard_error, sample)) for sample in samples])
    assert unpaired == pytest.approx(np.std(apart), rel=0.1)
    assert unpaired > 1.2 * paired


def test_one_image_has_no_spread() -> None:
    assert standard_error(np.array([1.0])) == math.inf


@pytest.mark.parametrize("accuracy", [0.7, 0.9, 0.96])
def test_95_percent_of_the_intervals_cover_the_accuracy_of_the_pool(accuracy: float) -> None:
    random = np.random.default_rng(11)
    count, draws = 300, 500
    pool = random.permutation(np.arange(40 * count) < accuracy * 40 * count)
    intervals = [wilson_interval(correct, count) for correct in range(count + 1)]
    holds = np.array([low <= accuracy <= high for low, high in intervals])
    sampled = [random.choice(pool, size=count, replace=False).sum() for _ in range(draws)]
    assert 0.93 <= holds[sampled].mean() <= 0.97
    # and without chance: 500 draws scatter by 1 point about this
    assert 0.945 <= binom.pmf(np.arange(count + 1), count, accuracy)[holds].sum() <= 0.96
