"""The nearest class mean, by angle or by distance."""

import numpy as np
import pytest
from feature_sets import draw_features
from head_sets import draw_train
from pipeline.heads.head import FitOptions
from pipeline.heads.prototype import Prototype
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid

SIZE = (90, 10)
FRESH = draw_features(np.zeros(400, np.int64), SIZE[1:], seed=5) * 50 + 7


@pytest.mark.filterwarnings("ignore:.*zero standard deviation")  # of a feature, in the reference
@pytest.mark.parametrize("class_count", [2, 4])
def test_the_nearest_mean_is_predicted(class_count: int) -> None:
    train = draw_train(SIZE, class_count)
    by_angle, by_distance = Prototype().fit_candidates(train, train, FitOptions())
    assert by_angle.spec.params == {"metric": "cosine"}
    assert by_distance.spec.params == {"metric": "euclidean"}

    centroids = NearestCentroid().fit(train.features, train.labels)
    found = by_distance.classifier.scores(FRESH).argmax(axis=1)
    np.testing.assert_array_equal(found, centroids.predict(FRESH))

    directions = train.features / np.linalg.norm(train.features, axis=1, keepdims=True)
    means = [directions[train.labels == label].mean(axis=0) for label in range(class_count)]
    found = by_angle.classifier.scores(FRESH).argmax(axis=1)
    np.testing.assert_array_equal(found, cosine_similarity(FRESH, means).argmax(axis=1))


def test_rows_of_a_class_count_the_same_however_many_they_are() -> None:
    train = draw_train(SIZE, rare=9)
    balanced = draw_train(SIZE, rare=9, balanced=True)
    for one, other in zip(
        Prototype().fit_candidates(train, train, FitOptions()),
        Prototype().fit_candidates(balanced, balanced, FitOptions()),
        strict=True,
    ):
        np.testing.assert_array_equal(one.classifier.scores(FRESH), other.classifier.scores(FRESH))
