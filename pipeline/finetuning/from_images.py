"""The references: training from the images themselves, augmented anew in every epoch."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.boundary import find_boundary
from pipeline.bases.build import build_base
from pipeline.cache.file import Columns, columns_of
from pipeline.cache.provenance import feature_spec
from pipeline.evaluation.metrics import accuracy_of
from pipeline.evaluation.protocol import Division
from pipeline.evaluation.result import Fit, Outcome, Result
from pipeline.evaluation.scoring import summarize
from pipeline.evaluation.splits import Trial
from pipeline.finetuning.config import FinetuneConfig
from pipeline.finetuning.measured import Checkpoints, Measured, shortfalls, unread
from pipeline.finetuning.methods import train_end_to_end, train_from_scratch
from pipeline.finetuning.result import Trained
from pipeline.finetuning.rows import Draw, Indices, Rows, new_views, scratch_images
from pipeline.finetuning.training import Progress, Task
from pipeline.heads.calibration import fit_temperature
from pipeline.images.hashes import hash_files
from pipeline.images.scan import NO_SPLIT, ImageSet, scan_folder
from pipeline.text import printable

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
    columns = _columns_of(found, {path: digests[path] for path in kept})
    has_splits = bool((columns.splits != NO_SPLIT).any())
    division = config.division(has_splits=has_splits).division.divide(columns, found.classes)
    (trial,) = division.trials
    task = task_of(config, pixels, columns, trial, len(found.classes))
    row, source = _describe(config, found, division)
    checkpoints = Checkpoints.of(config, columns, trial, features=str(source["spec"]))
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
        _outcome(replace(row, head=name), config, each, columns, trial)
        for name, each in rows.items()
        if each
    ]
    return Measured(
        outcomes=outcomes,
        classes=found.classes,
        division=division,
        source=source,
        checkpoints=checkpoints,
        notices=[
            *unread([*found.skipped, *unreadable, *skipped]),
            *shortfalls(trained, trial.seeds),
        ],
    )


def _columns_of(found: ImageSet, digests: Mapping[bytes, bytes]) -> Columns:
    """A row for each image that can be read; ``digests`` are path -> SHA-256."""
    files = [file for file in found.files if file.path in digests]
    return columns_of(
        labels=[file.label for file in files],
        splits=[file.split for file in files],
        paths=[file.path for file in files],
        digests=[digests[file.path] for file in files],
        views=[0] * len(files),
    )


def _describe(
    config: FinetuneConfig, found: ImageSet, division: Division
) -> tuple[Result, dict[str, Any]]:
    """The row of the table before anything is measured, and what results.json says of the images.

    No cache is involved; a convnet from scratch has no base either.
    """
    extract, base, layer = config.extract, "none", "images"
    spec = {"base": base, "preprocessing": "rescale", "image_size": extract.size,
            "resize": extract.resize}  # fmt: skip
    fingerprint = ""
    if config.method != "scratch":
        features = feature_spec(extract)
        spec, fingerprint = asdict(features), features.fingerprint
        base, layer = features.base, extract.network.last_layer
    path = printable(found.root.as_posix())
    row = Result(
        head="",
        input="flat",
        base=base,
        layer=layer,
        image_size=extract.size,
        fingerprint=fingerprint,
        cache=path,
    )
    source = {
        "path": path,
        "set": printable(found.name),
        "layers": [layer],
        "fingerprint": fingerprint,
        "spec": spec,
        "engine": None,
        "views": 0,
        "tta": 0,
        "split_source": division.source,
        "split_counts": division.trials[0].splits.counts,
    }
    return row, source


def task_of(
    config: FinetuneConfig,
    pixels: npt.NDArray[np.uint8],
    columns: Columns,
    trial: Trial,
    class_count: int,
) -> Task:
    """Training images in new views each epoch; afterwards all of test, and of training as it is,
    are predicted."""
    labels, splits = columns.labels, trial.splits
    digests = [digest.tobytes() for digest in columns.digests[splits.train]]
    draw = new_views(digests, config.extract.augmentation_ranges) if config.augmented else None
    predicted = np.concatenate([splits.test, splits.train])

    def rows_of(images: Indices, draw: Draw | None = None) -> Rows:
        return Rows(pixels, labels[images], draw, images)

    return Task(
        train=rows_of(splits.train, draw),
        validation=rows_of(splits.validation),
        class_count=class_count,
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
    row: Result,
    config: FinetuneConfig,
    trained: list[Trained],
    columns: Columns,
    trial: Trial,
) -> Outcome:
    params = {"augmented": "yes" if config.augmented else "no"}
    if row.head == "end_to_end":
        params["unfreeze"] = str(config.first_unfrozen)
    splits, labels = trial.splits, columns.labels
    truth = labels[splits.validation]
    fits = []
    for seed, each in zip(trial.seeds, trained, strict=True):
        if each.test_probabilities is None:
            raise ValueError("the task names what is to be predicted afterwards")
        validation = each.validation_probabilities
        tested, learned = np.split(each.test_probabilities, [len(splits.test)])
        fits.append(
            Fit(
                seed=seed,
                params=params,
                parameters=each.trainable_parameters,
                temperature=fit_temperature(truth, validation, has_probabilities=True),
                validation_scores=validation,
                validation_accuracy=accuracy_of(truth, validation),
                validation_balanced_accuracy=accuracy_of(truth, validation, balanced=True),
                history=each.history,
                fit_seconds=sum(each.seconds)
                + sum(each.frozen_head.seconds if each.frozen_head else ()),
                test_scores=tested,
                train_accuracy=accuracy_of(labels[splits.train], learned),
            )
        )
    outcome = summarize(row, [fits], [trial], columns, folds=0)
    return replace(outcome, not_saved=NOT_SAVED)
