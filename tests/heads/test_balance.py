"""With --balance, a rare class is found more often."""

import numpy as np
import pytest
from head_sets import draw_train
from pipeline.heads.head import FitOptions
from pipeline.heads.training import TrainingSet
from sklearn.metrics import balanced_accuracy_score
from threadpoolctl import threadpool_limits

from pipeline.heads.registry import load_head

# dense has its own test; prototype and majority know no shares
WEIGHTED = (
    "logistic",
    "linear_svm",
    "ridge",
    "lda",
    "svm_rbf",
    "knn",
    "random_forest",
    "naive_bayes",
    "kornblith",
)


@pytest.mark.parametrize("name", WEIGHTED)
def test_balanced_accuracy_rises_where_nine_of_ten_are_of_one_class(name: str) -> None:
    random = np.random.default_rng(0)
    labels = (np.arange(900) % 10 == 0).astype(np.int64)
    rows = random.normal(size=(900, 8)) + 0.5 * labels[:, None]
    rows, held_out = rows.astype(np.float32)[:300], rows.astype(np.float32)[300:]

    def mean_accuracy(*, balanced: bool) -> float:
        train = TrainingSet(rows, labels[:300], 2, balanced)
        candidates = load_head(name).fit_candidates(train, train, FitOptions())
        predictions = [each.classifier.scores(held_out).argmax(axis=1) for each in candidates]
        return float(np.mean([balanced_accuracy_score(labels[300:], each) for each in predictions]))

    with threadpool_limits(1, user_api="blas"):
        assert mean_accuracy(balanced=True) > mean_accuracy(balanced=False) + 0.01


def test_majority_of_equal_classes_is_the_first() -> None:
    train = draw_train((100, 4), 3, rare=2, balanced=True)
    (candidate,) = load_head("majority").fit_candidates(train, train, FitOptions())
    np.testing.assert_allclose(candidate.classifier.scores(train.features), 1 / 3)
