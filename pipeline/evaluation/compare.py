"""Compare heads: fit each on every cached layer, choose on validation, score once on test."""

import contextlib
import logging
import math
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bases.availability import better_base
from pipeline.errors import BadDataError, PipelineError
from pipeline.evaluation.abstention import leave_classes_out, sample_distances
from pipeline.evaluation.caches import SplitCache, open_caches, split_tables
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.fitting import DIVERGED, Fits, fit_heads
from pipeline.evaluation.frames import table_of_frame
from pipeline.evaluation.recommendation import rank_and_recommend
from pipeline.evaluation.refit import NOT_KEPT, add_bundles
from pipeline.evaluation.result import Comparison, Fit, Outcome, Result
from pipeline.evaluation.rows import MANY_ROWS, MAX_FLAT, TrialRows, input_of
from pipeline.evaluation.scoring import new_row, score_on_test, summarize
from pipeline.evaluation.splits import TRAIN
from pipeline.evaluation.target_recommendation import rank_and_recommend_targets
from pipeline.evaluation.tasks import TASKS
from pipeline.heads.config import Input
from pipeline.heads.custom import failures_of
from pipeline.heads.names import HeadRequest
from pipeline.heads.registry import Head, load_head
from pipeline.images.manifest import is_frame
from pipeline.memory import memory_budget, used_memory
from pipeline.spec import CLASSES, MULTILABEL
from pipeline.text import counted, duration, printable

if TYPE_CHECKING:
    from pipeline.evaluation.audit import Audit

PACKAGES = ("numpy", "scipy", "scikit-learn", "keras", "tensorflow")
FEATURE_SHARE = 0.25  # of the memory: the fits, the audit and distances need the rest
SENT_BYTES = 256 << 20  # of features that are sent to the process of a fit
IMBALANCED = 1.5  # ratio of the largest to the smallest class, from which a notice is shown

log = logging.getLogger("pipeline")


