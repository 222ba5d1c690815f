"""The RBF support vector machine is scikit-learn's, one class against the rest."""

import numpy as np
import pytest
from feature_sets import draw_features
from head_sets import draw_train
from pipeline.heads.head import FitOptions
from pipeline.heads.svm_rbf import SvmRbf, squared_distances
from sklearn.svm import SVC

from pipeline.errors import BadDataError
from pipeline.heads import svm_rbf

SIZE = (90, 10)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("class_count", [2, 4])
def test_decision_values_equal_scikit_learn(class_count: int, balanced: bool) -> None:
    train = draw_train(SIZE, class_count, rare=4, balanced=balanced)
    fresh = draw_features(np.zeros(30, np.int64), SIZE[1:], seed=5) * 50 + 7
    candidates = list(SvmRbf().fit_candidates(train, train, FitOptions()))
    assert len(candidates) == 9
    for candidate in candidates:
        assert candidate.converged
        scores = candidate.classifier.scores(fresh)
        assert scores.shape == (30, class_count)
        for label in range(class_count):
            reference = SVC(**candidate.spec.params)
            reference.fit(train.scaled, train.labels == label, sample_weight=train.row_weights)
            expected = reference.decision_function(train.scaler(fresh))
            np.testing.assert_allclose(scores[:, label], expected, atol=1e-2)


def test_balanced_is_scikit_learns_class_weight() -> None:
    train = draw_train(SIZE, rare=4, balanced=True)
    options = FitOptions(wanted={"gamma": 0.25, "C": 1.0})
    (candidate,) = SvmRbf().fit_candidates(train, train, options)
    reference = SVC(gamma=0.25, C=1.0, class_weight="balanced").fit(train.scaled, train.labels)
    np.testing.assert_allclose(
        candidate.classifier.scores(train.features)[:, 1],
        reference.decision_function(train.scaled),
        atol=1e-2,
    )


def test_gram_matrices_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(*sides: np.ndarray) -> np.ndarray:
        asked.append(sides)
        return squared_distances(*sides)

    monkeypatch.setattr(svm_rbf, "squared_distances", counted)
    train = draw_train(SIZE)
    assert len(list(SvmRbf().fit_candidates(train, train, FitOptions()))) == 9
    assert len(asked) == 1


def test_only_support_vectors_are_kept() -> None:
    train = draw_train(SIZE, signal=3)
    options = FitOptions(wanted={"gamma": 0.1, "C": 100.0})
    (candidate,) = SvmRbf().fit_candidates(train, train, options)
    assert len(candidate.classifier.support) < len(train)  # type: ignore[attr-defined]


def test_a_solver_that_stopped_early_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm_rbf, "MOST_ITERATIONS", 1)
    train = draw_train(SIZE)
    assert not any(each.converged for each in SvmRbf().fit_candidates(train, train, FitOptions()))


def test_more_pairs_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm_rbf, "MOST_ROWS", 89)
    train = draw_train(SIZE)
    with pytest.raises(BadDataError, match="at most 89; received 90"):
        next(SvmRbf().fit_candidates(train, train, FitOptions()))
