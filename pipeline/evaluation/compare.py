"""Fit every head on every cached layer; choose on validation, score once on test."""

import contextlib
import logging
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import BadDataError, PipelineError
from pipeline.evaluation.caches import SplitCache, open_caches
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.fitting import DIVERGED, Fits, fit_heads
from pipeline.evaluation.recommendation import rank_and_recommend
from pipeline.evaluation.refit import NOT_KEPT, with_bundles
from pipeline.evaluation.result import Comparison, Fit, Outcome, Result
from pipeline.evaluation.rows import TrialRows, input_of
from pipeline.evaluation.scoring import new_row, score_on_test, summarize
from pipeline.heads.config import Input
from pipeline.heads.custom import failures_of
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import Head, load_head
from pipeline.text import counted, duration, printable

PACKAGES = ("numpy", "scipy", "scikit-learn", "keras", "tensorflow")
IMBALANCED = 1.5  # times as many images of one class as of another are worth a word

log = logging.getLogger("pipeline")


def compare_heads(
    caches: Path | str | Sequence[Path | str],
    config: ClassifyConfig | None = None,
    **options: Any,
) -> Comparison:
    """Compare classifiers on cached features of the same classes.

    ``options`` are fields of `ClassifyConfig`, in place of a config or to change it.

    Raises NoInputError, BadDataError or UsageError in one line.

    Examples
    --------
    >>> from pipeline import compare_heads, extract_features
    >>> cache = extract_features("photos", base="pixels").table.path
    >>> comparison = compare_heads(cache, heads="logistic", audit=False)
    >>> comparison.shown.result.test_accuracy
    1.0
    """
    config = replace(config or ClassifyConfig(), **options)
    requests = config.requests
    opened = open_caches(
        [Path(caches)] if isinstance(caches, str | Path) else [Path(path) for path in caches],
        config,
    )
    run = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "classes": list(opened[0].table.classes),
        "heads": [printable(str(request)) for request in requests],
        "seed": config.seed,
        "repeats": config.repeats,
        "cv": opened[0].trial_plan.folds or None,
        "split": None if config.split is None else printable(config.split),
        "split_seed": config.split_seed,
        "group": None if config.group is None else printable(config.group),
        "refit": config.refit,
        "protocol": config.protocol,
        "balance": config.balance,
        "timeout": config.timeout,
        "views": config.views,
        "tta": config.tta,
        "labels": [printable(path.as_posix()) for path in config.label_files],
        "dense": [asdict(each) for each in config.dense_grid],
        "versions": versions(),
        "caches": [cache.describe() for cache in opened],
    }
    loaded = {request: load_head(request.name, config.dense_grid) for request in requests}
    outcomes = [
        outcome
        for cache in opened
        for layer in cache.layers
        for outcome in _compare_on_layer(cache, layer, loaded, config)
    ]
    if all(outcome.result.status for outcome in outcomes):
        reasons = {f"{each.result.head} {each.result.status}" for each in outcomes}
        raise BadDataError(f"no head could be fitted: {'; '.join(sorted(reasons))}")
    judged, recommendation = rank_and_recommend(outcomes, balanced=config.balance)
    comparison = Comparison(
        outcomes=tuple(judged),
        classes=opened[0].table.classes,
        run=run,
        recommendation=recommendation,
        notices=(
            *_other_images(opened),
            *(notice for cache in opened for notice in cache.trial_plan.notices),
            *_imbalance(opened[0].splits.counts["train"], balanced=config.balance),
            *_unconverged(judged),
        ),
    )
    return _audited(comparison, opened, config.seed) if config.audit else comparison


def _compare_on_layer(
    cache: SplitCache,
    layer: str,
    loaded: Mapping[HeadRequest, Head],
    config: ClassifyConfig,
) -> Iterator[Outcome]:
    by_input: dict[Input, dict[HeadRequest, Head]] = defaultdict(dict)
    for request, head in loaded.items():
        kind = input_of(cache.table, layer, wanted=request.input, default=head.input)
        if all(other.name != request.name for other in by_input[kind]):
            by_input[kind][request] = head  # of a vector, flat and pooled are the same
    for kind, heads in by_input.items():
        trials = cache.trial_plan.trials
        data = TrialRows.read(cache.views, layer, kind, trials, refit=config.refit)
        fitted = fit_heads(heads, data, config)
        fits: dict[HeadRequest, list[list[Fit]]] = {}
        outcomes = {}
        for request, head in heads.items():
            result = new_row(request.name, cache.table, layer, kind, data.rows)
            outcome = _score(result, head, fitted[request], data)
            if isinstance(outcome, Outcome):
                outcomes[request] = outcome
            else:
                fits[request] = outcome
                outcomes[request] = summarize(
                    result, outcome, trials, cache.table.columns, folds=cache.trial_plan.folds
                )
            _log_outcome(outcomes[request])
        if config.keep:
            yield from with_bundles(outcomes, heads, fits, data, cache=cache, config=config)
        else:
            yield from (replace(outcome, not_saved=NOT_KEPT) for outcome in outcomes.values())


