"""Every head of the table equals scikit-learn's estimator."""

import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_sets import bundle_of
from feature_sets import draw_rows
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import ParameterGrid
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize
from sklearn.svm import SVC, LinearSVC
from threadpoolctl import threadpool_limits

from pipeline.errors import BadDataError
from pipeline.evaluation.result import Fit, params_text
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import (
    can_balance,
    fit_grid,
    has_converged,
    parameter_count,
    search,
)
from pipeline.heads.calibration import class_scores, scoring_method
from pipeline.heads.config import DenseConfig
from pipeline.heads.registry import HEADS, load_head
from pipeline.heads.scaler import root_mean_square
from pipeline.models.bundle import load_bundle, save_bundle

QUICK = DenseConfig(epochs=2, learning_rate=1e-3, units=8)
CONSTANT = LabelledRows(np.full((60, 6), 3.0, np.float32), np.arange(60) % 2)
NOT_DENSE = [name for name in HEADS if name != "dense"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As `compare_heads` has it: the threads of NumPy's and SciPy's BLAS wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


def fit(
    name: str, rows: tuple[LabelledRows, LabelledRows], class_count: int = 2, **options: Any
) -> list[tuple[Any, Any]]:
    """Each setting of a head with its fitted estimator."""
    head = load_head(name, (QUICK,))
    return list(fit_grid(head, *rows, class_count=class_count, **{"seed": 0} | options))


def scores_of(estimator: Any, features: np.ndarray, class_count: int = 2) -> np.ndarray:
    return class_scores(estimator, features, class_count, method=scoring_method(estimator))


@pytest.mark.parametrize("class_count", [2, 4])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_probabilities_of_each_class_and_learns(
    name: str, class_count: int
) -> None:
    train, validation = draw_rows(120, class_count)
    for shared in (train.features, train.labels, validation.features, validation.labels):
        shared.flags.writeable = False  # all heads fit the same arrays
    dense = DenseConfig(epochs=10, learning_rate=1e-2, units=16, optimizer="adam")
    head = load_head(name, (dense,))
    found = search(head, train, validation, class_count=class_count, seed=0)
    assert found is not None
    scores = class_scores(found.estimator, validation.features, class_count)
    np.testing.assert_array_equal(scores, found.validation_scores)
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-12)
    accuracy = np.mean(scores.argmax(axis=1) == validation.labels)
    assert accuracy == found.validation_accuracy
    assert accuracy == 1 / class_count if name == "majority" else accuracy > 0.8
    assert found.native_probabilities == (
        name not in ("linear_svm", "ridge", "svm_rbf", "prototype")
    )
    assert found.parameters > 0
    assert all(setting.converged for setting in found.settings)
    np.testing.assert_array_equal(
        class_scores(found.estimator, validation.features[:0], class_count).shape, (0, class_count)
    )


@pytest.mark.parametrize("name", HEADS)
def test_fits_are_repeatable_alone_among_others_and_after_pickling(name: str) -> None:
    rows = draw_rows(60, signal=0.3)
    fits = fit(name, rows, seed=3)
    assert len({params_text(params) for params, _ in fits}) == len(fits)
    params, estimator = fits[-1]
    ((_, alone),) = fit(name, rows, seed=3, settings=[params])
    ((_, other),) = fit(name, rows, seed=4, settings=[params])
    pickled = pickle.loads(pickle.dumps(estimator))  # noqa: S301 - ours
    expected, *scores = (
        scores_of(each, rows[1].features) for each in (estimator, pickled, alone, other)
    )
    np.testing.assert_array_equal(scores[0], expected)
    np.testing.assert_array_equal(scores[1], expected)
    assert np.array_equal(scores[2], expected) == (not HEADS[name].is_stochastic)
    assert HEADS[name].is_stochastic == (name in ("dense", "random_forest"))


REFERENCES: dict[str, Any] = {
    "logistic": LogisticRegression(solver="newton-cholesky", tol=1e-10),
    "linear_svm": LinearSVC(dual=False, tol=1e-10, max_iter=100_000),
    "ridge": RidgeClassifier(),
    "lda": LinearDiscriminantAnalysis(solver="lsqr"),
    "svm_rbf": SVC(),
    "knn": KNeighborsClassifier(metric="cosine"),
    "prototype": NearestCentroid(),
    "random_forest": RandomForestClassifier(200, random_state=5),
    "naive_bayes": GaussianNB(),
    "majority": DummyClassifier(),
}


