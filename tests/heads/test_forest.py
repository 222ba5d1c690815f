"""The random forest is scikit-learn's, one for each seed."""

import numpy as np
import pytest
from head_sets import draw_train
from sklearn.ensemble import RandomForestClassifier

from pipeline.heads import forest
from pipeline.heads.forest import RandomForest
from pipeline.heads.head import FitOptions


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "TREES", 10)


@pytest.mark.parametrize("balanced", [False, True])
def test_one_forest_for_each_setting_and_seed(balanced: bool) -> None:
    train = draw_train((90, 10), 3, rare=3, balanced=balanced)
    candidates = list(RandomForest().fit_candidates(train, train, FitOptions(seeds=(4, 9))))
    drawn = [(candidate.spec.params["leaf"], candidate.seed) for candidate in candidates]
    assert drawn == [(5, 4), (5, 9), (1, 4), (1, 9)]
    for (leaf, seed), candidate in zip(drawn, candidates, strict=True):
        reference = RandomForestClassifier(
            10,
            min_samples_leaf=leaf,
            class_weight="balanced" if balanced else None,
            random_state=seed,
        ).fit(train.features, train.labels)
        np.testing.assert_allclose(
            candidate.classifier.scores(train.features), reference.predict_proba(train.features)
        )
