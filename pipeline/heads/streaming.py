"""Fit heads from rows that are read in blocks: memory does not grow with the number of rows.

Ridge, LDA, prototypes, naive Bayes and constant predictors need sums only: one pass over the rows
serves all settings of a grid. Logistic regression and linear SVMs need a pass per step, see
`block_descent`; a setting is fitted when it is requested. The results are scikit-learn's own fitted
estimators.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.linalg.blas import dsyrk
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_sample_weight

from pipeline.heads.block_descent import (
    GTOL,
    GTOL_OF_HINGE,
    Loss,
    descend,
    sigmoid_loss,
    softmax_loss,
    squared_hinge_loss,
)
from pipeline.heads.moments import (
    ArrayRows,
    RowBlocks,
    class_indicators,
    directions_of,
    moments_of,
    shift_of,
)
from pipeline.heads.prototype import NearestPrototype
from pipeline.heads.scaler import CommonScaler
from pipeline.spec import CLASSES

__all__ = ["ArrayRows", "RowBlocks", "can_stream", "fit_in_blocks"]

Array = npt.NDArray[np.float64]
Weights = Array | None
Params = Mapping[str, Any]
Fitted = tuple[CommonScaler, Any]  # scaler and final step


def can_stream(template: Any, task: str = CLASSES) -> bool:
    """Return whether `fit_in_blocks` fits an estimator: heads of the table, few custom ones."""
    if type(template) in (DummyClassifier, DummyRegressor):
        return True
    if not isinstance(template, Pipeline):
        return False
    scaler, *middle, final = (step for _, step in template.steps)
    if isinstance(final, OneVsRestClassifier):
        final = final.estimator
        if type(final) is not LogisticRegression or final.class_weight or task == CLASSES:
            return False
    if type(final) not in FITS or type(scaler) is not CommonScaler:
        return False
    if scaler.with_mean is isinstance(final, NearestPrototype):
        return False
    if getattr(final, "shrinkage", None) == "auto":
        return False
    _, fixed, free = FITS[type(final)]
    expected = type(final)(**fixed).get_params()
    if any(repr(step) != repr(BETWEEN.get(type(template[-1]))) for step in middle):
        return False
    return all(
        name in free or value == expected[name] for name, value in final.get_params().items()
    )


def fit_in_blocks(
    template: Any,
    settings: Sequence[Params],
    rows: RowBlocks,
    *,
    class_count: int,
    sample_weight: Weights = None,
) -> Iterator[tuple[Params, Any]]:
    """Yield each setting with its fitted estimator, as `fit_grid` does for rows in memory.

    ``sample_weight`` (N,) is for estimators whose ``fit`` takes it. LDA has no PCA step here:
    rotated features give the same decisions.
    """
    candidates = [clone(template).set_params(**params) for params in settings]
    if not isinstance(template, Pipeline):  # constant predictors
        nothing = np.broadcast_to(np.float32(0), rows.shape)
        for params, candidate in zip(settings, candidates, strict=True):
            yield params, candidate.fit(nothing, rows.labels, sample_weight)
        return
    fit, *_ = FITS[type(_innermost(template[-1]))]
    for params, candidate, (scaler, final) in zip(
        settings, candidates, fit(candidates, rows, sample_weight), strict=True
    ):
        (first, _), *middle, (last, _) = candidate.steps
        for _, step in middle:
            if isinstance(step, Normalizer):
                step.fit(np.zeros((1, rows.shape[1])))
        middle = [(name, step) for name, step in middle if not isinstance(step, PCA)]
        yield params, Pipeline([(first, scaler), *middle, (last, final)])


def _innermost(final: Any) -> Any:
    return final.estimator if isinstance(final, OneVsRestClassifier) else final


def _fit_ridge(candidates: Sequence[Any], rows: RowBlocks, weights: Weights) -> Iterator[Fitted]:
    final = candidates[0][-1]
    labels = rows.labels
    if isinstance(final, RidgeClassifier):
        classes, numbers = np.unique(labels, return_inverse=True)
        targets = class_indicators(numbers, len(classes))
        weights = _with_class_weights(final, numbers, weights)
        moments = moments_of(rows, targets, weights)
        mean, products = 2 * moments.target_mean - 1, 2 * moments.products  # of targets 1 and -1
        if len(classes) == 2:
            mean, products = mean[1:], products[1:]
        few = classes
    else:
        moments = moments_of(rows, labels.reshape(len(labels), -1).astype(np.float64), weights)
        mean, products = moments.target_mean, moments.products
        few = labels[:2]
    for candidate in candidates:
        final = _fit_on_few(candidate[-1], few, rows.shape[1])
        penalised = moments.scatter.copy(order="F")
        penalised.flat[:: rows.shape[1] + 1] += final.alpha
        coef = linalg.solve(penalised, products.T, assume_a="pos", overwrite_a=True).T
        intercept = mean - coef @ moments.mean
        # scikit-learn's shapes: one class or target has no axis
        final.coef_ = coef.reshape(*final.coef_.shape[:-1], rows.shape[1])
        final.intercept_ = intercept.reshape(np.shape(final.intercept_))[()]
        yield moments.scaler, final


def _fit_lda(candidates: Sequence[Any], rows: RowBlocks, _: Weights) -> Iterator[Fitted]:
    classes, labels, counts = np.unique(rows.labels, return_inverse=True, return_counts=True)
    priors = candidates[0][-1].priors
    priors = counts / len(labels) if priors is None else np.asarray(priors)
    # the covariance of each class counts by its prior
    weights = None if candidates[0][-1].priors is None else (priors / counts)[labels] * len(labels)
    moments = moments_of(rows, class_indicators(labels, len(classes)), weights)
    class_weights = moments.target_mean * moments.weight
    offsets = moments.products / class_weights[:, None]  # of the means of classes from the mean
    means = moments.mean + offsets
    within = moments.scatter
    roots = offsets * np.sqrt(class_weights)[:, None]
    within = dsyrk(-1.0, roots.T, 1.0, within, overwrite_c=True) / moments.weight
    # shrinkage averages over the features; PCA keeps min(N, D) of them
    is_rotated = any(isinstance(step, PCA) for step in candidates[0])
    size = np.trace(within) / (min(rows.shape) if is_rotated else rows.shape[1])
    for candidate in candidates:
        final = _fit_on_few(candidate[-1], classes, rows.shape[1])
        shrinkage = final.shrinkage or 0.0
        covariance = (1 - shrinkage) * within
        covariance.flat[:: len(covariance) + 1] += shrinkage * size
        covariance = np.triu(covariance) + np.triu(covariance, 1).T
        try:
            coef = linalg.solve(covariance, means.T, assume_a="pos").T
        except linalg.LinAlgError:  # constant features
            coef = linalg.lstsq(covariance, means.T)[0].T
        intercept = np.log(priors) - 0.5 * np.einsum("kd,kd->k", means, coef)
        if len(classes) == 2:
            coef, intercept = np.diff(coef, axis=0), np.diff(intercept)
        final.means_, final.covariance_, final.priors_ = means, covariance, priors
        final.coef_, final.intercept_ = coef, intercept
        yield moments.scaler, final


def _fit_prototypes(candidates: Sequence[Any], rows: RowBlocks, _: Weights) -> Iterator[Fitted]:
    classes, labels, counts = np.unique(rows.labels, return_inverse=True, return_counts=True)
    indicators = class_indicators(labels, len(classes))
    width, shift = rows.shape[1], shift_of(rows)
    sums = np.zeros((2, len(classes), width))  # of rows minus shift, and of normalized rows
    squares = np.zeros((2, width))
    for numbers, block in rows.blocks():
        whole = block.astype(np.float64)
        for place, each in enumerate((whole - shift, directions_of(whole))):
            sums[place] += indicators[numbers].T @ each
            squares[place] += np.einsum("nd,nd->d", each, each)
    scaler = CommonScaler.of_sums(
        len(labels), shift, sums[0].sum(axis=0), squares[0], with_mean=False
    )
    for candidate in candidates:
        normal = any(isinstance(step, Normalizer) for step in candidate)
        means = sums[int(normal)] / counts[:, None]
        within = squares[int(normal)] - counts @ means**2
        deviations = np.sqrt(np.maximum(within, 0) / (len(labels) - len(classes)))
        if not normal:
            means, deviations = (means + shift) / scaler.scale_, deviations / scaler.scale_
        final = _fit_on_few(candidate[-1], classes, width)
        final.centroids_, final.within_class_std_dev_ = means, deviations
        errors = np.sqrt(1 / counts - 1 / len(labels))[:, None]  # of a mean, in deviations
        with np.errstate(divide="ignore", invalid="ignore"):
            final.deviations_ = (means - counts @ means / len(labels)) / (
                errors * (deviations + np.median(deviations))
            )
        yield scaler, final


def _fit_naive_bayes(
    candidates: Sequence[Any], rows: RowBlocks, weights: Weights
) -> Iterator[Fitted]:
    classes, counts = np.unique(rows.labels, return_counts=True)
    shift = shift_of(rows)
    exact = clone(candidates[0][-1]).set_params(var_smoothing=0.0)  # else per block
    for numbers, block in rows.blocks():
        weight = None if weights is None else weights[numbers]
        exact.partial_fit(block.astype(np.float64) - shift, rows.labels[numbers], classes, weight)
    count = len(rows.labels)
    shares = counts / count
    mean = shares @ exact.theta_
    squares = shares @ (exact.var_ + exact.theta_**2)
    scaler = CommonScaler.of_sums(count, shift, count * mean, count * squares)
    exact.theta_ = (exact.theta_ - mean) / scaler.scale_
    exact.var_ /= scaler.scale_**2
    largest = np.max(squares - mean**2) / scaler.scale_**2
    for candidate in candidates:
        final = deepcopy(exact).set_params(var_smoothing=candidate[-1].var_smoothing)
        final.epsilon_ = final.var_smoothing * largest
        final.var_ += final.epsilon_
        yield scaler, final


def _fit_descent(candidates: Sequence[Any], rows: RowBlocks, weights: Weights) -> Iterator[Fitted]:
    finals = [candidate[-1] for candidate in candidates]
    models = [_innermost(final) for final in finals]
    is_svm = isinstance(models[0], LinearSVC)
    targets: npt.NDArray[Any]
    loss: Loss
    if rows.labels.ndim == 2:
        few = np.stack([rows.labels.min(axis=0), rows.labels.max(axis=0)]).astype(int)
        indicators = targets = rows.labels[:, few[0] < few[1]].astype(np.float32)
        loss = sigmoid_loss
    else:
        classes, numbers = np.unique(rows.labels, return_inverse=True)
        few = classes
        indicators = class_indicators(numbers, len(classes))
        is_class = numbers[:, None] == np.arange(len(classes))[1 if len(classes) == 2 else 0 :]
        if is_svm:  # as in LIBLINEAR, the weight of a class is not that of the rest
            of_class = _with_class_weights(models[0], numbers, None)
            ones = np.ones(len(numbers), np.float32)
            costs = ones if of_class is None else of_class.astype(np.float32)
            others = costs if len(classes) == 2 else ones
            targets = np.where(is_class, costs[:, None], -others[:, None])
            loss = squared_hinge_loss
        else:
            weights = _with_class_weights(models[0], numbers, weights)
            targets, loss = is_class.astype(np.float32), sigmoid_loss
            if len(classes) > 2:
                targets, loss = numbers, softmax_loss
    moments = moments_of(rows, indicators, weights)
    minima = descend(
        rows,
        moments,
        loss,
        targets,
        [1 / (model.C * moments.weight) for model in models],
        columns=targets.shape[1] if targets.ndim == 2 else len(few),
        row_weights=weights,
        penalise_intercept=is_svm,
        gtol=GTOL_OF_HINGE if is_svm else GTOL,
        max_iter=models[0].max_iter,
    )
    for final, minimum in zip(finals, minima, strict=True):
        final = _fit_on_few(final, few, rows.shape[1])
        if isinstance(final, OneVsRestClassifier):  # a label that all rows have has no weights
            fitted = [model for model in final.estimators_ if hasattr(model, "coef_")]
            coefs, intercepts = minimum.weights[:, None], minimum.intercepts[:, None]
            parts = list(zip(fitted, coefs, intercepts, strict=True))
        else:
            parts = [(final, minimum.weights, minimum.intercepts)]
        for model, coef, intercept in parts:
            model.coef_, model.intercept_ = coef, intercept
            model.n_iter_ = np.full_like(model.n_iter_, minimum.iterations)[()]
        yield moments.scaler, final


def _fit_on_few(final: Any, labels: npt.NDArray[Any], width: int) -> Any:
    """Fit a copy on two rows of one feature per label; the caller replaces its arrays.

    So it has all attributes that scikit-learn's ``fit`` sets.
    """
    labels = np.repeat(labels, 2, axis=0)
    fitted = clone(final).fit(np.tile([0.0, 1.0], len(labels) // 2)[:, None], labels)
    for model in (fitted, *getattr(fitted, "estimators_", ())):
        if hasattr(model, "n_features_in_"):
            model.n_features_in_ = width
    return fitted


def _with_class_weights(final: Any, labels: npt.NDArray[np.int64], weights: Weights) -> Weights:
    if final.class_weight is None:
        return weights
    of_class = compute_sample_weight(final.class_weight, labels)
    return np.asarray(of_class if weights is None else of_class * weights)


Fit = Callable[[Sequence[Any], RowBlocks, Weights], Iterator[Fitted]]

# By final step: how it is fitted, the parameters it needs, and those that are free
_SOLVER = {"class_weight", "max_iter", "random_state", "tol"}
FITS: Mapping[type, tuple[Fit, Params, Set[str]]] = {
    RidgeClassifier: (_fit_ridge, {}, {"alpha", "class_weight", "random_state"}),
    Ridge: (_fit_ridge, {}, {"alpha", "random_state"}),
    LinearDiscriminantAnalysis: (_fit_lda, {"solver": "lsqr"}, {"priors", "shrinkage"}),
    NearestPrototype: (_fit_prototypes, {}, set()),
    GaussianNB: (_fit_naive_bayes, {}, {"priors", "var_smoothing"}),
    LogisticRegression: (_fit_descent, {}, {"C", *_SOLVER}),
    LinearSVC: (_fit_descent, {"dual": False}, {"C", *_SOLVER}),
}

# The steps between scaler and final step
BETWEEN: Mapping[type, Any] = {
    LinearDiscriminantAnalysis: PCA(svd_solver="full"),
    NearestPrototype: Normalizer(),
}