def _score(
    result: Result, head: Head, fitted: Sequence[Fits], data: TrialRows
) -> list[list[Fit]] | Outcome:
    """A head's fits with their test scores; or, where one failed, the row that says why."""
    failed = next((each for each in fitted if isinstance(each, str)), None)
    if failed is not None:
        return Outcome(result=replace(result, status=failed))
    found = [each for each in fitted if not isinstance(each, str)]
    lost = sum(len(trial.seeds) for trial in data.trials) - sum(map(len, found))
    if head.is_stochastic and lost:
        name, seeds = printable(result.head), counted(lost, "seed")
        log.warning("%s diverged with %s; its row is of the others", name, seeds)
    try:
        with failures_of(head):  # a custom head may fail on other rows
            return [
                [score_on_test(fit, trial, data) for fit in each]
                for each, trial in zip(found, data.trials, strict=True)
            ]
    except PipelineError as error:
        return Outcome(result=replace(result, status=str(error)))


def _log_outcome(outcome: Outcome) -> None:
    result = outcome.result
    name = f"{printable(result.head)} on {result.input} {printable(result.layer)}"
    if result.status:
        hint = "; try a lower --learning-rate" if result.head == "dense" else ""
        log.warning("%s %s%s", name, result.status, hint if result.status == DIVERGED else "")
        return
    share, seconds = 100 * result.validation_accuracy, duration(result.fit_seconds)
    log.info("%s: validation %.1f %%, %s", name, share, seconds)


def _other_images(opened: Sequence[SplitCache]) -> Iterator[str]:
    """Say which caches cannot be compared image by image."""
    first, *others = (cache.table for cache in opened)
    for table in others:
        if set(first.columns.row_keys()) != set(table.columns.row_keys()):
            yield (
                f"{printable(first.path)} and {printable(table.path)} hold different images: "
                f"their accuracies are not of the same test"
            )


def _imbalance(counts: Mapping[str, int], *, balanced: bool) -> Iterator[str]:
    """Say where some class has far fewer training images than another."""
    fewest, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda n: counts[n])
    if counts[most] < IMBALANCED * counts[fewest]:
        return
    share = 100 * counts[most] / sum(counts.values())
    yield (
        f"the classes are imbalanced: {counts[most]:,} training images of {printable(most)} "
        f"({share:.0f} %), {counts[fewest]:,} of {printable(fewest)}; look at balanced accuracy"
        + (", which chose the settings" if balanced else ", and consider --balance")
    )


def _unconverged(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Say which settings' solvers stopped before they reached their tolerance."""
    for outcome in outcomes:
        stopped = [each for each in outcome.settings if not each.converged]
        if stopped:
            chosen = ", the chosen one among them" if any(each.chosen for each in stopped) else ""
            settings = counted(len(outcome.settings), "setting")
            yield (
                f"{printable(outcome.result.head)} did not converge with {len(stopped)} of "
                f"{settings}{chosen} (settings.csv has them)"
            )


def _audited(comparison: Comparison, opened: Sequence[SplitCache], seed: int) -> Comparison:
    """The comparison with what looking into the features of the row that is shown found."""
    best = comparison.shown.result
    cache = next(
        each
        for each in opened
        if printable(each.table.path.as_posix()) == best.cache and best.layer in each.layers
    )
    folds = cache.trial_plan.trials[: cache.trial_plan.folds]
    from pipeline.evaluation.audit import audit_features  # 0.3 s, which --no-audit does without

    findings, notices = audit_features(
        cache.table,
        best.layer,
        splits=cache.splits,
        folds=[trial.splits.test for trial in folds],
        seed=seed,
    )
    return replace(comparison, findings=findings, notices=(*notices, *comparison.notices))


def versions() -> dict[str, str]:
    """Versions of what computes here, without importing it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
