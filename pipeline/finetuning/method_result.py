"""From trained networks to rows of the results table."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.file import Columns
from pipeline.cache.maintenance import CHECKPOINTS
from pipeline.durable import remove_folder
from pipeline.evaluation.protocol import TrialPlan
from pipeline.evaluation.result import Outcome
from pipeline.evaluation.splits import Trial
from pipeline.finetuning.config import FinetuneConfig
from pipeline.finetuning.training import RunOptions, StageProgress, TrainingResult
from pipeline.images.scan import Skipped
from pipeline.text import counted, printable


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What a method gave; the checkpoints are to be removed once it is written."""

    outcomes: Sequence[Outcome]
    classes: tuple[str, ...]
    trial_plan: TrialPlan
    source: Mapping[str, Any]  # what results.json says of the images
    checkpoints: "CheckpointFolder"
    notices: Sequence[str]


@dataclass(frozen=True)
class CheckpointFolder:
    """Where the checkpoints of a run are until its results are there: a folder a seed.

    Its name is a digest of all that decides what is trained: another run never goes on from them.
    """

    folder: Path
    identity: dict[str, Any]

    @classmethod
    def of(
        cls, config: FinetuneConfig, columns: Columns, trial: Trial, *, features: str
    ) -> "CheckpointFolder":
        """The folder of a run; ``features``: what the network sees of the images."""
        content = hashlib.sha256()
        for rows in (trial.splits.train, trial.splits.validation, trial.splits.test):
            part = columns.take(rows)
            content.update(part.digests.tobytes() + part.labels.tobytes() + b"|")
        identity = {
            "images": content.hexdigest(),
            "fingerprint": features,
            "unfreeze": config.first_unfrozen,
            "views": config.views,
            "augmentation": config.extract.augmentation_ranges.to_dict(),
            "division": [config.split, config.split_seed, config.group],
            "plan": asdict(config.plan),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        return cls(config.extract.cache_dir / CHECKPOINTS / digest, identity)

    def options(self, seed: int, progress: StageProgress | None) -> RunOptions:
        return RunOptions(
            seed=seed,
            checkpoints=self.folder / f"seed-{seed}",
            identity=self.identity,
            progress=progress,
        )

    def remove(self) -> None:
        for seed in self.folder.glob("seed-*"):
            remove_folder(seed)
        with suppress(OSError):
            self.folder.rmdir()


def unread(skipped: Sequence[Skipped]) -> list[str]:
    if not skipped:
        return []
    first = skipped[0]
    return [
        f"{counted(len(skipped), 'file')} could not be read, e.g. {printable(first.path)} "
        f"({printable(first.reason)})"
    ]


def shortfalls(trained: Sequence[TrainingResult], seeds: Sequence[int]) -> list[str]:
    """A line for each training that ended below its frozen head."""
    return [
        f"seed {seed}: {each.shortfall}"
        for seed, each in zip(seeds, trained, strict=True)
        if each.shortfall
    ]
