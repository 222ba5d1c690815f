"""Fine-tuning (*Deep Learning with Python*, 5.3) on cached maps of the last frozen layer."""

import math
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
from pipeline.errors import UsageError
from pipeline.evaluation.abstention import sample_distances
from pipeline.evaluation.caches import SplitCache, open_caches
from pipeline.evaluation.refit import add_bundle
from pipeline.evaluation.rows import TrialRows, read_input
from pipeline.evaluation.scoring import new_row, score_on_test, summarize
from pipeline.evaluation.search import score_on_validation
from pipeline.evaluation.splits import check_two_classes
from pipeline.finetuning.checkpoints import CheckpointFolder
from pipeline.finetuning.config import FinetuneConfig, Plan
from pipeline.finetuning.method_result import MethodResult, notices_of
from pipeline.finetuning.rows import Rows, check_disk_space, scratch_maps
from pipeline.finetuning.training import (
    RunOptions,
    StageProgress,
    Task,
    TrainableModel,
    TrainingResult,
    train,
)
from pipeline.heads.dense import build_dense
from pipeline.images.scan import NO_SPLIT, ImageSet
from pipeline.images.sets import open_set
from pipeline.models.top_block import HEAD_WEIGHTS, dense_classifier, top_block
from pipeline.spec import CLASSES
from pipeline.text import printable

HEAD_STAGE, JOINT_STAGE = "head", "fine-tuning"


def train_from_cache(
    data: Path,
    config: FinetuneConfig,
    stack: ExitStack,
    *,
    extract_progress: RowProgress | None,
    train_progress: StageProgress | None,
) -> MethodResult:
    """Extract features, train the head, then head and layers; ``stack`` closes the scratch file."""
    base, size = config.extract.network, config.extract.size
    base_model, _ = build_base(config.extract)
    boundary = find_boundary(base_model, base, config.first_unfrozen)
    _check_disk_space(data, config, boundary)
    layers = [boundary.layer, base.last_layer]
    extracted = extract_features(
        data,
        config.extract,
        layers=layers,
        views=config.views,
        progress=extract_progress,
        on_scan=_check_classes,
    )
    has_splits = any(file.split != NO_SPLIT for file in extracted.images.files)
    (cache,) = open_caches(
        [extracted.table.path],
        replace(config.classify_config(has_splits=has_splits), layers=layers, views=config.views),
    )
    (trial,) = cache.trial_plan.trials
    rows = needed_rows(cache)
    maps = stack.enter_context(
        scratch_maps(
            partial(cache.views.table.features, boundary.layer),
            rows,
            row_shape=boundary.shape,
            folder=config.extract.cache_dir,
        )
    )  # 830 MB for 5,000 rows of VGG16's block4_pool
    boundary_rows = trial_rows(cache, rows, maps.reshape(len(rows), -1))
    last = read_input(cache.views.table, base.last_layer, rows, "flat")
    last_rows = trial_rows(cache, rows, last)
    checkpoints = CheckpointFolder.of(
        config, cache.table.columns, trial, features=cache.table.spec.fingerprint
    )
    network, class_count = config.plan.network, len(cache.table.classes)
    options = RunOptions(identity=checkpoints.identity, progress=train_progress)
    results, frozen, tuned = [], [], []
    for seed in trial.seeds:
        frozen_head, result = finetune_from_cache(
            base_model,
            boundary,
            make_task(boundary_rows, boundary.shape),
            replace(options, seed=seed, checkpoints=checkpoints.of_seed(seed)),
            plan=config.plan,
            features=make_task(last_rows, cache.table.layers[base.last_layer]),
        )
        results.append(result)
        fit = score_on_validation(
            dense_classifier(frozen_head.weights, class_count, network),
            last_rows.unaugmented(trial.splits.validation),
            seed=seed,
            params=network.changed(),
            fit_seconds=sum(frozen_head.seconds),
        )
        frozen.append(replace(fit, history=frozen_head.history))
        fit = score_on_validation(
            top_block(base_model, base, size, boundary, result.weights, class_count, network),
            boundary_rows.unaugmented(trial.splits.validation),
            seed=seed,
            params={"unfreeze": config.first_unfrozen, **network.changed()},
            fit_seconds=sum(frozen_head.seconds) + sum(result.seconds),
        )
        tuned.append(replace(fit, history=result.history))
    outcomes = []
    for head, fits, inputs, layer in (
        ("frozen_head", frozen, last_rows, base.last_layer),
        ("fine_tuned", tuned, boundary_rows, boundary.layer),
    ):
        scored = [score_on_test(fit, trial, inputs) for fit in fits]
        outcome = summarize(
            new_row(head, cache.table, layer, "flat", inputs.rows),
            [scored],
            [trial],
            cache.table.columns,
            folds=0,
            distances=sample_distances(cache.neighbors(layer), [trial]),
        )
        outcomes.append(add_bundle(outcome, fits[0], cache.table, fitted_on="train"))
    return MethodResult(
        outcomes=outcomes,
        classes=cache.table.classes,
        trial_plan=cache.trial_plan,
        source=cache.describe(),
        checkpoints=checkpoints,
        notices=notices_of(extracted.skipped, results, trial.seeds),
    )


