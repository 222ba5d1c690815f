"""Fit every setting of a head's grid and choose one on validation.

No function here takes test rows: none can select on them.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import has_fit_parameter

from pipeline.errors import BadDataError
from pipeline.evaluation.fit_plan import FitPlan, plan_fit
from pipeline.evaluation.lazy_features import LazyFeatures
from pipeline.evaluation.metrics import accuracy_of, log_loss_of
from pipeline.evaluation.result import Fit, Setting, params_text
from pipeline.evaluation.rows import MANY_ROWS, LabelledRows
from pipeline.evaluation.tasks import TASKS
from pipeline.heads.calibration import (
    TemperatureScaling,
    class_scores,
    fit_temperature,
    head_outputs,
    scoring_method,
)
from pipeline.heads.dense import DenseNetwork
from pipeline.heads.many_neighbors import fit_shared, shares_search
from pipeline.heads.registry import Head
from pipeline.heads.scaler import CommonScaler, root_mean_square
from pipeline.heads.streaming import fit_in_blocks
from pipeline.spec import CLASSES

Params = Mapping[str, Any]

# Root mean squares of features that custom heads get as cached. Libraries have absolute tolerances
# (a forest's is 1e-7), and float32 squares overflow from 2e19.
USUAL_SIZES = 1e-2, 1e4
NOT_PARAMETERS = ("classes_", "class_count_")  # arrays that predictions do not use

log = logging.getLogger("pipeline")


def search(
    head: Head,
    train: LabelledRows,
    validation: LabelledRows,
    *,
    class_count: int,
    seed: int,
    balanced: bool = False,
    refit: LabelledRows | None = None,
    memory: float = math.inf,
) -> Fit | None:
    """Fit all settings and keep the one with the highest (balanced) validation accuracy.

    Ties go to the lowest log loss, if there are probabilities: on an easy set many settings make
    no error, and the most regularised of them are needlessly unsure. Remaining ties go to the first
    setting of the grid, the most regularised.

    A classifier without probabilities gets them from a temperature fitted on validation. Settings
    are chosen on unaugmented images; the chosen one is evaluated over views, too. Logistic
    regression that is fitted in blocks stops at the first penalty that is worse than the best in
    accuracy and log loss.

    Parameters
    ----------
    refit : validation rows to fit the chosen setting on again, together with train.
    memory : bytes that the fit may take in addition to the rows in memory.

    Returns None if no setting has finite scores: the training diverged. Raises BadDataError if that
    is because all features are constant.
    """
    if train.task != CLASSES:
        return _search_targets(
            head, train, validation, class_count, seed=seed, refit=refit, memory=memory
        )
    started = time.perf_counter()
    plan = plan_fit(head, train, class_count, memory)
    settings: list[Setting] = []
    best: tuple[float, float] | None = None
    for params, estimator in fit_grid(
        head,
        train,
        validation,
        class_count=class_count,
        seed=seed,
        balanced=balanced,
        plan=plan,
    ):
        method = "decision_function" if head.calibrate else scoring_method(estimator)
        try:
            scores = class_scores(estimator, validation.features, class_count, method=method)
        except ValueError as error:  # such as more neighbors than training rows
            if head.is_custom:  # its row states the error
                raise
            log.debug("%s: %s", params_text(params), error)
            continue
        lost = np.count_nonzero(~np.isfinite(scores).all(axis=1))
        if head.is_custom and 0 < lost < len(scores):  # with all lost, the training diverged
            raise BadDataError(
                f"gave scores that are not finite for {lost:,} of {len(scores):,} images"
            )
        accuracy = loss = math.nan
        is_past_best = False
        if not lost:
            accuracy = accuracy_of(validation.labels, scores, balanced=balanced)
            if method == "predict_proba":
                loss = log_loss_of(validation.labels, scores)
            score = accuracy, 0.0 if math.isnan(loss) else -loss
            if best is None or score > best:
                best, chosen, index = score, (params, estimator, method), len(settings)
            elif plan.in_blocks and isinstance(final_step(estimator), LogisticRegression):
                is_past_best = accuracy < best[0] and -loss < best[1]
        settings.append(
            Setting(
                params=params_text(params),
                validation_accuracy=accuracy,
                validation_log_loss=loss,
                converged=has_converged(estimator),
            )
        )
        if is_past_best:  # weaker penalties take most of the time, and are worse still
            break
    if best is None:
        first = train.features[:1]
        if all((block == first).all() for _, block in train.blocks()):
            raise BadDataError("cannot be fitted: all features are constant")
        return None
    settings[index] = replace(settings[index], chosen=True)
    params, estimator, method = chosen
    if method != "predict_proba":
        estimator = TemperatureScaling(estimator, method=method)
        estimator.fit(validation.features, validation.labels)
    fit = score_on_validation(estimator, validation, seed=seed, params=params, settings=settings)
    fit = replace(fit, note=plan.note)
    if refit is not None:
        fit, estimator = fit_again(
            head,
            fit,
            train.joined(refit),
            validation,
            class_count=class_count,
            balanced=balanced,
            memory=memory,
        )
        fit = replace(fit, estimator=estimator, parameters=parameter_count(estimator))
    return replace(fit, fit_seconds=time.perf_counter() - started)


def _search_targets(
    head: Head,
    train: LabelledRows,
    validation: LabelledRows,
    count: int,
    *,
    seed: int,
    refit: LabelledRows | None,
    memory: float,
) -> Fit | None:
    """Fit all settings of a head of another task; keep that with the best measure on validation.

    Ties go to the first setting, the most regularised. Returns and raises as `search`.
    """
    started, task = time.perf_counter(), TASKS[train.task]
    plan = plan_fit(head, train, count, memory)
    settings: list[Setting] = []
    fits: list[tuple[float, int, Params, Any]] = []
    for params, estimator in fit_grid(
        head, train, validation, class_count=count, seed=seed, plan=plan
    ):
        try:
            scores = head_outputs(estimator, validation.features, count, task.name)
        except ValueError as error:  # such as more neighbors than training rows
            if head.is_custom:  # its row states the error
                raise
            log.debug("%s: %s", params_text(params), error)
            continue
        value = task.value(validation.labels, scores) if np.isfinite(scores).all() else math.nan
        if not math.isnan(value):
            fits.append((-task.sign * value, len(settings), params, estimator))
        settings.append(
            Setting(
                params=params_text(params),
                validation_accuracy=value,
                validation_log_loss=math.nan,
                converged=has_converged(estimator),
            )
        )
    if not fits:
        return None
    _, index, params, estimator = min(fits, key=lambda fit: fit[:2])
    settings[index] = replace(settings[index], chosen=True)
    fit = Fit(
        estimator=estimator,
        seed=seed,
        params=params,
        parameters=parameter_count(estimator),
        validation_scores=validation.mean_probabilities(estimator),
        settings=tuple(settings),
        note=plan.note,
    )
    if refit is not None:
        joined = train.joined(refit)
        fit, estimator = fit_again(head, fit, joined, validation, class_count=count, memory=memory)
        fit = replace(fit, estimator=estimator, parameters=parameter_count(estimator))
    return replace(fit, fit_seconds=time.perf_counter() - started)


def score_on_validation(
    estimator: Any,
    validation: LabelledRows,
    *,
    seed: int,
    params: Params,
    settings: Sequence[Setting] = (),
    fit_seconds: float = math.nan,
) -> Fit:
    """Evaluate a fitted estimator with probabilities on validation; return its `Fit`."""
    labels = validation.labels
    scores = validation.mean_probabilities(estimator)
    is_scaled = isinstance(estimator, TemperatureScaling)
    if is_scaled:
        temperature = estimator.temperature
    else:
        temperature = fit_temperature(labels, scores, has_probabilities=True)
    return Fit(
        estimator=estimator,
        seed=seed,
        params=params,
        parameters=parameter_count(estimator),
        native_probabilities=not is_scaled,
        temperature=temperature,
        validation_scores=scores,
        validation_accuracy=accuracy_of(labels, scores),
        validation_balanced_accuracy=accuracy_of(labels, scores, balanced=True),
        settings=tuple(settings),
        history=getattr(final_step(estimator), "history_", None),
        fit_seconds=fit_seconds,
    )


def fit_again(
    head: Head,
    fit: Fit,
    train: LabelledRows,
    validation: LabelledRows,
    *,
    class_count: int,
    balanced: bool = False,
    memory: float = math.inf,
) -> tuple[Fit, Any]:
    """Fit the chosen setting on other rows; return the fit with its note, and the estimator.

    The estimator has the temperature of the fit.
    """
    plan = plan_fit(head, train, class_count, memory)
    ((_, estimator),) = fit_grid(
        head,
        train,
        validation,
        class_count=class_count,
        seed=fit.seed,
        balanced=balanced,
        settings=[fit.params],
        plan=plan,
    )
    if not fit.native_probabilities:
        method = fit.estimator.method
        estimator = TemperatureScaling(estimator, method=method, temperature=fit.temperature)
    return replace(fit, note=plan.note), estimator


def fit_grid(
    head: Head,
    train: LabelledRows,
    validation: LabelledRows,
    *,
    class_count: int,
    seed: int,
    balanced: bool = False,
    settings: Iterable[Params] | None = None,
    plan: FitPlan | None = None,
) -> Iterator[tuple[Params, Any]]:
    """Yield each setting, by default of the head's grid, with its fitted estimator.

    A custom head gets a scaler as its first step if `has_usual_size` is false. Transformers of a
    `Pipeline` that no setting changes are fitted once. An estimator whose ``fit``
    takes ``validation_data`` monitors validation by epoch, and does not train on it.

    Estimators with a parameter ``map_shape`` get the shape of flattened maps; those that learn one
    class, the image of each row as ``groups``.

    Raises BadDataError for classes that none of the rows has.
    """
    plan = plan or plan_fit(head, train, class_count, math.inf)
    if not head.learns_one_class and train.task == CLASSES and np.ptp(train.labels) == 0:
        raise BadDataError("needs training images of two classes")
    settings = list(ParameterGrid(head.grid or {}) if settings is None else settings)
    template = head.build(train.shape[1], class_count)
    set_where_none(template, "random_state", seed)
    set_where_none(template, "map_shape", train.map_shape)
    if plan.rows is not None:
        train = train.take(plan.rows)
    weights = balance(template, train.labels, class_count) if balanced else {}
    if plan.in_blocks and not isinstance(final_step(template), DenseNetwork):
        yield from fit_in_blocks(template, settings, train, class_count=class_count, **weights)
        return
    if len(train) > MANY_ROWS and shares_search(template, train.features):
        yield from fit_shared(template, settings, np.array(train.features), train.labels)
        return
    if not plan.in_blocks:
        train = train.in_memory()
    elif isinstance(train.features, np.ndarray):
        train = replace(train, features=LazyFeatures.of(train.features))
    if head.is_custom:  # it may change its arguments in place, which other heads get, too
        train, validation = (
            replace(each, features=np.array(each.features), labels=each.labels.copy(), views=())
            for each in (train, validation)
        )
        if not has_usual_size(np.asarray(train.features)):
            steps = template.steps if isinstance(template, Pipeline) else [("head", template)]
            template = Pipeline([("unit", CommonScaler(with_mean=False)), *steps])
    transformers, (final_name, model) = [], ("", template)
    rows = train.features
    if isinstance(template, Pipeline):
        *transformers, (final_name, model) = template.steps
    shared = all(name.startswith(f"{final_name}__") for params in settings for name in params)
    monitors = has_fit_parameter(model, "validation_data")
    monitored = (
        validation.features if plan.in_blocks or not monitors else validation.in_memory().features
    )
    if transformers and shared:
        shared_steps = Pipeline(transformers)
        rows = shared_steps.fit_transform(rows, train.labels)
        if monitors:
            monitored = shared_steps.transform(monitored)
    if monitors:
        weights["validation_data"] = monitored, validation.labels
    if head.learns_one_class:
        weights["groups"] = train.images
    fits, failure = 0, ""
    for params in settings:
        candidate = clone(template).set_params(**params)
        try:
            if transformers and shared:
                final = candidate[-1].fit(rows, train.labels, **weights)
                candidate = Pipeline([*transformers, (final_name, final)])
            else:
                prefix = f"{final_name}__" if final_name else ""
                named = {prefix + name: value for name, value in weights.items()}
                candidate.fit(train.features, train.labels, **named)
        except ValueError as error:  # such as features that are all constant
            if head.is_custom:  # its row states the error
                raise
            failure = str(error)
            log.debug("%s: %s", params_text(params), failure)
            continue
        fits += 1
        yield params, candidate
    if not fits and failure:
        raise BadDataError(f"cannot be fitted: {failure}")


def has_usual_size(features: npt.NDArray[np.float32]) -> bool:
    """Return whether custom heads can use features (N, D) as cached, without a scaler."""
    least, most = USUAL_SIZES
    return least <= root_mean_square(features) <= most


def balance(estimator: Any, labels: npt.NDArray[np.int64], class_count: int) -> dict[str, Any]:
    """Weight the classes equally; return the arguments that the final step's ``fit`` needs."""
    equal = np.full(class_count, 1 / class_count)
    has_weights = set_where_none(estimator, "class_weight", "balanced")
    if has_weights or set_where_none(estimator, "priors", equal) or not can_balance(estimator):
        return {}
    return {"sample_weight": compute_sample_weight("balanced", labels)}


