"""Fine-tune, evaluate, and compare with the head on the frozen base."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.cache.fill import RowProgress
from pipeline.durable import check_writable
from pipeline.evaluation.compare import versions
from pipeline.evaluation.recommendation import rank_and_recommend
from pipeline.evaluation.result import Comparison
from pipeline.finetuning.config import FinetuneConfig
from pipeline.finetuning.from_cache import train_from_cache
from pipeline.finetuning.method_result import MethodResult
from pipeline.finetuning.training import StageProgress
from pipeline.report.plots import write_curves
from pipeline.report.run_folder import Save, write_run
from pipeline.text import printable


def finetune(
    data: Path,
    config: FinetuneConfig,
    *,
    results: Path,
    command: str | None = None,
    smoothing: float = 0.8,
    save: Save = "all",
    extract_progress: RowProgress | None = None,
    train_progress: StageProgress | None = None,
) -> tuple[Comparison, Path]:
    """Train once with each of ``repeats`` seeds; evaluate on validation and test.

    An interrupted run with the same settings resumes from its last checkpoint.

    Parameters
    ----------
    data : image folder, as for `pipeline.extract_features`.
    results, command, smoothing, save : as for `pipeline.report.run_folder.write_run`.
    extract_progress : called with (finished rows, total rows) during the extraction.
    train_progress : called with (stage, finished rows, total rows) during the training.

    Returns the comparison and the run's folder. Raises a `pipeline.errors.PipelineError` for every
    expected failure.
    """
    check_writable(results)
    with ExitStack() as stack:
        result = train_from_cache(
            data, config, stack, extract_progress=extract_progress, train_progress=train_progress
        )
    augmentation = config.extract.augmentation_ranges.to_dict() if config.views else None
    method = {"method": "boundary", "views": config.views, "augmentation": augmentation}
    return write_results(
        result, config, method, results=results, command=command, smoothing=smoothing, save=save
    )


def write_results(
    result: MethodResult,
    config: FinetuneConfig,
    method: Mapping[str, Any],
    *,
    results: Path,
    command: str | None,
    smoothing: float,
    save: Save,
) -> tuple[Comparison, Path]:
    """Write the run's folder, as `finetune`; ``method`` is its method and views in results.json."""
    outcomes, recommendation = rank_and_recommend(result.outcomes)
    comparison = Comparison(
        outcomes=tuple(outcomes),
        classes=result.classes,
        run={
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "classes": list(result.classes),
            "unfreeze": config.first_unfrozen or None,
            **method,
            "seed": config.seed,
            "repeats": config.repeats,
            "split": config.split,
            "split_seed": config.split_seed,
            "group": config.group and printable(config.group),
            "plan": asdict(config.plan),
            "versions": versions(),
            "caches": [result.source],
        },
        recommendation=recommendation,
        table_notices=(*result.notices, *result.trial_plan.notices),
    )
    folder = write_run(comparison, results, command=command, smoothing=smoothing, save=save)
    last = result.outcomes[-1]  # curves.png shows the fine-tuned model, recommended or not
    if last.history:
        write_curves(last, folder / "curves.png", smoothing=smoothing)
    result.checkpoints.remove()
    return comparison, folder
