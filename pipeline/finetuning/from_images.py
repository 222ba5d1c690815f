"""The references: training from the images themselves, augmented anew in every epoch."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.boundary import find_boundary
from pipeline.bases.build import build_base
from pipeline.cache.file import FeatureTable, columns_of
from pipeline.evaluation.caches import DividedCache
from pipeline.evaluation.choose import choice_of
from pipeline.evaluation.fitting import Fitted, TrialRows
from pipeline.evaluation.result import Outcome
from pipeline.evaluation.scoring import score
from pipeline.evaluation.views import CachedViews
from pipeline.finetuning.config import FinetuneConfig
from pipeline.finetuning.measured import Checkpoints, Measured, shortfalls, unread
from pipeline.finetuning.methods import train_end_to_end, train_from_scratch
from pipeline.finetuning.result import Trained
from pipeline.finetuning.rows import Draw, Indices, Rows, new_views, scratch_images
from pipeline.finetuning.training import Progress, Task
from pipeline.heads.head import Candidate, HeadSpec
from pipeline.images.hashes import hash_files
from pipeline.images.scan import NO_SPLIT, ImageSet, scan_folder
from pipeline.recipe import cache_document, feature_spec
from pipeline.spec import FeatureSpec

NOT_SAVED = "a reference to measure against: without --method, finetune saves what it trains"


def train_from_images(
    data: Path, config: FinetuneConfig, stack: ExitStack, *, training: Progress | None
) -> Measured:
    """Train a head, or a head and the last layers, on the whole base; or a convnet without one.

    Parameters
    ----------
    stack : closes the training data, which lie on the disk.
    """
    found, extract = scan_folder(data), config.extract
    index_folder = extract.cache_dir / "hashes"
    digests, unreadable = hash_files(found.root, found.paths, index_folder=index_folder)
    pixels, kept, skipped = stack.enter_context(
        scratch_images(
            found.root,
            digests,
            image_size=extract.size,
            resize=extract.resize,
            folder=extract.cache_dir,
        )
    )
    divided = _divided(config, found, {path: digests[path] for path in kept})
    (trial,) = divided.division.trials
    task = task_of(config, pixels, divided)
    checkpoints = Checkpoints.of(config, divided)
    trained = [_train(config, task, checkpoints, seed, training) for seed in trial.seeds]
    rows: dict[str, list[Trained]] = {"frozen_head": [], "end_to_end": [], "scratch": []}
    for each in trained:
        if config.method == "scratch":
            rows["scratch"].append(each)
        elif each.frozen_head is None:
            rows["frozen_head"].append(each)
        else:
            rows["frozen_head"].append(each.frozen_head)
            rows["end_to_end"].append(each)
    outcomes = [
        _outcome(name, config, each, divided, trial.seeds) for name, each in rows.items() if each
    ]
    return Measured(
        outcomes=outcomes,
        divided=divided,
        checkpoints=checkpoints,
        notices=[
            *unread([*found.skipped, *unreadable, *skipped]),
            *shortfalls(trained, trial.seeds),
        ],
    )


@dataclass(frozen=True)
class KnownScores:
    """What a network said of each image, as a classifier of image numbers (N, 1)."""

    probabilities: npt.NDArray[np.float64]
    parameters: int
    has_probabilities: bool = True

    def scores(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return self.probabilities[features[:, 0].astype(np.int64)]


def _divided(
    config: FinetuneConfig, found: ImageSet, digests: Mapping[bytes, bytes]
) -> DividedCache:
    """The images as if they were cached, divided as a cache of them is.

    Parameters
    ----------
    digests : path -> SHA-256 of the images that can be read.
    """
    extract = config.extract
    spec = (
        FeatureSpec(
            base="none",
            weights="none",
            preprocessing="rescale",
            image_size=extract.size,
            resize=extract.resize,
            pixels="none",
            dtype="float32",
        )
        if config.method == "scratch"
        else feature_spec(extract)
    )
    files = [file for file in found.files if file.path in digests]
    columns = columns_of(
        labels=[file.label for file in files],
        splits=[file.split for file in files],
        paths=[file.path for file in files],
        digests=[digests[file.path] for file in files],
        views=[0] * len(files),
    )
    table = FeatureTable(
        path=found.root,
        spec=spec,
        document={**cache_document(found.name, found.root, extract, spec), "engine": None},
        classes=found.classes,
        columns=columns,
        layers={},
        file_rows=np.arange(len(files)),
        written=(),
    )
    has_splits = any(file.split != NO_SPLIT for file in files)
    division = config.protocol(has_splits=has_splits).divide(columns, found.classes)
    layer = "images" if config.method == "scratch" else extract.network.last_layer
    return DividedCache(table, (layer,), division, CachedViews.of(table))


def task_of(config: FinetuneConfig, pixels: npt.NDArray[np.uint8], divided: DividedCache) -> Task:
    """Training images in new views each epoch; afterwards all of test, and of training as it is,
    are predicted."""
    (trial,) = divided.division.trials
    labels, splits = divided.table.columns.labels, trial.splits
    digests = [digest.tobytes() for digest in divided.table.columns.digests[splits.train]]
    draw = new_views(digests, config.extract.augmentation_ranges) if config.augmented else None
    predicted = np.concatenate([splits.test, splits.train])

    def rows_of(images: Indices, draw: Draw | None = None) -> Rows:
        return Rows(pixels, labels[images], draw, images)

    return Task(
        train=rows_of(splits.train, draw),
        validation=rows_of(splits.validation),
        class_count=len(divided.table.classes),
        test=rows_of(predicted),
    )


def _train(
    config: FinetuneConfig,
    task: Task,
    checkpoints: Checkpoints,
    seed: int,
    training: Progress | None,
) -> Trained:
    options = checkpoints.options(seed, training)
    if config.method == "scratch":
        return train_from_scratch(task, options, schedule=config.plan.scratch)
    base_model, _ = build_base(config.extract)
    boundary = None
    if config.first_unfrozen is not None:
        boundary = find_boundary(base_model, config.extract.network, config.first_unfrozen)
    return train_end_to_end(
        base_model,
        task,
        options,
        rescale=config.extract.rescale,
        boundary=boundary,
        plan=config.plan,
    )


def _outcome(
    name: str,
    config: FinetuneConfig,
    trained: list[Trained],
    divided: DividedCache,
    seeds: tuple[int, ...],
) -> Outcome:
    (trial,) = divided.division.trials
    splits, labels = trial.splits, divided.table.columns.labels
    data = TrialRows(
        features=np.arange(len(labels), dtype=np.float32)[:, None],
        labels=labels,
        class_count=len(divided.table.classes),
        trials=divided.division.trials,
        rows=divided.views.rows,
    )
    params = {"augmented": "yes" if config.augmented else "no"}
    if name == "end_to_end":
        params["unfreeze"] = str(config.first_unfrozen)
    choices = []
    for seed, each in zip(seeds, trained, strict=True):
        if each.test_probabilities is None:
            raise ValueError("the task names what is to be predicted afterwards")
        said = np.empty((len(labels), data.class_count))
        said[splits.validation] = each.validation_probabilities
        said[np.concatenate([splits.test, splits.train])] = each.test_probabilities
        candidate = Candidate(
            spec=HeadSpec(name, params),
            classifier=KnownScores(said, each.trainable_parameters),
            seed=seed,
            history=each.history,
        )
        seconds = sum(each.seconds) + sum(each.frozen_head.seconds if each.frozen_head else ())
        choices.append(choice_of(candidate, data.as_they_are(splits.validation), seconds))
    (layer,) = divided.layers
    outcome = score(
        name,
        [Fitted(tuple(choices))],
        data,
        table=divided.table,
        layer=layer,
        kind="flat",
        folds=0,
    )
    # looking a number up is no prediction
    result = replace(outcome.result, predict_ms=np.nan)
    return replace(outcome, result=result, not_saved=NOT_SAVED)
