"""Naive Bayes is scikit-learn's."""

import numpy as np
import pytest
from feature_sets import draw_features
from head_sets import draw_train
from pipeline.heads.bayes import NaiveBayes
from pipeline.heads.head import FitOptions
from pipeline.heads.training import TrainingSet
from sklearn.naive_bayes import GaussianNB

SIZE = (90, 10)
FRESH = draw_features(np.zeros(40, np.int64), SIZE[1:], seed=5) * 50 + 7


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("class_count", [2, 4])
def test_probabilities_equal_scikit_learn_with_these_priors(
    class_count: int, balanced: bool
) -> None:
    train = draw_train(SIZE, class_count, rare=5, balanced=balanced)
    candidates = list(NaiveBayes().fit_candidates(train, train, FitOptions()))
    assert len(candidates) == 10
    for candidate in candidates:
        reference = GaussianNB(
            priors=np.full(class_count, 1 / class_count) if balanced else None,
            var_smoothing=candidate.spec.params["smoothing"],
        ).fit(train.features.astype(np.float64), train.labels)
        expected = reference.predict_proba(FRESH.astype(np.float64))
        np.testing.assert_allclose(candidate.classifier.scores(FRESH), expected, atol=1e-6)


def test_features_that_never_change_do_no_harm() -> None:
    train = TrainingSet(np.full((10, 6), 3.0, np.float32), np.arange(10) % 2, 2)
    for candidate in NaiveBayes().fit_candidates(train, train, FitOptions()):
        np.testing.assert_allclose(candidate.classifier.scores(train.features), 0.5)
