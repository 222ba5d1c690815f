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
    """What `run.write_results` needs of a method to write the run's folder."""

    outcomes: Sequence[Outcome]
    classes: tuple[str, ...]
    trial_plan: TrialPlan
    source: Mapping[str, Any]  # the images' entry in results.json
    checkpoints: CheckpointFolder
    notices: Sequence[str]


def notices_of(
    skipped: Sequence[Skipped], results: Sequence[TrainingResult], seeds: Sequence[int]
) -> list[str]:
    """Return notices about skipped files and about trainings that end below the frozen head."""
    notices = []
    if skipped:
        first = skipped[0]
        notices.append(
            f"{counted(len(skipped), 'file')} could not be read, e.g. {printable(first.path)} "
            f"({printable(first.reason)})"
        )
    for seed, result in zip(seeds, results, strict=True):
        frozen = result.frozen_head
        if frozen and result.validation_accuracy < frozen.validation_accuracy:
            notices.append(
                f"seed {seed}: fine-tuning ends below the frozen head: "
                f"{100 * result.validation_accuracy:.1f} % validation accuracy instead of "
                f"{100 * frozen.validation_accuracy:.1f} %"
            )
    return notices
