"""Fine-tuning (*Deep Learning with Python*, 5.3) from cached maps of the freeze boundary."""

import logging
import math
import shutil
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.api import extract_features
from pipeline.bases.boundary import Boundary, find_boundary, unfrozen, upper_model
from pipeline.bases.build import build_base
from pipeline.cache.fill import RowProgress
from pipeline.durable import make_folder
from pipeline.errors import StorageError
from pipeline.evaluation.caches import SplitCache, open_caches
from pipeline.evaluation.refit import add_bundle
from pipeline.evaluation.rows import TrialRows, read_input
from pipeline.evaluation.scoring import new_row, score_on_test, summarize
from pipeline.evaluation.search import score_on_validation
from pipeline.finetuning.config import FinetuneConfig, Plan
from pipeline.finetuning.method_result import CheckpointFolder, MethodResult, shortfalls, unread
from pipeline.finetuning.rows import Rows, scratch_maps
from pipeline.finetuning.training import (
    RunOptions,
    StageProgress,
    Task,
    TrainableModel,
    TrainingResult,
    train,
)
from pipeline.heads.dense import build_dense
from pipeline.images.scan import NO_SPLIT, scan_folder
from pipeline.models.top_block import HEAD_WEIGHTS, dense_classifier, top_block
from pipeline.text import file_size, printable

HEAD_STAGE, JOINT_STAGE = "head", "fine-tuning"

log = logging.getLogger("pipeline")


def train_from_cache(
    data: Path,
    config: FinetuneConfig,
    stack: ExitStack,
    *,
    extracting: RowProgress | None,
    training: StageProgress | None,
) -> MethodResult:
    """Cache, train the head, then the layers, too; ``stack`` closes the data on the disk."""
    base, size = config.extract.network, config.extract.size
    base_model, _ = build_base(config.extract)
    boundary = find_boundary(base_model, base, config.first_unfrozen)
    _check_scratch(data, config, boundary)
    layers = [boundary.layer, base.last_layer]
    extracted = extract_features(
        data, config.extract, layers=layers, views=config.views, progress=extracting
    )
    has_splits = any(file.split != NO_SPLIT for file in extracted.images.files)
    (cache,) = open_caches(
        [extracted.table.path],
        replace(config.classify_config(has_splits=has_splits), layers=layers, views=config.views),
    )
    (trial,) = cache.trial_plan.trials
    wanted = rows_of(cache)
    maps = stack.enter_context(
        scratch_maps(
            partial(cache.views.table.features, boundary.layer),
            wanted,
            row_shape=boundary.shape,
            folder=config.extract.cache_dir,
        )
    )  # of 5,000 rows of VGG16's block4_pool 830 MB
    below = trial_rows(cache, wanted, maps.reshape(len(wanted), -1))
    last = trial_rows(cache, wanted, read_input(cache.views.table, base.last_layer, wanted, "flat"))
    checkpoints = CheckpointFolder.of(
        config, cache.table.columns, trial, features=cache.table.spec.fingerprint
    )
    network, class_count = config.plan.network, len(cache.table.classes)
    all_trained, frozen, tuned = [], [], []
    for seed in trial.seeds:
        trained = finetune_from_cache(
            base_model,
            boundary,
            task_of(below, boundary.shape),
            checkpoints.options(seed, training),
            plan=config.plan,
            features=task_of(last, cache.table.layers[base.last_layer]),
        )
        before = trained.frozen_head
        if before is None:
            raise ValueError("fine-tuning trains the head on the frozen base first")
        all_trained.append(trained)
        fit = score_on_validation(
            dense_classifier(before.weights, class_count, network),
            last.unaugmented(trial.splits.validation),
            seed=seed,
            params=network.changed(),
            fit_seconds=sum(before.seconds),
        )
        frozen.append(replace(fit, history=before.history))
        weights = trained.weights
        fit = score_on_validation(
            top_block(base_model, base, size, boundary, weights, class_count, network),
            below.unaugmented(trial.splits.validation),
            seed=seed,
            params={"unfreeze": config.first_unfrozen, **network.changed()},
            fit_seconds=sum(before.seconds) + sum(trained.seconds),
        )
        tuned.append(replace(fit, history=trained.history))
    outcomes = []
    for name, fits, rows, layer in (
        ("frozen_head", frozen, last, base.last_layer),
        ("fine_tuned", tuned, below, boundary.layer),
    ):
        scored = [score_on_test(fit, trial, rows) for fit in fits]
        outcome = summarize(
            new_row(name, cache.table, layer, "flat", rows.rows),
            [scored],
            [trial],
            cache.table.columns,
            folds=0,
        )
        outcomes.append(add_bundle(outcome, fits[0], cache.table, fitted_on="train"))
    return MethodResult(
        outcomes=outcomes,
        classes=cache.table.classes,
        trial_plan=cache.trial_plan,
        source=cache.describe(),
        checkpoints=checkpoints,
        notices=[*unread(extracted.skipped), *shortfalls(all_trained, trial.seeds)],
    )


