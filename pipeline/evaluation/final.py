"""Which classifier leaves a comparison, with all that it takes to use it."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.bases.config import IMAGENET
from pipeline.cache.file import FeatureTable
from pipeline.errors import PipelineError
from pipeline.evaluation.caches import DividedCache
from pipeline.evaluation.choose import Choice
from pipeline.evaluation.fitting import FitRules, Fitted, TrialRows, side_by_side, within
from pipeline.evaluation.result import Outcome, Result
from pipeline.heads.calibration import Calibrated
from pipeline.heads.head import Classifier, FitOptions, Head, HeadSpec
from pipeline.heads.registry import HeadRequest
from pipeline.heads.training import LabelledRows, TrainingSet
from pipeline.models.bundle import Bundle
from pipeline.models.classifiers import pack

NOT_KEPT = "no classifier was kept"

Model = tuple[HeadSpec, Classifier]


def with_bundles(
    outcomes: Mapping[HeadRequest, Outcome],
    heads: Mapping[HeadRequest, Head],
    fitted: Mapping[HeadRequest, Sequence[Fitted]],
    data: TrialRows,
    *,
    cache: DividedCache,
    rules: FitRules,
) -> list[Outcome]:
    """Each outcome with the classifier that may be saved, or with the reason why there is none.

    Of one division it is exactly the one that was measured: of several seeds the first one's. Of
    folds none of those measured saw all images, so the usual setting is fitted again, on all of
    them (see `fit_on_all`).

    Parameters
    ----------
    fitted : of each head, one for each of ``data.trials``.
    """
    models: dict[HeadRequest, Model | str] = {}
    for request, outcome in outcomes.items():
        if outcome.result.status:
            models[request] = outcome.result.status
            continue
        first = fitted[request][0].choices[0]
        models[request] = _if_savable((first.candidate.spec, first.classifier))
    rows = "train and validation" if rules.refit else "train"
    if folds := cache.division.folds:  # what cannot be saved need not be fitted again
        savable = [request for request, model in models.items() if not isinstance(model, str)]
        models |= fit_on_all({name: heads[name] for name in savable}, fitted, data, rules)
        rows = f"all images, after {folds} folds without them in turn"
    return [
        replace(outcome, not_saved=model)
        if isinstance(model := models[request], str)
        else replace(outcome, bundle=_bundle(outcome.result, model, cache.table, fitted_on=rows))
        for request, outcome in outcomes.items()
    ]


def with_bundle(
    outcome: Outcome, choice: Choice, table: FeatureTable, *, fitted_on: str
) -> Outcome:
    """The outcome with the classifier that was measured, or with the reason why there is none."""
    if outcome.result.status:
        return replace(outcome, not_saved=outcome.result.status)
    model = _if_savable((choice.candidate.spec, choice.classifier))
    if isinstance(model, str):
        return replace(outcome, not_saved=model)
    return replace(outcome, bundle=_bundle(outcome.result, model, table, fitted_on=fitted_on))


def fit_on_all(
    heads: Mapping[HeadRequest, Head],
    fitted: Mapping[HeadRequest, Sequence[Fitted]],
    data: TrialRows,
    rules: FitRules,
) -> dict[HeadRequest, Model | str]:
    """Fit the setting that most folds chose on the rows of all of them; the first of equals.

    Heads run side by side, each within the limit of ``rules``; one that fails has the reason in
    place of its classifier. None can be measured: there is no image left that it has not seen. A
    head without probabilities keeps the temperature that these folds found on validation, their
    geometric mean.
    """
    splits = data.trials[0].splits
    images = np.concatenate([splits.train, splits.validation, splits.test])
    everything = data.to_learn_from(images)
    train = TrainingSet(everything.features, everything.labels, data.class_count, rules.balanced)
    validation = data.as_they_are(splits.validation)

    def fit(request: HeadRequest, head: Head, _: int) -> Model | str:
        chosen = _usual(fitted[request])
        spec = chosen[0].candidate.spec
        options = FitOptions(seeds=data.trials[0].seeds[:1], dense=rules.dense, wanted=spec.params)
        try:
            classifier = within(rules.timeout, _fit_once, request, head, train, validation, options)
        except PipelineError as error:
            return str(error)
        if not classifier.has_probabilities:
            classifier = Calibrated(classifier, _geometric_mean(chosen))
        return _if_savable((spec, classifier))

    return {request: model for request, (model,) in side_by_side(heads, 1, fit).items()}


def _fit_once(
    head: Head, train: TrainingSet, validation: LabelledRows, options: FitOptions
) -> Classifier:
    return next(iter(head.fit_candidates(train, validation, options))).classifier


def _usual(fitted: Sequence[Fitted]) -> list[Choice]:
    """The choices of the setting that was chosen most often; of the first of equals."""
    choices = [choice for each in fitted for choice in each.choices]
    texts = [choice.candidate.spec.params_text for choice in choices]
    (usual, _), *_ = Counter(texts).most_common(1)
    return [choice for choice, text in zip(choices, texts, strict=True) if text == usual]


def _if_savable(model: Model) -> Model | str:
    """The model, or why it cannot be saved."""
    try:
        pack(model[1], {})
    except PipelineError as error:
        return str(error)
    return model


def _bundle(result: Result, model: Model, table: FeatureTable, *, fitted_on: str) -> Bundle:
    spec, classifier = model
    how: dict[str, Any] = {"fitted_on": fitted_on, "views": result.views, "tta": result.tta}
    if result.views or result.tta:
        how["augmentation"] = table.document.get("augmentation")
    return Bundle(
        head=result.head,
        params=spec.params_text,
        classifier=classifier,
        spec=table.spec,
        layer=result.layer,
        input="flat" if result.input == "flat" else "pooled",
        shape=table.layers[result.layer],
        classes=table.classes,
        document=_origin(table) | how,
    )


def _geometric_mean(choices: Sequence[Choice]) -> float:
    return float(np.exp(np.mean([np.log(choice.temperature) for choice in choices])))


def _origin(table: FeatureTable) -> dict[str, Any]:
    """Where the features come from, for whoever uses the classifier later."""
    document = table.document
    return {
        "cache": os.fspath(table.path.resolve()),
        "set": document["set"],
        "root": document["root"],
        "weights_from": str(document.get("weights_from", IMAGENET)),
        "engine": document.get("engine"),
        "versions": document.get("versions"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
