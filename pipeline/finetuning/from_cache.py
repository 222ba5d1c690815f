"""Fine-tuning from the freeze boundary: the lower layers run once, what learns reads their maps."""

import logging
import math
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.api import extract_features
from pipeline.bases.boundary import Boundary, find_boundary
from pipeline.bases.build import build_base
from pipeline.cache.fill import Progress
from pipeline.durable import make_folder
from pipeline.errors import StorageError
from pipeline.evaluation.caches import DividedCache, open_caches
from pipeline.evaluation.choose import choice_of
from pipeline.evaluation.final import with_bundle
from pipeline.evaluation.fitting import Fitted, TrialRows
from pipeline.evaluation.inputs import read_input
from pipeline.evaluation.scoring import score
from pipeline.finetuning.config import FinetuneConfig
from pipeline.finetuning.measured import Checkpoints, Measured, shortfalls, unread
from pipeline.finetuning.methods import finetune_from_cache, head_weights
from pipeline.finetuning.rows import Rows, scratch_maps
from pipeline.finetuning.training import Progress as TrainingProgress
from pipeline.finetuning.training import Task
from pipeline.heads.dense import DenseClassifier
from pipeline.heads.head import Candidate, HeadSpec
from pipeline.images.scan import NO_SPLIT, scan_folder
from pipeline.models.top_block import top_block
from pipeline.text import file_size, printable

log = logging.getLogger("pipeline")


def train_from_cache(
    data: Path,
    config: FinetuneConfig,
    stack: ExitStack,
    *,
    extracting: Progress | None,
    training: TrainingProgress | None,
) -> Measured:
    """Cache what lies before the boundary, then train the head, then what lies behind it, too.

    Parameters
    ----------
    stack : closes the training data, which lie on the disk.
    """
    base, size = config.extract.network, config.extract.size
    base_model, _ = build_base(config.extract)
    boundary = find_boundary(base_model, base, str(config.first_unfrozen))
    _check_scratch(data, config, boundary)
    layers = [boundary.layer, base.last_layer]
    extracted = extract_features(
        data, config.extract, layers=layers, views=config.cached_views, progress=extracting
    )
    has_splits = any(file.split != NO_SPLIT for file in extracted.images.files)
    (cache,) = open_caches(
        [extracted.table.path],
        layers=layers,
        protocol=config.protocol(has_splits=has_splits),
        views=config.cached_views,
    )
    (trial,) = cache.division.trials
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
    checkpoints = Checkpoints.of(config, cache)
    all_trained, frozen, tuned = [], [], []
    for seed in trial.seeds:
        trained = finetune_from_cache(
            base_model,
            boundary,
            task_of(below, boundary.shape),
            checkpoints.options(seed, training),
            scratch=config.extract.cache_dir,
            plan=config.plan,
            features=task_of(last, cache.table.layers[base.last_layer]),
        )
        before = trained.frozen_head
        if before is None:
            raise ValueError("fine-tuning trains the head on the frozen base first")
        all_trained.append(trained)
        candidate = Candidate(
            spec=HeadSpec("frozen_head", config.plan.network.changed()),
            classifier=DenseClassifier(*head_weights(before.weights)),
            seed=seed,
            history=before.history,
        )
        frozen.append(
            choice_of(candidate, last.as_they_are(trial.splits.validation), sum(before.seconds))
        )
        candidate = Candidate(
            spec=HeadSpec(
                "fine_tuned",
                {"unfreeze": str(config.first_unfrozen), **config.plan.network.changed()},
            ),
            classifier=top_block(
                base_model, base, size, boundary, trained.weights, len(cache.table.classes)
            ),
            seed=seed,
            history=trained.history,
        )
        seconds = sum(before.seconds) + sum(trained.seconds)
        tuned.append(choice_of(candidate, below.as_they_are(trial.splits.validation), seconds))
    outcomes = []
    for choices, rows, layer in (
        (frozen, last, base.last_layer),
        (tuned, below, boundary.layer),
    ):
        outcome = score(
            choices[0].candidate.spec.name,
            [Fitted(tuple(choices))],
            rows,
            table=cache.table,
            layer=layer,
            kind="flat",
            folds=0,
        )
        outcomes.append(with_bundle(outcome, choices[0], cache.table, fitted_on="train"))
    return Measured(
        outcomes=outcomes,
        divided=cache,
        checkpoints=checkpoints,
        notices=[
            *unread(extracted.skipped),
            *shortfalls(all_trained, trial.seeds),
        ],
    )


def _check_scratch(data: Path, config: FinetuneConfig, boundary: Boundary) -> None:
    """Raise StorageError before the extraction if the training data cannot fit beside it."""
    images = len(scan_folder(data).files)
    needed = 4 * math.prod(boundary.shape) * images * (1 + config.cached_views)
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


def rows_of(cache: DividedCache) -> npt.NDArray[np.int64]:
    """What is read: first all that is learned from, then validation and test as they are."""
    (trial,) = cache.division.trials
    rows, splits = cache.views.rows, trial.splits
    judged = [rows.of_view(images) for images in (splits.validation, splits.test)]
    return np.concatenate([rows.to_learn_from(splits.train), *judged])


def trial_rows(
    cache: DividedCache, wanted: npt.NDArray[np.int64], features: npt.NDArray[np.float32]
) -> TrialRows:
    """Features (R, D) of these rows, with what they are."""
    return TrialRows(
        features=features,
        labels=cache.table.columns.labels,
        class_count=len(cache.table.classes),
        trials=cache.division.trials,
        rows=cache.views.rows.take(wanted),
    )


def task_of(data: TrialRows, shape: tuple[int, ...]) -> Task:
    """The same rows as a network takes them, (N, H, W, C)."""
    (trial,) = data.trials
    learned = data.to_learn_from(trial.splits.train)
    watched = data.as_they_are(trial.splits.validation)
    return Task(
        train=Rows(learned.features.reshape(-1, *shape), learned.labels),
        validation=Rows(watched.features.reshape(-1, *shape), watched.labels),
        class_count=data.class_count,
    )
