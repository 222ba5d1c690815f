"""Checkpoints: the state of a training on disk, from which an interrupted run resumes.

A checkpoint is a .safetensors file: reading it does not execute code.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from pipeline.cache.file import Columns
from pipeline.cache.maintenance import CHECKPOINTS
from pipeline.durable import remove_folder, remove_temporaries, write_durably
from pipeline.errors import BadDataError
from pipeline.evaluation.splits import Trial
from pipeline.finetuning.config import FinetuneConfig
from pipeline.text import printable

Arrays = Mapping[str, npt.NDArray[Any]]


class Checkpoint(NamedTuple):
    """Arrays by name and the JSON state of a training."""

    arrays: Arrays
    state: Mapping[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, run: Mapping[str, Any]) -> None:
    """Write durably: after a crash the file is the previous or this checkpoint, complete."""
    remove_temporaries(path)
    metadata = {"run": _to_json(run), "state": json.dumps(checkpoint.state)}
    arrays = {name: np.asarray(each, order="C") for name, each in checkpoint.arrays.items()}
    data = safetensors.numpy.save(arrays, metadata)
    write_durably(path, lambda file: file.write(data))


def read_checkpoint(path: Path, *, run: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint of this run, or None; raises BadDataError if the file is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("run") != _to_json(run):
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(arrays, json.loads(metadata["state"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadDataError(
            f"checkpoint {printable(path)} is damaged: delete it to train from the beginning"
        ) from error


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of a run's checkpoints, one folder per seed; it exists until results are written.

    Its name is a digest of everything that determines the training: other runs never use it.
    """

    folder: Path
    identity: dict[str, Any]

    @classmethod
    def of(cls, config: FinetuneConfig, columns: Columns, trial: Trial, *, features: str) -> Self:
        """Return the folder of a run; ``features`` identifies the input of the network."""
        content = hashlib.sha256()
        for rows in (trial.splits.train, trial.splits.validation, trial.splits.test):
            split = columns.take(rows)
            content.update(split.digests.tobytes() + split.labels.tobytes() + b"|")
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

    def of_seed(self, seed: int) -> Path:
        """Return the folder of a seed."""
        return self.folder / f"seed-{seed}"

    def remove(self) -> None:
        """Remove the folders of all seeds."""
        for folder in self.folder.glob("seed-*"):
            remove_folder(folder)
        with suppress(OSError):
            self.folder.rmdir()


def _to_json(run: Mapping[str, Any]) -> str:
    return json.dumps(run, sort_keys=True, separators=(",", ":"))
