"""Train, measure, and compare with the head on the frozen base."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.cache.fill import RowProgress
from pipeline.evaluation.compare import versions
from pipeline.evaluation.recommendation import rank_and_recommend
from pipeline.evaluation.result import Comparison
from pipeline.finetuning.config import FinetuneConfig
from pipeline.finetuning.from_cache import train_from_cache
from pipeline.finetuning.method_result import MethodResult
from pipeline.finetuning.training import StageProgress
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
    extracting: RowProgress | None = None,
    training: StageProgress | None = None,
) -> tuple[Comparison, Path]:
    """Train, once with each of ``repeats`` seeds, and measure on validation and test.

    A killed run that is started again with the same settings goes on from its last checkpoint.

    Parameters
    ----------
    data : image folder, as for `pipeline.extract_features`.
    results, command, smoothing, save : as for `pipeline.report.run_folder.write_run`.
    extracting : called with (rows done, rows in all) while features are computed.
    training : called with the stage's name, and how many rows of how many were learned from.

    Returns the rows of the table and the run's folder. Raises a `pipeline.errors.PipelineError`
    for every expected failure.
    """
    check_writable(results)
    with ExitStack() as stack:
        measured = train_from_cache(data, config, stack, extracting=extracting, training=training)
    augmentation = config.extract.augmentation_ranges.to_dict() if config.views else None
    how = {"method": "boundary", "views": config.views, "augmentation": augmentation}
    return write_results(
        measured, config, how, results=results, command=command, smoothing=smoothing, save=save
    )


def write_results(
    measured: MethodResult,
    config: FinetuneConfig,
    how: Mapping[str, Any],
    *,
    results: Path,
    command: str | None,
    smoothing: float,
    save: Save,
) -> tuple[Comparison, Path]:
    """Write the run's folder; as `finetune`, ``how`` is its method and views for results.json."""
    outcomes, recommendation = rank_and_recommend(measured.outcomes)
    comparison = Comparison(
        outcomes=tuple(outcomes),
        classes=measured.classes,
        run={
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "classes": list(measured.classes),
            "unfreeze": config.first_unfrozen or None,
            **how,
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
        notices=(*measured.notices, *measured.trial_plan.notices),
    )
    folder = write_run(comparison, results, command=command, smoothing=smoothing, save=save)
    last = measured.outcomes[-1]  # curves.png is of what this command trains, recommended or not
    if last.history:
        draw_curves(last, folder / "curves.png", smoothing=smoothing)
    measured.checkpoints.remove()
    return comparison, folder
