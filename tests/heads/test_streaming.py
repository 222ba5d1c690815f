"""Heads fitted from blocks of rows equal those that scikit-learn fits in memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import ParameterGrid
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from threadpoolctl import threadpool_limits

from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import balance, fit_grid
from pipeline.heads import moments
from pipeline.heads.prototype import NearestPrototype
from pipeline.heads.registry import HEADS, TARGET_HEADS, Head
from pipeline.heads.scaler import CommonScaler
from pipeline.heads.streaming import ArrayRows, can_stream, fit_in_blocks
from pipeline.spec import MULTILABEL, REGRESSION

EXACT = ["ridge", "lda", "prototype", "naive_bayes", "majority"]
Fits = list[tuple[Any, Any]]


@pytest.fixture(autouse=True)
def _small_blocks_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(moments, "ROWS_PER_BLOCK", 70)
    with threadpool_limits(1, user_api="blas"):
        yield


def draw(class_count: int, *, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return 600 rows of 24 correlated features and their classes; the mean is in deviations."""
    random = np.random.default_rng(0)
    labels = np.minimum(np.arange(600) % (class_count + 2), class_count - 1)  # unbalanced
    mixing = random.normal(size=(24, 24)) * np.exp(-np.arange(24) / 6)
    centers = 0.7 * random.normal(size=(class_count, 24)) @ mixing
    features = random.normal(size=(600, 24)) @ mixing + centers[labels]
    return (features + mean * features.std()).astype(np.float32), labels


def fits_of(
    head: Head,
    features: np.ndarray,
    labels: np.ndarray,
    class_count: int,
    *,
    balanced: bool = False,
) -> tuple[Fits, Fits]:
    """Each setting with its estimator, fitted in blocks and in memory."""
    rows = LabelledRows(features, labels)
    template = head.build(features.shape[1], class_count)
    assert can_stream(template)
    weights = balance(template, labels, class_count) if balanced else {}
    streamed = fit_in_blocks(
        template,
        list(ParameterGrid(head.grid or {})),
        ArrayRows(features, labels),
        class_count=class_count,
        **weights,
    )
    whole = fit_grid(head, rows, rows, class_count=class_count, seed=0, balanced=balanced)
    return list(streamed), list(whole)


