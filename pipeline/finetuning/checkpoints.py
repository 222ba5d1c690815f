"""A training's state on the disk, so that a killed run goes on from its last epoch.

It is one .safetensors file: reading it executes nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from pipeline.durable import remove_temporaries, write_durably
from pipeline.errors import BadDataError
from pipeline.text import printable

Arrays = Mapping[str, npt.NDArray[Any]]


class Checkpoint(NamedTuple):
    arrays: Arrays
    state: Mapping[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, run: Mapping[str, Any]) -> None:
    """Write durably: after a crash the file is the last one or this one, whole."""
    remove_temporaries(path)
    metadata = {"run": _canonical(run), "state": json.dumps(checkpoint.state)}
    arrays = {name: np.asarray(each, order="C") for name, each in checkpoint.arrays.items()}
    data = safetensors.numpy.save(arrays, metadata)
    write_durably(path, lambda file: file.write(data), needs=len(data))


def read_checkpoint(path: Path, *, run: Mapping[str, Any]) -> Checkpoint | None:
    """What was written for this very run, or None; raises BadDataError if the file is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("run") != _canonical(run):
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(arrays, json.loads(metadata["state"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadDataError(
            f"{printable(path)} is no whole checkpoint: delete it to train from the beginning"
        ) from error


def _canonical(run: Mapping[str, Any]) -> str:
    return json.dumps(run, sort_keys=True, separators=(",", ":"))
