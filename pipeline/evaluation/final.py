"""Which classifier leaves a comparison, with all that it takes to use it."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.bases.weights import IMAGENET
from pipeline.cache.file import FeatureTable
from pipeline.errors import PipelineError
from pipeline.evaluation.caches import DividedCache
from pipeline.evaluation.choose import Choice
from pipeline.evaluation.fitting import FitRules, Fitted, TrialRows
from pipeline.evaluation.result import Outcome
from pipeline.heads.calibration import Calibrated
from pipeline.heads.head import Classifier, FitOptions, Head, HeadSpec
from pipeline.heads.training import TrainingSet
from pipeline.models.bundle import Bundle
from pipeline.models.classifiers import pack

NOT_KEPT = "no classifier was kept"


def with_bundle(
    outcome: Outcome,
    head: Head,
    fitted: Sequence[Fitted],
    data: TrialRows,
    *,
    cache: DividedCache,
    rules: FitRules,
) -> Outcome:
    """The outcome with the classifier that may be saved, or with the reason why there is none.

    Of one division it is exactly the one that was measured: of several seeds the first one's. Of
    folds none of those measured saw all images, so the usual setting is fitted again, on all of
    them (see `fit_on_all`).

    Parameters
    ----------
    fitted : one for each of ``data.trials``.
    """
    result = outcome.result
    if result.status:
        return replace(outcome, not_saved=result.status)
    first = fitted[0].choices[0]
    spec, classifier, rows = first.candidate.spec, first.classifier, "train"
    try:
        pack(classifier, {})  # what cannot be saved need not be fitted again
        if cache.division.folds:
            spec, classifier = fit_on_all(head, fitted, data, rules)
            pack(classifier, {})
            rows = f"all images, after {cache.division.folds} folds without them in turn"
        elif rules.refit:
            rows = "train and validation"
    except PipelineError as error:
        return replace(outcome, not_saved=str(error))
    table = cache.table
    bundle = Bundle(
        head=result.head,
        params=spec.params_text,
        classifier=classifier,
        spec=table.spec,
        layer=result.layer,
        input="flat" if result.input == "flat" else "pooled",
        shape=table.layers[result.layer],
        classes=table.classes,
        document=_origin(table) | {"fitted_on": rows},
    )
    return replace(outcome, bundle=bundle)


def fit_on_all(
    head: Head, fitted: Sequence[Fitted], data: TrialRows, rules: FitRules
) -> tuple[HeadSpec, Classifier]:
    """Fit the setting that most folds chose on the rows of all of them; the first of equals.

    It cannot be measured: there is no image left that it has not seen. A head without
    probabilities keeps the temperature that these folds found on validation, their geometric mean.
    """
    choices = [choice for each in fitted for choice in each.choices]
    texts = [choice.candidate.spec.params_text for choice in choices]
    (usual, _), *_ = Counter(texts).most_common(1)
    chosen = [choice for choice, text in zip(choices, texts, strict=True) if text == usual]
    spec = chosen[0].candidate.spec
    splits = data.trials[0].splits
    rows = np.sort(np.concatenate([splits.train, splits.validation, splits.test]))
    everything = data.take(rows)
    train = TrainingSet(everything.features, everything.labels, data.class_count, rules.balanced)
    options = FitOptions(seeds=data.trials[0].seeds[:1], dense=rules.dense, wanted=spec.params)
    with threadpool_limits(limits=1, user_api="blas"):  # as in `fit_heads`
        candidates = head.fit_candidates(train, data.take(splits.validation), options)
        classifier = next(iter(candidates)).classifier
    if not classifier.has_probabilities:
        classifier = Calibrated(classifier, _geometric_mean(chosen))
    return spec, classifier


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
