"""The learning curve distinguishes a set that needs more images from one that has enough."""

import numpy as np
import pytest

from pipeline.evaluation.learning_curve import conclude, learning_curve
from pipeline.evaluation.probe import fit_components


def draw(
    count: int, *, apart: float, width: int = 60, classes: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and split numbers of Gaussian classes: train (count), 400 of the others."""
    random = np.random.default_rng(seed)
    centres = apart * random.normal(size=(classes, width)) / width**0.5
    side = np.repeat([1, 2, 3], [count, 400, 400])
    labels = np.concatenate([np.resize(np.arange(classes), size) for size in (count, 400, 400)])
    features = centres[labels] + random.normal(size=(len(labels), width))
    return features.astype(np.float32), labels, side


def test_sizes_halve_down_to_ten_images_per_class() -> None:
    curve = learning_curve(*draw(500, apart=2), class_count=2)
    assert curve is not None
    assert curve.sizes.tolist() == [31, 62, 125, 250, 500]
    assert curve.accuracies.shape == (5, 5)
    assert len(set(curve.accuracies[-1])) == 1  # every draw of all images is the same
    assert len(set(curve.accuracies[0])) > 1


def test_where_more_images_help_the_sentence_says_so() -> None:
    curve = learning_curve(*draw(300, apart=3, width=250), class_count=2)
    assert curve is not None
    assert curve.accuracies.mean(axis=1)[-1] > curve.accuracies.mean(axis=1)[-2] + 0.01
    assert "rose by" in curve.sentence
    assert curve.sentence.endswith("more images would help")
    assert curve.sentence.startswith("From 150 to 300 training images the accuracy of a logistic ")


def test_where_the_curve_is_flat_more_images_hardly_help() -> None:
    curve = learning_curve(*draw(2000, apart=3, width=4), class_count=2)
    assert curve is not None
    assert curve.sentence.endswith("more images of this kind would hardly help")


def test_where_all_images_are_right_the_sentence_finds_no_gain() -> None:
    curve = learning_curve(*draw(200, apart=60), class_count=2)
    assert curve is not None
    assert (curve.accuracies == 1).all()
    assert (
        "logistic regression on 400 test images stayed (100.0 %; draws spread ±0.0)"
        in curve.sentence
    )
    assert curve.sentence.endswith("all of these are right, so a gain cannot show")


@pytest.mark.parametrize("count", [2, 10, 39])
def test_tiny_sets_have_no_curve(count: int) -> None:
    assert learning_curve(*draw(count, apart=2), class_count=2) is None


def test_a_class_that_train_lacks_means_no_curve() -> None:
    assert learning_curve(*draw(500, apart=2), class_count=3) is None


def test_a_class_of_one_image_still_gives_a_curve() -> None:
    features, labels, side = draw(400, apart=2)
    labels[7] = 2
    curve = learning_curve(features, labels, side, class_count=3)
    assert curve is not None
    assert curve.sizes.tolist() == [50, 100, 200, 400]


def test_large_sets_end_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluation.learning_curve.MAX_IMAGES", 100)
    curve = learning_curve(*draw(500, apart=2), class_count=2)
    assert curve is not None
    assert curve.sizes.tolist() == [25, 50, 100]
    assert len(set(curve.accuracies[-1])) > 1  # other images each time


def test_the_seed_decides_the_draws() -> None:
    parts = draw(60, apart=2)
    first, second, other = (learning_curve(*parts, class_count=2, seed=s) for s in (3, 3, 4))
    assert first is not None
    assert second is not None
    assert other is not None
    np.testing.assert_array_equal(first.accuracies, second.accuracies)
    assert not np.array_equal(first.accuracies, other.accuracies)


def outcomes(*shares: float, count: int = 1000) -> np.ndarray:
    """(R, n) bool: each draw has that share of the images right, the first ones."""
    return np.arange(count) < count * np.array(shares)[:, None]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.90, 0.90, 0.90), 0.95, "rose by 5.0 points (90.0 to 95.0 %; draws spread ±0.0): more"),
        ((0.948, 0.950, 0.952), 0.956, "probably help a little"),
        ((0.94, 0.95, 0.96), 0.955, "no clear gain"),
        ((0.95, 0.95, 0.95), 0.94, "fell by 1.0 points (95.0 to 94.0 %; draws spread ±0.0), no"),
    ],
)
def test_the_conclusion_follows_the_gain_and_its_noise(
    before: tuple[float, ...], after: float, expected: str
) -> None:
    sentence = conclude(500, 1000, outcomes(*before), outcomes(*[after] * 3))
    assert expected in sentence


def test_few_test_images_allow_no_conclusion() -> None:
    sentence = conclude(50, 100, outcomes(0.7, 0.8, 0.9, count=20), outcomes(*[0.8] * 3, count=20))
    assert sentence.endswith("too few test images to tell whether more would help")


def test_components_are_those_of_the_covariance() -> None:
    features = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
    features *= np.arange(1, 13)
    variances = fit_components(features, 5).transform(features).var(axis=0)
    values = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    np.testing.assert_allclose(variances / variances[0], values[:5] / values[0], rtol=0.02)