def finetune_from_cache(
    base_model: Any,
    boundary: Boundary,
    task: Task,
    options: RunOptions,
    *,
    plan: Plan,
    features: Task,
) -> TrainingResult:
    """Train the head, then the layers above the boundary with it, reading only cached maps.

    Parameters
    ----------
    base_model : frozen, as `build_base` makes it; left as it was.
    task : rows of the boundary's maps (N, H, W, C).
    features : the same rows of the base's last layer.
    """
    upper = upper_model(base_model, boundary)
    head = build_dense(upper.output_shape[1:], task.class_count, plan.network, options.seed)
    on_features = TrainableModel(head, head_variables(head))
    frozen = train(on_features, features, plan.head, options, stage=HEAD_STAGE)
    with unfrozen(base_model, boundary) as learns:
        network = TrainableModel(head, learns | head_variables(head), body=upper)
        tuned = train(network, task, plan.joint, options, stage=JOINT_STAGE)
    return replace(tuned, frozen_head=frozen)


def head_variables(head: Any) -> dict[str, Any]:
    """A dense head's variables by name, ``head/hidden_kernel`` and so on."""
    names = (f"head/{name}" for name in HEAD_WEIGHTS)
    return dict(zip(names, head.trainable_variables, strict=True))


def _check_scratch(data: Path, config: FinetuneConfig, boundary: Boundary) -> None:
    """Raise StorageError before the extraction if the training data cannot fit beside it."""
    images = len(scan_folder(data).files)
    needed = 4 * math.prod(boundary.shape) * images * (1 + config.views)
    folder = config.extract.cache_dir
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    log.info(
        "training will take at most %s of the disk beside the cache, %s free",
        file_size(needed), file_size(free),
    )  # fmt: skip
    if needed > free:
        raise StorageError(
            f"{printable(folder)} has too little room to train: {file_size(needed)} "
            f"needed, {file_size(free)} free; make room, or take fewer --views"
        )


def rows_of(cache: SplitCache) -> npt.NDArray[np.int64]:
    """What is read: first all that is learned from, then validation and test as they are."""
    (trial,) = cache.trial_plan.trials
    rows, splits = cache.views.rows, trial.splits
    judged = [rows.of_view(images) for images in (splits.validation, splits.test)]
    return np.concatenate([rows.training_rows(splits.train), *judged])


def trial_rows(
    cache: SplitCache, wanted: npt.NDArray[np.int64], features: npt.NDArray[np.float32]
) -> TrialRows:
    """Features (R, D) of these rows, with what they are."""
    return TrialRows(
        features=features,
        labels=cache.table.columns.labels,
        class_count=len(cache.table.classes),
        trials=cache.trial_plan.trials,
        rows=cache.views.rows.take(wanted),
    )


def task_of(data: TrialRows, shape: tuple[int, ...]) -> Task:
    """The same rows as a network takes them, (N, H, W, C)."""
    (trial,) = data.trials
    learned = data.training_rows(trial.splits.train)
    watched = data.unaugmented(trial.splits.validation)
    return Task(
        train=Rows(learned.features.reshape(-1, *shape), learned.labels),
        validation=Rows(watched.features.reshape(-1, *shape), watched.labels),
        class_count=data.class_count,
    )