@pytest.mark.filterwarnings("ignore:.*zero standard deviation")  # of a feature, in NearestCentroid
@pytest.mark.parametrize(("class_count", "balanced"), [(2, False), (3, True)])
@pytest.mark.parametrize("name", REFERENCES)
def test_every_setting_equals_scikit_learns_estimator_on_scaled_rows(
    name: str, class_count: int, balanced: bool
) -> None:
    rows = train, validation = draw_rows(90, class_count, width=10, signal=0.3, rare=3)
    mean = train.features.mean(axis=0, dtype=np.float64)
    scale = np.sqrt(train.features.var(axis=0, dtype=np.float64).sum())
    if name in ("knn", "prototype"):
        mean, scale = 0, 2.0 ** round(math.log2(root_mean_square(train.features)))
    scaled, fresh = ((each.features - mean) / scale for each in rows)
    equal = np.full(class_count, 1 / class_count)
    for params, estimator in fit(name, rows, class_count, seed=5, balanced=balanced):
        own = {key.rpartition("__")[2]: value for key, value in params.items()}
        unit = normalize if name == "prototype" and not own else np.asarray
        reference = REFERENCES[name].set_params(**{} if name == "prototype" else own)
        weights = {}
        if "class_weight" in reference.get_params():
            reference.set_params(class_weight="balanced" if balanced else None)
        elif name == "lda" or name == "naive_bayes":
            reference.set_params(priors=equal if balanced else None)
        elif balanced and name == "majority":
            weights["sample_weight"] = 1 / np.bincount(train.labels)[train.labels]
        reference.fit(unit(scaled), train.labels, **weights)
        method = scoring_method(reference)
        found = getattr(estimator, method)(validation.features)
        expected = getattr(reference, method)(unit(fresh))
        tolerance = 1e-3 if name == "logistic" else 1e-5
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_pca_of_many_features_only_rotates_them() -> None:
    rows = train, validation = draw_rows(40, width=300)
    scaled = train.features - train.features.mean(axis=0, dtype=np.float64)
    scaled /= np.sqrt(scaled.var(axis=0).sum())
    for params, estimator in fit("svm_rbf", rows):
        own = {key.rpartition("__")[2]: value for key, value in params.items()}
        reference = SVC(**own).fit(scaled, train.labels)
        np.testing.assert_allclose(
            estimator.decision_function(train.features),
            reference.decision_function(scaled),
            atol=1e-3,
        )
    rotation = PCA(svd_solver="full").fit(scaled)
    for width, expected in ((300, 300), (1600, 40)):
        (_, estimator), *_ = fit("lda", draw_rows(40, width=width))
        assert estimator["lineardiscriminantanalysis"].n_features_in_ == expected
    assert rotation.n_components_ == 40
    np.testing.assert_allclose(
        rotation.inverse_transform(rotation.transform(scaled)), scaled, atol=1e-9
    )
    assert len(validation) == 40


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("majority", "prototype")])
def test_balance_finds_a_rare_class_more_often(name: str) -> None:
    random = np.random.default_rng(0)
    labels = (np.arange(900) % 10 == 0).astype(np.int64)
    features = (random.normal(size=(900, 8)) + 0.5 * labels[:, None]).astype(np.float32)
    train = LabelledRows(features[:300], labels[:300])
    config = DenseConfig(epochs=20, learning_rate=2e-2, units=8)

    def mean_accuracy(*, balanced: bool) -> float:
        found = fit_grid(
            load_head(name, (config,)), train, train, class_count=2, seed=0, balanced=balanced
        )
        predictions = [estimator.predict(features[300:]) for _, estimator in found]
        return float(np.mean([balanced_accuracy_score(labels[300:], each) for each in predictions]))

    if not can_balance(HEADS[name].build(8, 2)):
        assert name == "knn"  # neighbors have no weights; a warning says so
        return
    assert mean_accuracy(balanced=True) > mean_accuracy(balanced=False) + 0.01


SCALES = (2.0**-100, 2.0**100, 1e-30, 1e-12, 1e12, 1e30)


