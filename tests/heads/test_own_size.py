"""How many numbers a head of one's own has learned is counted, not asked."""

from typing import Any

import numpy as np
from head_sets import draw_train
from pipeline.heads.own import _size_of
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

TRAIN = draw_train((90, 10))
MOST = 10**6


def size_of(estimator: Any) -> int:
    return _size_of(estimator.fit(TRAIN.features, TRAIN.labels), most=MOST)


def test_numbers_are_counted_however_deep_they_are() -> None:
    logistic = size_of(LogisticRegression())
    assert 10 + 1 <= logistic <= 10 + 1 + 5
    scaled = make_pipeline(StandardScaler(), FunctionTransformer(lambda x: x), LogisticRegression())
    assert logistic + 3 * 10 <= size_of(scaled) <= logistic + 3 * 10 + 5
    assert size_of(KNeighborsClassifier()) >= TRAIN.features.size


def test_trees_show_theirs_and_more_trees_have_more() -> None:
    few, many = (size_of(RandomForestClassifier(count, random_state=0)) for count in (5, 50))
    assert 8 * few < many < 12 * few
    assert many < MOST


def test_what_shows_nothing_counts_as_the_most_and_a_circle_ends() -> None:
    class Silent(LogisticRegression):
        def __getstate__(self) -> dict[str, Any]:
            raise RuntimeError("not for you")

    class Circle(LogisticRegression):
        pass

    assert size_of(Silent()) == MOST
    circle = Circle()
    circle.itself_ = [circle, np.array([circle, None], object)]
    assert 10 < size_of(circle) < 20
