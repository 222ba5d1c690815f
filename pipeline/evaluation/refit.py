"""Which classifier leaves a comparison, with all that it takes to use it."""

import os
from collections import Counter
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
from pipeline.evaluation.fitting import run_in_parallel, within
from pipeline.evaluation.result import Fit, Outcome, Result, params_text
from pipeline.evaluation.rows import TrialRows
from pipeline.evaluation.search import fit_again
from pipeline.heads.calibration import TemperatureScaling
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import Head
from pipeline.models.bundle import Bundle
from pipeline.models.serialization import dump_estimator

NOT_KEPT = "no classifier was kept"


def with_bundles(
    outcomes: Mapping[HeadRequest, Outcome],
    heads: Mapping[HeadRequest, Head],
    fits: Mapping[HeadRequest, Sequence[Sequence[Fit]]],
    data: TrialRows,
    *,
    cache: SplitCache,
    config: ClassifyConfig,
) -> list[Outcome]:
    """Each outcome with the classifier that may be saved, or with the reason why there is none.

    Of one division it is the one that was measured, of several seeds the first one's. Of folds none
    saw all images, so `fit_on_all` fits again. ``fits`` has those of each head with figures, of
    each of ``data.trials``.
    """
    measured = {request: fits[request][0][0] for request in fits}
    fitted_on = "train and validation" if config.refit else "train"
    kept = [
        with_bundle(each, measured.get(request), cache.table, fitted_on=fitted_on)
        for request, each in outcomes.items()
    ]
    if not cache.trial_plan.folds:
        return kept
    # what cannot be saved need not be fitted again
    savable = [request for request, each in zip(outcomes, kept, strict=True) if each.bundle]
    again = fit_on_all({request: heads[request] for request in savable}, fits, data, config)
    on_all = f"all images, after {cache.trial_plan.folds} folds without them in turn"
    refitted = []
    for request, outcome in zip(outcomes, kept, strict=True):
        found = again.get(request)
        if isinstance(found, str):
            outcome = replace(outcome, bundle=None, not_saved=found)
        elif found is not None:
            outcome = with_bundle(outcome, found, cache.table, fitted_on=on_all)
        refitted.append(outcome)
    return refitted


def with_bundle(
    outcome: Outcome, fit: Fit | None, table: FeatureTable, *, fitted_on: str
) -> Outcome:
    if fit is None or outcome.result.status:
        return replace(outcome, not_saved=outcome.result.status)
    try:
        dump_estimator(fit.estimator)  # raises for what no file can hold
    except PipelineError as error:
        return replace(outcome, not_saved=str(error))
    return replace(outcome, bundle=_bundle(outcome.result, fit, table, fitted_on=fitted_on))


def fit_on_all(
    heads: Mapping[HeadRequest, Head],
    fits: Mapping[HeadRequest, Sequence[Sequence[Fit]]],
    data: TrialRows,
    config: ClassifyConfig,
) -> dict[HeadRequest, Fit | str]:
    """Fit the setting that most folds chose on the rows of all of them; the first of equals.

    A head that fails has the reason in place of its fit. None can be measured: it has seen every
    image. A head without probabilities gets the geometric mean of these folds' temperatures.
    """
    splits = data.trials[0].splits
    train = data.training_rows(np.concatenate([splits.train, splits.validation, splits.test]))
    validation = data.unaugmented(splits.validation)

    def fit(request: HeadRequest, head: Head, _: int) -> Fit | str:
        chosen = _usual([fit for of_trial in fits[request] for fit in of_trial])
        usual = replace(chosen[0], seed=data.trials[0].seeds[0])
        work = partial(
            fit_again,
            fit=usual,
            train=train,
            validation=validation,
            class_count=data.class_count,
            balanced=config.balance,
        )
        try:
            estimator = within(config, work, request.name)
        except PipelineError as error:
            return str(error)
        if isinstance(estimator, TemperatureScaling):
            logarithms = [np.log(each.temperature) for each in chosen]
            estimator.temperature = float(np.exp(np.mean(logarithms)))
        return replace(usual, estimator=estimator)

    return {request: found for request, (found,) in run_in_parallel(heads, 1, fit).items()}


def _usual(fits: Sequence[Fit]) -> list[Fit]:
    texts = [params_text(fit.params) for fit in fits]
    (usual, _), *_ = Counter(texts).most_common(1)
    return [fit for fit, text in zip(fits, texts, strict=True) if text == usual]


def _bundle(result: Result, fit: Fit, table: FeatureTable, *, fitted_on: str) -> Bundle:
    origin = table.document
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
    if result.views or result.tta:
        document["augmentation"] = origin.get("augmentation")
    return Bundle(
        head=result.head,
        params=params_text(fit.params),
        estimator=fit.estimator,
        spec=table.spec,
        layer=result.layer,
        input="flat" if result.input == "flat" else "pooled",
        shape=table.layers[result.layer],
        classes=table.classes,
        document=document,
    )