def finetune_from_cache(
    base_model: Any,
    boundary: Boundary,
    task: Task,
    options: RunOptions,
    *,
    plan: Plan,
    features: Task,
) -> tuple[TrainingResult, TrainingResult]:
    """Train the head alone, then the head and the layers above the boundary, on cached features.

    Parameters
    ----------
    base_model : frozen, from `build_base`; unchanged afterwards.
    task : feature maps of the boundary (N, H, W, C).
    features : features of the base's last layer, of the same rows.

    Returns the results of both stages; the second refers to the first as its ``frozen_head``.
    """
    upper = upper_model(base_model, boundary)
    head = build_dense(upper.output_shape[1:], task.class_count, plan.network, options.seed)
    on_features = TrainableModel(head, head_variables(head))
    frozen = train(on_features, features, plan.head, options, stage=HEAD_STAGE)
    with unfrozen(base_model, boundary) as variables:
        network = TrainableModel(head, variables | head_variables(head), body=upper)
        tuned = train(network, task, plan.joint, options, stage=JOINT_STAGE)
    return frozen, replace(tuned, frozen_head=frozen)


def head_variables(head: Any) -> dict[str, Any]:
    """Return the variables of a dense head by name, ``head/hidden_kernel`` and so on."""
    names = (f"head/{name}" for name in HEAD_WEIGHTS)
    return dict(zip(names, head.trainable_variables, strict=True))


def _check_classes(images: ImageSet) -> None:
    if images.task != CLASSES:
        raise UsageError(
            f"finetune trains classifiers; {printable(images.root)} is of {images.task}"
        )
    check_two_classes(images.classes)


def _check_disk_space(data: Path, config: FinetuneConfig, boundary: Boundary) -> None:
    """Raise StorageError before the extraction if the disk has no space for the training data."""
    images = len(open_set(data, config.extract).files)
    needed = 4 * math.prod(boundary.shape) * images * (1 + config.views)  # float32
    make_folder(config.extract.cache_dir)
    check_disk_space(config.extract.cache_dir, needed, cure="free disk space or reduce --views")


def needed_rows(cache: SplitCache) -> npt.NDArray[np.int64]:
    """Return the rows to read: all training rows, then validation and test without views."""
    (trial,) = cache.trial_plan.trials
    rows, splits = cache.views.rows, trial.splits
    evaluated = [rows.of_view(images) for images in (splits.validation, splits.test)]
    return np.concatenate([rows.training_rows(splits.train), *evaluated])


def trial_rows(
    cache: SplitCache, rows: npt.NDArray[np.int64], features: npt.NDArray[np.float32]
) -> TrialRows:
    """Return these rows of a cache, with their features (R, D)."""
    return TrialRows(
        features=features,
        labels=cache.table.columns.labels,
        class_count=len(cache.table.classes),
        trials=cache.trial_plan.trials,
        rows=cache.views.rows.take(rows),
    )


def make_task(data: TrialRows, shape: tuple[int, ...]) -> Task:
    """Return training and validation rows with features of this shape, (N, H, W, C)."""
    (trial,) = data.trials
    train = data.training_rows(trial.splits.train)
    validation = data.unaugmented(trial.splits.validation)
    return Task(
        train=Rows(np.asarray(train.features).reshape(-1, *shape), train.labels),
        validation=Rows(np.asarray(validation.features).reshape(-1, *shape), validation.labels),
        class_count=data.class_count,
    )