@pytest.mark.parametrize(
    ("name", "width"), [*((name, 12) for name in HEADS), ("lda", 1600)], ids=lambda each: str(each)
)
def test_a_factor_of_all_features_changes_no_decision_of_a_head_nor_of_its_file(
    name: str, width: int, tmp_path: Path
) -> None:
    rows = draw_rows(60, 3, signal=0.5, width=width)
    head = load_head(name, (QUICK,))
    settings = list(ParameterGrid(head.grid or {}))[:: 5 if name == "kornblith" else 2]
    grid = [{key: [value] for key, value in setting.items()} for setting in settings]
    if name == "random_forest":  # 200 trees take long to save
        grid = [setting | {"randomforestclassifier__n_estimators": [20]} for setting in grid]

    def search_scaled(scale: float) -> tuple[Fit, np.ndarray]:
        """Return the fit on scaled features, and the probabilities of its saved bundle."""
        train, validation = (
            LabelledRows(each.features * np.float32(scale), each.labels) for each in rows
        )
        found = search(replace(head, grid=grid), train, validation, class_count=3, seed=0)
        assert found is not None
        bundle = bundle_of(found.estimator, 3, input="pooled", shape=(width,))
        save_bundle(bundle, tmp_path / "head.skops")
        loaded = load_bundle(tmp_path / "head.skops").estimator
        return found, class_scores(loaded, validation.features, 3)

    expected, _ = search_scaled(1.0)
    for scale in SCALES[::5] if name == "dense" else SCALES:  # each compiles its network
        found, loaded = search_scaled(scale)
        assert found.params == expected.params
        decisions = [each.argmax(axis=1) for each in (found.validation_scores, loaded)]
        np.testing.assert_array_equal(decisions, [expected.validation_scores.argmax(axis=1)] * 2)
        # a power of two changes no bit of the scaled features; other factors round float32 values,
        # and the solvers of svm_rbf stop at a tolerance of 1e-3
        exact = math.log2(scale).is_integer()
        tolerance = 0.0 if exact else 2e-3 if name == "svm_rbf" else 1e-5
        for scores in (found.validation_scores, loaded):
            np.testing.assert_allclose(scores, expected.validation_scores, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "name", [each for each in NOT_DENSE if each not in ("naive_bayes", "prototype")]
)
def test_constant_features_give_finite_probabilities(name: str) -> None:
    found = search(load_head(name), CONSTANT, CONSTANT, class_count=2, seed=0)
    assert found is not None
    np.testing.assert_allclose(found.validation_scores, 0.5, atol=0.35)


@pytest.mark.parametrize("name", ["naive_bayes", "prototype"])
def test_a_head_that_cannot_use_constant_features_says_so(name: str) -> None:
    with pytest.raises(BadDataError, match=r"cannot be fitted: [Aa]ll features "):
        search(load_head(name), CONSTANT, CONSTANT, class_count=2, seed=0)


def test_parameters_are_weights_and_intercepts_or_nodes() -> None:
    for class_count, expected in ((2, 11), (3, 33)):
        rows = draw_rows(150, class_count, width=10)
        for name in ("logistic", "linear_svm", "ridge", "lda"):
            assert parameter_count(fit(name, rows, class_count)[0][1]) == expected
    forest = fit("random_forest", rows, 3)[0][1]
    assert parameter_count(forest) == sum(tree.tree_.node_count for tree in forest[-1])
    assert parameter_count(fit("knn", rows, 3)[0][1]) >= 1500


def test_a_solver_that_stopped_early_has_not_converged() -> None:
    train, _ = draw_rows(90, signal=0.3)
    for name, step in (("logistic", "logisticregression"), ("linear_svm", "linearsvc")):
        estimator = HEADS[name].build(12, 2).set_params(**{f"{step}__max_iter": 1})
        assert not has_converged(estimator.fit(train.features, train.labels))
    estimator = HEADS["svm_rbf"].build(12, 2).set_params(svc__max_iter=1)
    assert not has_converged(estimator.fit(train.features, train.labels))


def test_grid_of_knn_excludes_more_neighbors_than_rows() -> None:
    rows = draw_rows(6)
    found = search(load_head("knn"), *rows, class_count=2, seed=0)
    assert found is not None
    assert [each.params for each in found.settings] == [f"n_neighbors={k}" for k in (5, 3, 1)]
    zeros = class_scores(found.estimator, np.zeros((1, 12), np.float32), 2)
    np.testing.assert_allclose(zeros.sum(axis=1), 1)


def test_the_dense_grid_has_the_most_regularised_first() -> None:
    base = {"units": 16, "learning_rate": 1e-3}
    free, strict = DenseConfig(dropout=0.1, **base), DenseConfig(dropout=0.6, **base)  # type: ignore[arg-type]
    narrow, slow = (
        DenseConfig(**base | {"dropout": 0.1} | each)  # type: ignore[arg-type]
        for each in ({"units": 4}, {"learning_rate": 1e-4})
    )
    grid = load_head("dense", [free, strict, narrow, slow]).grid
    expected = [each.changed() for each in (strict, narrow, slow, free)]
    assert [{key: value for key, (value,) in each.items()} for each in grid] == expected  # type: ignore[union-attr]