def compare_heads(
    caches: Path | str | Sequence[Path | str] | Any,
    config: ClassifyConfig | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Comparison:
    """Compare heads on cached features of the same classes.

    ``caches`` : cache files; or a pandas data frame with the column label, one column per feature,
    and optionally path, split, group and view, such as ``load_features(path, as_="pandas")``. Its
    classifiers are not kept, since they do not classify images. ``task="multilabel"`` or
    ``"regression"`` says that its labels are names with ``|`` between them, or numbers.

    The audit runs when ``notices`` or ``findings`` of the comparison is first read.

    ``progress`` is called with the stage, the fits done and the fits in all. ``options`` are fields
    of `ClassifyConfig`, instead of a config or to change it.

    Raises NoInputError, BadDataError or UsageError.

    Examples
    --------
    >>> from pipeline import compare_heads, extract_features
    >>> cache = extract_features("photos", base="pixels").table.path
    >>> comparison = compare_heads(cache, heads="logistic", audit=False)
    >>> comparison.shown.result.test_accuracy
    1.0
    """
    config = replace(config or ClassifyConfig(), **options)
    config.requests  # noqa: B018 - a misspelt name raises before caches are read
    if is_frame(caches):
        tables = [table_of_frame(caches, config.task or CLASSES)]
        opened, config = split_tables(tables, config), replace(config, keep=False)
        return compare_on_caches(opened, config, progress)
    paths = [caches] if isinstance(caches, str | Path) else caches
    return compare_on_caches(open_caches([Path(path) for path in paths], config), config, progress)


def compare_on_caches(
    opened: Sequence[SplitCache],
    config: ClassifyConfig,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Compare heads on caches of `open_caches`; raises and reports as `compare_heads`."""
    task = opened[0].table.task
    config = replace(config, task=task)
    budget = memory_budget(config.memory)
    requests = config.requests
    run = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "task": task,
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
        "memory": config.memory,
        "views": config.views,
        "tta": config.tta,
        "normal": None if config.normal is None else printable(config.normal),
        "labels": [printable(path.as_posix()) for path in config.label_files],
        "dense": [asdict(dense) for dense in config.dense_grid],
        "versions": versions(),
        "caches": [cache.describe() for cache in opened],
    }
    loaded = {request: load_head(request.name, config.dense_grid, task) for request in requests}
    outcomes = [
        outcome
        for cache in opened
        for layer in cache.layers
        for outcome in _compare_on_layer(cache, layer, loaded, config, budget, progress)
    ]
    if all(outcome.result.status for outcome in outcomes):
        reasons = {f"{outcome.result.head} {outcome.result.status}" for outcome in outcomes}
        raise BadDataError(f"no head could be fitted: {'; '.join(sorted(reasons))}")
    if task == CLASSES:
        ranked, recommendation = rank_and_recommend(outcomes, balanced=config.balance)
    else:
        ranked, recommendation = rank_and_recommend_targets(outcomes, TASKS[task])
    comparison = Comparison(
        outcomes=tuple(ranked),
        classes=opened[0].table.classes,
        run=run,
        recommendation=recommendation,
        table_notices=(
            *_notice_different_images(opened),
            *(notice for cache in opened for notice in cache.trial_plan.notices),
            *_notice_imbalance(opened[0], balanced=config.balance),
            *_notice_missing_class(opened[0]),
            *_notice_unconverged(ranked),
            *filter(None, [better_base([cache.table.document for cache in opened])]),
        ),
    )
    if not config.audit:
        return comparison
    return replace(comparison, audit=_audit_of(comparison.shown, opened, config))


def _compare_on_layer(
    cache: SplitCache,
    layer: str,
    loaded: Mapping[HeadRequest, Head],
    config: ClassifyConfig,
    budget: int,
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[Outcome]:
    """Fit all heads on one layer, input by input; yield their outcomes."""
    by_input: dict[Input, dict[HeadRequest, Head]] = defaultdict(dict)
    for request, head in loaded.items():
        input = input_of(
            cache.table,
            layer,
            requested=request.input,
            default=head.input,
            max_flat=math.inf if head.learns_one_class else MAX_FLAT,
        )
        if all(other.name != request.name for other in by_input[input]):
            by_input[input][request] = head  # vectors have only one input
    distances = None
    if cache.table.task == CLASSES:
        distances = sample_distances(cache.neighbors(layer), cache.trial_plan.trials)
    for input, heads in by_input.items():
        trials = cache.trial_plan.trials
        held = FEATURE_SHARE * (budget - used_memory())
        if config.timeout is not None:  # each fit gets them in another process
            held = min(held, SENT_BYTES)
        is_shared = len(cache.table) > MANY_ROWS and config.timeout is None
        data = TrialRows.read(
            cache.views,
            layer,
            input,
            trials,
            refit=config.refit,
            memory=held,
            in_memory=cache.features(layer) if is_shared else None,
        )
        memory = budget - used_memory()
        fits: dict[HeadRequest, list[list[Fit]]] = {}
        outcomes = {}
        stage = f"fitting {counted(len(heads), 'head')} on {input} {printable(layer)}"
        log.info("%s", stage)
        bar = progress and partial(progress, stage)
        if bar:
            bar(0, len(heads) * len(trials))
        for request, fits_or_reasons in fit_heads(heads, data, config, bar, memory).items():
            result = new_row(request.name, cache.table, layer, input, data.rows)
            scored = _score(result, heads[request], fits_or_reasons, data)
            if isinstance(scored, str):
                outcomes[request] = Outcome(result=replace(result, status=scored))
            else:
                fits[request] = scored
                outcomes[request] = summarize(
                    result,
                    scored,
                    trials,
                    cache.table.columns,
                    folds=cache.trial_plan.folds,
                    distances=distances,
                    has_normal=config.normal is not None,
                )
            _log_outcome(outcomes[request])
        if config.keep:
            yield from add_bundles(
                outcomes, heads, fits, data, cache=cache, config=config, memory=memory
            )
        else:
            yield from (replace(outcome, not_saved=NOT_KEPT) for outcome in outcomes.values())


def _score(
    result: Result, head: Head, fits_or_reasons: Sequence[Fits], data: TrialRows
) -> list[list[Fit]] | str:
    """Return the fits of each trial with their test scores, or the reason if any failed."""
    fits = []
    for of_trial in fits_or_reasons:
        if isinstance(of_trial, str):
            return of_trial
        fits.append(of_trial)
    diverged = sum(len(trial.seeds) for trial in data.trials) - sum(map(len, fits))
    if head.is_stochastic and diverged:
        name, seeds = printable(result.head), counted(diverged, "seed")
        log.warning("%s diverged with %s; its row is the mean of the others", name, seeds)
    try:
        with failures_of(head):  # a custom head may fail on new rows
            return [
                [score_on_test(fit, trial, data) for fit in of_trial]
                for of_trial, trial in zip(fits, data.trials, strict=True)
            ]
    except PipelineError as error:
        return str(error)


def _log_outcome(outcome: Outcome) -> None:
    result = outcome.result
    name = f"{printable(result.head)} on {result.input} {printable(result.layer)}"
    if result.status:
        hint = "; try a lower --learning-rate" if result.head == "dense" else ""
        log.warning("%s %s%s", name, result.status, hint if result.status == DIVERGED else "")
        return
    text, seconds = f"{100 * result.validation_accuracy:.1f} %", duration(result.fit_seconds)
    if result.task != CLASSES:
        task = TASKS[result.task]
        text = f"{task.title} {task.with_unit(result.metrics[f'validation_{task.measure}'])}"
    log.info("%s: validation %s, %s", name, text, seconds)


def _notice_different_images(opened: Sequence[SplitCache]) -> Iterator[str]:
    """Yield a notice per cache that cannot be compared with the first image by image."""
    first, *others = (cache.table for cache in opened)
    for table in others:
        if set(first.columns.row_keys()) != set(table.columns.row_keys()):
            yield (
                f"{printable(first.path)} and {printable(table.path)} contain different images: "
                f"their accuracies are of different test sets"
            )


def _notice_imbalance(cache: SplitCache, *, balanced: bool) -> Iterator[str]:
    """Yield a notice if a class has far fewer images than another.

    All images count, but only those of train/ if the folders decide what is trained on: a drawn
    split or a fold has other shares by chance.
    """
    columns, classes = cache.table.columns, cache.table.classes
    if cache.table.task != CLASSES:
        yield from _notice_rare_labels(cache)
        return
    by_folder = not cache.trial_plan.folds and columns.splits.max() > TRAIN
    labels = columns.labels[columns.splits == TRAIN] if by_folder else columns.labels
    counts = np.bincount(labels, minlength=len(classes))
    fewest, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] < IMBALANCED * counts[fewest] or not counts[fewest]:
        return
    share = 100 * counts[most] / counts.sum()
    images = "training images" if by_folder else "images"
    name, other = printable(classes[most]), printable(classes[fewest])
    yield (
        f"the classes are imbalanced: {counts[most]:,} {images} of {name} ({share:.0f} %), "
        f"{counts[fewest]:,} of {other}; see balanced accuracy"
        + (", which chose the settings" if balanced else ", and consider --balance")
    )


def _notice_missing_class(cache: SplitCache) -> Iterator[str]:
    """Yield a notice per split without images of a class, which only ``--normal`` allows."""
    for split, effect in (
        ("train", "only novelty learns"),
        ("validation", "heads are chosen by their false alarms"),
        ("test", "only false alarms are measured"),
    ):
        parts = [getattr(trial.splits, split) for trial in cache.trial_plan.trials]
        if split == "test":
            parts = [np.concatenate(parts)]  # folds together
        if cache.table.task == CLASSES and any(
            np.ptp(cache.table.columns.labels[part]) == 0 for part in parts
        ):
            where = f"a {split} split" if len(parts) > 1 else split
            yield f"{where} has no image of {printable(cache.table.classes[1])}: {effect}"


def _notice_rare_labels(cache: SplitCache) -> Iterator[str]:
    """Yield a notice if no training or no test image has a label, in any fold."""
    table = cache.table
    if table.task != MULTILABEL:
        return
    for split, effect in (("train", "it is not learned"), ("test", "its precision is left out")):
        parts = [getattr(trial.splits, split) for trial in cache.trial_plan.trials]
        if split == "test" and cache.trial_plan.folds:
            parts = [np.arange(len(table))]  # the folds together
        has_none = np.any([table.columns.targets[part].sum(axis=0) == 0 for part in parts], axis=0)
        if names := [printable(table.classes[label]) for label in np.flatnonzero(has_none)]:
            where = f"no {split} image" + (" of a fold" if len(parts) > 1 else "")
            yield f"{where} has the label {' or '.join(names[:3])}: {effect}"


def _notice_unconverged(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield a notice per head whose solver stopped before it reached its tolerance."""
    for outcome in outcomes:
        stopped = [setting for setting in outcome.settings if not setting.converged]
        if stopped:
            chosen = ", including the chosen one" if any(each.chosen for each in stopped) else ""
            settings = counted(len(outcome.settings), "setting")
            yield (
                f"{printable(outcome.result.head)} did not converge with {len(stopped)} of "
                f"{settings}{chosen} (see settings.csv)"
            )


def _audit_of(shown: Outcome, opened: Sequence[SplitCache], config: ClassifyConfig) -> "Audit":
    """Return the audit of the recommended row's cache and layer."""
    best = shown.result
    cache = next(
        cache
        for cache in opened
        if printable(cache.table.path.as_posix()) == best.cache and best.layer in cache.layers
    )
    folds = cache.trial_plan.trials[: cache.trial_plan.folds]
    from pipeline.evaluation.audit import Audit  # 0.3 s, which --no-audit saves

    return Audit(
        table=cache.table,
        layer=best.layer,
        splits=cache.splits,
        folds=[trial.splits.test for trial in folds],
        seed=config.seed,
        leave_out=partial(leave_classes_out, shown, cache, config),
        read=partial(cache.features, best.layer),
        memory=cache.memory,
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and numerical packages, without importing them."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
