"""Train by one method, measure, and compare with the head on the frozen base."""

from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from pipeline.cache.fill import Progress
from pipeline.evaluation.compare import versions
from pipeline.evaluation.result import Comparison
from pipeline.evaluation.verdict import judge
from pipeline.finetuning.config import FinetuneConfig
from pipeline.finetuning.from_cache import train_from_cache
from pipeline.finetuning.from_images import train_from_images
from pipeline.finetuning.training import Progress as TrainingProgress
from pipeline.report.plots import draw_curves
from pipeline.report.run_folder import Save, check_writable, write_run
from pipeline.text import printable


def finetune(
    data: Path,
    config: FinetuneConfig,
    *,
    results: Path,
    command: str | None = None,
    smoothing: float = 0.8,
    save: Save = "all",
    extracting: Progress | None = None,
    training: TrainingProgress | None = None,
) -> tuple[Comparison, Path]:
    """Train, once with each of ``repeats`` seeds, and measure on validation and test.

    A run that is killed goes on from its last checkpoint when it is started again with the same
    settings.

    Parameters
    ----------
    data : image folder, as for `pipeline.extract_features`.
    results : where the run's folder is made; ``command``, ``smoothing`` and ``save`` as for
        `pipeline.report.run_folder.write_run`.
    extracting : called with (rows done, rows in all) while features are computed.
    training : called with the stage's name, and how many rows of how many were learned from.

    Returns the rows of the table and the folder that holds them. Raises a
    `pipeline.errors.PipelineError` for every expected failure.
    """
    check_writable(results)
    with ExitStack() as stack:
        if config.method == "boundary":
            measured = train_from_cache(
                data, config, stack, extracting=extracting, training=training
            )
        else:
            measured = train_from_images(data, config, stack, training=training)
    outcomes, recommendation = judge(measured.outcomes)
    augmentation = config.extract.augmentation_ranges
    comparison = Comparison(
        outcomes=tuple(outcomes),
        classes=measured.classes,
        run={
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "classes": list(measured.classes),
            "method": config.method,
            "unfreeze": config.first_unfrozen,
            "views": config.augmented,
            "augmentation": augmentation.to_dict() if config.augmented else None,
            "seed": config.seed,
            "repeats": config.repeats,
            "split": config.split,
            "split_seed": config.split_seed,
            "group": config.group and printable(config.group),
            "plan": asdict(config.plan),
            "versions": versions(),
            "caches": [measured.source],
        },
        recommendation=recommendation,
        notices=(*measured.notices, *measured.division.notices),
    )
    folder = write_run(comparison, results, command=command, smoothing=smoothing, save=save)
    last = measured.outcomes[-1]  # curves.png is of what this command trains, recommended or not
    if last.history:
        draw_curves(last, folder / "curves.png", smoothing=smoothing)
    measured.checkpoints.remove()
    return comparison, folder
