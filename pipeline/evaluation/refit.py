"""Add to each outcome a bundle: its classifier with all that `predict` needs."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from pipeline.bases.config import IMAGENET
from pipeline.cache.file import FeatureTable
from pipeline.errors import PipelineError
from pipeline.evaluation.caches import SplitCache
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.fit_plan import MemoryGate, plan_fit
from pipeline.evaluation.fitting import call_with_time_limit, run_in_parallel
from pipeline.evaluation.result import Fit, Outcome, most_frequent_setting, params_text
from pipeline.evaluation.rows import TrialRows
from pipeline.evaluation.search import fit_again
from pipeline.heads.calibration import TemperatureScaling
from pipeline.heads.many_neighbors import without_search
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import Head
from pipeline.models.bundle import Bundle, check_savable
from pipeline.spec import CLASSES

NOT_KEPT = "no classifier was kept"


def add_bundles(
    outcomes: Mapping[HeadRequest, Outcome],
    heads: Mapping[HeadRequest, Head],
    fits: Mapping[HeadRequest, Sequence[Sequence[Fit]]],
    data: TrialRows,
    *,
    cache: SplitCache,
    config: ClassifyConfig,
    memory: float = math.inf,
) -> list[Outcome]:
    """Return each outcome with its bundle, or with the reason why it has none.

    After one split, the bundle contains the evaluated classifier, of several seeds the first. After
    folds, no classifier is fitted on all images yet, so `fit_on_all` fits one. ``fits`` contains
    the fits of each head with metrics, by trial and seed.
    """
    first_fits = {request: fits[request][0][0] for request in fits}
    fitted_on = "train and validation" if config.refit else "train"
    kept = {
        request: add_bundle(outcome, first_fits.get(request), cache.table, fitted_on=fitted_on)
        for request, outcome in outcomes.items()
    }
    if cache.trial_plan.folds:
        savable = {request: heads[request] for request in kept if kept[request].bundle}
        fitted_on = f"all images, after {cache.trial_plan.folds} folds without them in turn"
        for request, fit in fit_on_all(savable, fits, data, config, memory).items():
            if isinstance(fit, str):
                kept[request] = replace(kept[request], bundle=None, not_saved=fit)
            else:
                kept[request] = add_bundle(kept[request], fit, cache.table, fitted_on=fitted_on)
    return list(kept.values())


def add_bundle(
    outcome: Outcome, fit: Fit | None, table: FeatureTable, *, fitted_on: str
) -> Outcome:
    """Return the outcome with the bundle of a fit, or with the reason why it has none."""
    if fit is None or outcome.result.status:
        return replace(outcome, not_saved=outcome.result.status)
    if fit.note:
        fitted_on += f" ({fit.note})"
    bundle = _make_bundle(outcome, fit, table, fitted_on=fitted_on)
    try:
        check_savable(bundle)
    except PipelineError as error:
        return replace(outcome, not_saved=str(error))
    return replace(outcome, bundle=bundle)


def fit_on_all(
    heads: Mapping[HeadRequest, Head],
    fits: Mapping[HeadRequest, Sequence[Sequence[Fit]]],
    data: TrialRows,
    config: ClassifyConfig,
    memory: float = math.inf,
) -> dict[HeadRequest, Fit | str]:
    """Fit each head on all images, with the setting that most folds chose.

    Returns the fits, which no image is left to evaluate, or the reasons why they failed. A head
    without probabilities gets the geometric mean of the temperatures of the folds with its setting.
    """
    splits = data.trials[0].splits
    train = data.training_rows(np.concatenate([splits.train, splits.validation, splits.test]))
    validation = data.unaugmented(splits.validation)
    gate = MemoryGate(memory)

    def fit(request: HeadRequest, head: Head, _: int) -> Fit | str:
        chosen = most_frequent_setting([fit for of_trial in fits[request] for fit in of_trial])
        first = replace(chosen[0], seed=data.trials[0].seeds[0])
        work = partial(
            fit_again,
            fit=first,
            train=train,
            validation=validation,
            class_count=data.class_count,
            balanced=config.balance,
            memory=memory,
        )
        try:
            plan = plan_fit(head, train, data.class_count, memory)
            with gate.reserve(plan.needed):
                first, estimator = call_with_time_limit(config, work, request.name)
        except PipelineError as error:
            return str(error)
        if isinstance(estimator, TemperatureScaling):
            logarithms = [np.log(of_fold.temperature) for of_fold in chosen]
            estimator.temperature = float(np.exp(np.mean(logarithms)))
        return replace(first, estimator=estimator)

    return {request: result for request, (result,) in run_in_parallel(heads, 1, fit).items()}


def _make_bundle(outcome: Outcome, fit: Fit, table: FeatureTable, *, fitted_on: str) -> Bundle:
    result, origin = outcome.result, table.document
    document: dict[str, Any] = {
        "cache": os.fspath(table.path.resolve()),
        "set": origin["set"],
        "root": origin["root"],
        "weights_from": str(origin.get("weights_from", IMAGENET)),
        "engine": origin.get("engine"),
        "versions": origin.get("versions"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fitted_on": fitted_on,
        "views": result.views,
        "tta": result.tta,
    }
    if table.task != CLASSES:
        document["task"] = table.task
    if "normal" in origin:
        document["normal"] = origin["normal"]
    if result.views or result.tta:
        document["augmentation"] = origin.get("augmentation")
    if outcome.calibration is not None:
        document["calibration_set"] = outcome.calibration.to_document()
    return Bundle(
        head=result.head,
        params=params_text(fit.params),
        estimator=without_search(fit.estimator),
        spec=table.spec,
        layer=result.layer,
        input="flat" if result.input == "flat" else "pooled",
        shape=table.layers[result.layer],
        classes=table.classes,
        document=document,
    )