def can_balance(estimator: Any) -> bool:
    """Return whether an estimator takes weights or priors of classes, or weights of rows."""
    while isinstance(estimator, TemperatureScaling):
        estimator = estimator.estimator
    names = {name.split("__")[-1] for name in estimator.get_params()}
    is_weighted = has_fit_parameter(final_step(estimator), "sample_weight")
    return bool(names & {"class_weight", "priors"}) or is_weighted


def final_step(estimator: Any) -> Any:
    """Return the classifier at the end of a `Pipeline`, or the estimator itself."""
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


def set_where_none(estimator: Any, name: str, value: object) -> bool:
    """Set parameters of that name, of any step, that are None; return whether there is one."""
    params = estimator.get_params()
    keys = [key for key in params if key.split("__")[-1] == name]
    estimator.set_params(**{key: value for key in keys if params[key] is None})
    return bool(keys)


def has_converged(estimator: Any) -> bool:
    """Return whether the solver reached its tolerance before its last iteration."""
    final = final_step(estimator)
    if isinstance(final, OneVsRestClassifier):
        return all(map(has_converged, final.estimators_))
    if hasattr(final, "fit_status_"):  # of SVC: 1 if it stopped early
        return bool(final.fit_status_ == 0)
    if hasattr(final, "do_early_stopping_"):  # of boosting: max_iter is its number of trees
        return True
    iterations, most = getattr(final, "n_iter_", None), getattr(final, "max_iter", None)
    return iterations is None or not most or most < 0 or bool(np.max(iterations) < most)