def arrays_of(estimator: Any) -> dict[str, np.ndarray]:
    final = estimator[-1] if hasattr(estimator, "steps") else estimator
    return {
        name: np.asarray(value)
        for name, value in vars(final).items()
        if name.endswith("_") and np.asarray(value).dtype.kind == "f"
    }


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("class_count", [2, 4])
@pytest.mark.parametrize("name", EXACT)
def test_sums_give_the_fitted_values_and_decisions_of_scikit_learn(
    name: str, class_count: int, mean: float, balanced: bool
) -> None:
    features, labels = draw(class_count, mean=mean)
    streamed, whole = fits_of(HEADS[name], features, labels, class_count, balanced=balanced)
    tolerance = 1e-6 if name == "prototype" and mean else 1e-8  # scikit-learn's sums cancel
    for (params, found), (expected_params, expected) in zip(streamed, whole, strict=True):
        assert params == expected_params
        np.testing.assert_array_equal(found.predict(features), expected.predict(features))
        values = arrays_of(found)
        for attribute, value in arrays_of(expected).items():
            largest = max(np.abs(value).max(), 1e-6)
            np.testing.assert_allclose(values[attribute], value, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_prototypes_of_features_of_any_size_are_those_of_scikit_learn(scale: float) -> None:
    features, labels = draw(4)
    features *= np.float32(scale)
    streamed, whole = fits_of(HEADS["prototype"], features, labels, 4)
    for (_, found), (_, expected) in zip(streamed, whole, strict=True):
        np.testing.assert_allclose(found[-1].centroids_, expected[-1].centroids_, atol=1e-9)


def test_lda_of_fewer_rows_than_features_shrinks_as_scikit_learn() -> None:
    features, labels = draw(4)
    streamed, whole = fits_of(HEADS["lda"], features[:16], labels[:16], 4)
    for (_, found), (_, expected) in zip(streamed, whole, strict=True):
        np.testing.assert_allclose(
            found.predict_proba(features), expected.predict_proba(features), atol=1e-6
        )


def test_lda_without_rotation_decides_as_with_pca() -> None:
    features, labels = draw(4)
    features = np.hstack([features, features[:, ::-1] ** 2])[:40]  # fewer rows than features
    labels = labels[:40]
    template = make_pipeline(
        CommonScaler(), PCA(svd_solver="full"), LinearDiscriminantAnalysis(solver="lsqr")
    ).set_params(lineardiscriminantanalysis__shrinkage=0.1)
    assert can_stream(template)
    ((_, found),) = fit_in_blocks(template, [{}], ArrayRows(features, labels), class_count=4)
    expected = template.fit(features, labels)
    np.testing.assert_allclose(
        found.predict_proba(features), expected.predict_proba(features), atol=1e-8
    )


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("class_count", [2, 4])
@pytest.mark.parametrize("mean", [0.0, 30_000.0])
@pytest.mark.parametrize("name", ["logistic", "linear_svm"])
def test_descent_reaches_the_loss_of_scikit_learn(
    name: str, mean: float, class_count: int, balanced: bool
) -> None:
    features, labels = draw(class_count, mean=mean)
    streamed, whole = fits_of(HEADS[name], features, labels, class_count, balanced=balanced)
    counts = np.bincount(labels)
    weights = (len(labels) / (class_count * counts))[labels] if balanced else np.ones(len(labels))

    def loss(estimator: Any) -> float:
        """Return the mean loss and penalty that the estimator minimises."""
        final = estimator[-1]
        square = np.sum(final.coef_**2)
        if name == "logistic":
            probabilities = estimator.predict_proba(features)
            value = log_loss(labels, probabilities, sample_weight=weights)
        else:
            square += np.sum(final.intercept_**2)
            scores = estimator.decision_function(features).reshape(len(labels), -1)
            classes = np.arange(class_count)[-scores.shape[1] :]
            signs = np.where(labels[:, None] == classes, 1, -1)
            costs = (
                weights[:, None] if class_count == 2 else np.where(signs > 0, weights[:, None], 1)
            )
            value = float(np.mean((costs * np.maximum(1 - signs * scores, 0) ** 2).sum(axis=1)))
        return value + square / (2 * final.C * len(labels))

    for (_, found), (_, expected) in zip(streamed, whole, strict=True):
        assert abs(loss(found) - loss(expected)) < 1e-4
        assert np.mean(found.predict(features) == expected.predict(features)) > 0.99


@pytest.mark.parametrize(("task", "name"), [(MULTILABEL, "ridge"), (REGRESSION, "ridge")])
def test_ridge_of_targets_equals_scikit_learn(task: str, name: str) -> None:
    features, labels = draw(4)
    targets = labels.astype(float) if task == REGRESSION else np.eye(4)[labels]
    head = TARGET_HEADS[task][name]
    template = head.build(24, 4)
    settings = list(ParameterGrid(head.grid))
    for params, found in fit_in_blocks(
        template, settings, ArrayRows(features, targets), class_count=4
    ):
        expected = head.build(24, 4).set_params(**params).fit(features, targets)
        assert np.shape(found[-1].intercept_) == np.shape(expected[-1].intercept_)
        np.testing.assert_allclose(found.predict(features), expected.predict(features), atol=1e-8)


def test_label_that_every_row_has_is_fitted_next_to_the_others() -> None:
    features, labels = draw(3)
    targets = np.eye(3, dtype=int)[labels]
    targets[:, 1] = 1
    head = TARGET_HEADS[MULTILABEL]["logistic"]
    params = {"onevsrestclassifier__estimator__C": 1.0}
    template = head.build(24, 3)
    ((_, found),) = fit_in_blocks(template, [params], ArrayRows(features, targets), class_count=3)
    expected = head.build(24, 3).set_params(**params).fit(features, targets)
    np.testing.assert_allclose(
        found.predict_proba(features), expected.predict_proba(features), atol=1e-3
    )


@pytest.mark.parametrize("name", EXACT)
def test_all_settings_share_one_pass(name: str) -> None:
    features, labels = draw(4)
    read = 0

    class Counted(ArrayRows):
        def blocks(self) -> Iterator[Any]:
            nonlocal read
            for numbers, block in super().blocks():
                read += len(numbers)
                yield numbers, block

    head = HEADS[name]
    template = head.build(24, 4)
    settings = list(ParameterGrid(head.grid or {}))
    list(fit_in_blocks(template, settings, Counted(features, labels), class_count=4))
    assert read <= len(features) + 70  # the first block once more, for the shift


@pytest.mark.parametrize(
    "template",
    [
        HEADS["knn"].build(24, 4),
        HEADS["kornblith"].build(24, 4),
        HEADS["svm_rbf"].build(24, 4),
        make_pipeline(CommonScaler(), LogisticRegression(fit_intercept=False)),
        make_pipeline(CommonScaler(with_mean=False), LogisticRegression()),
        make_pipeline(CommonScaler(), OneVsRestClassifier(LogisticRegression())),
        make_pipeline(CommonScaler(), NearestPrototype()),
        make_pipeline(CommonScaler(with_mean=False), Normalizer("l1"), NearestPrototype()),
        make_pipeline(CommonScaler(), PCA(8), LinearDiscriminantAnalysis(solver="lsqr")),
        make_pipeline(CommonScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")),
        LogisticRegression(),
    ],
)
def test_other_estimators_are_not_fitted_in_blocks(template: Any) -> None:
    assert not can_stream(template)


def test_error_of_a_read_ends_all_fits() -> None:
    features, labels = draw(4)
    reads = 0

    class Broken(ArrayRows):
        def blocks(self) -> Iterator[Any]:
            nonlocal reads
            reads += 1
            if reads > 6:
                raise OSError("disk")
            return super().blocks()

    head = HEADS["logistic"]
    settings = list(ParameterGrid(head.grid))
    with pytest.raises(OSError, match="disk"):
        list(fit_in_blocks(head.build(24, 4), settings, Broken(features, labels), class_count=4))
