"""The result of a fine-tuning method: rows of the results table and notices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.protocol import TrialPlan
from pipeline.evaluation.result import Outcome
from pipeline.finetuning.checkpoints import CheckpointFolder
from pipeline.finetuning.training import TrainingResult
from pipeline.images.scan import Skipped
from pipeline.text import counted, printable


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The rows of a method; `run.write_results` writes them and removes the checkpoints."""

    outcomes: Sequence[Outcome]
    classes: tuple[str, ...]
    trial_plan: TrialPlan
    source: Mapping[str, Any]  # the images' entry in results.json
    checkpoints: CheckpointFolder
    notices: Sequence[str]


def unreadable_notices(skipped: Sequence[Skipped]) -> list[str]:
    """Return a notice about skipped files, if there are any."""
    if not skipped:
        return []
    first = skipped[0]
    return [
        f"{counted(len(skipped), 'file')} could not be read, e.g. {printable(first.path)} "
        f"({printable(first.reason)})"
    ]


def shortfall_notices(results: Sequence[TrainingResult], seeds: Sequence[int]) -> list[str]:
    """Return a notice for each training that ended below its frozen head."""
    return [
        f"seed {seed}: {result.shortfall}"
        for seed, result in zip(seeds, results, strict=True)
        if result.shortfall
    ]