def parameter_count(estimator: Any) -> int:
    """Return the number of fitted values that an estimator predicts with.

    These are coefficients, nodes of trees, or the arrays of its final step, such as neighbors.
    """
    if isinstance(estimator, TemperatureScaling):
        return parameter_count(estimator.estimator)
    if isinstance(estimator, Pipeline):
        if hasattr(estimator[-1], "coef_"):  # counted as weights of the features before PCA
            return int(np.size(estimator[-1].intercept_)) * (1 + int(estimator.n_features_in_))
        return parameter_count(estimator[-1])
    if hasattr(estimator, "coef_"):
        return int(np.size(estimator.coef_) + np.size(estimator.intercept_))
    if hasattr(estimator, "centroids_"):
        return int(np.size(estimator.centroids_))
    if hasattr(estimator, "tree_"):
        return int(estimator.tree_.node_count)
    if hasattr(estimator, "estimators_"):
        return sum(map(parameter_count, np.ravel(np.asarray(estimator.estimators_, object))))
    if hasattr(estimator, "parameters"):
        return int(estimator.parameters)
    return sum(
        _array_size(value) for name, value in vars(estimator).items() if name not in NOT_PARAMETERS
    )


def _array_size(value: Any) -> int:
    """Return the number of values in an array, in lists of arrays, or the nodes of a tree."""
    if isinstance(value, list):
        return sum(map(_array_size, value))
    value = getattr(value, "nodes", value)  # of HistGradientBoostingClassifier's trees
    return value.size if isinstance(value, np.ndarray) else 0
