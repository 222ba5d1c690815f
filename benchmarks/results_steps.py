"""What is run: commands of this project, each with a folder for what it leaves behind.

A step whose results are there is not run again, so an interrupted reproduction goes on.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.durable import make_folder, write_durably
from pipeline.errors import BadDataError
from pipeline.text import printable

SEEDS = (0, 1, 2)
LAYERS = ("block4_pool", "block5_pool")  # before the last block of VGG16, and behind it

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes
    ----------
    name : of its folder: ``cats_and_dogs/classify-native-4-0``.
    arguments : behind ``python -m``; ``{cache:STEP}`` stands for the file that a step wrote.
    """

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Amount:
    """How much is trained; what is not affordable is left out and said so.

    Attributes
    ----------
    views : K; of the rescaled images also twice as many.
    epochs : of fine-tuning; with views as many fewer as there are more rows.
    scratch_epochs, end_to_end_epochs : of the references; 0 leaves them out.
    """

    views: int = 4
    epochs: int = 8
    scratch_epochs: int = 30
    end_to_end_epochs: int = 3
    head_epochs: int = 30


def steps_of(data: Path, weights: str, amount: Amount) -> Iterator[Step]:
    """Every step on one image set, in the order that they need."""
    name, views = data.name, amount.views
    base = ("--weights", weights)

    def extract(mode: str, count: int, layers: Sequence[str]) -> Step:
        named = [word for layer in layers for word in ("--layer", layer)]
        return Step(
            f"{name}/extract-{mode}",
            (
                *("pipeline.extract", str(data), "--preprocessing", mode, *base, *named),
                *("--views", str(count), "--json"),
            ),
        )

    def classify(mode: str, count: int, seed: int) -> Step:
        return Step(
            f"{name}/classify-{mode}-{count}-{seed}",
            (
                *("pipeline.classify", f"{{cache:{name}/extract-{mode}}}", "--layer", LAYERS[-1]),
                *("--views", str(count), "--heads", "dense,logistic", "--seed", str(seed)),
                *("--epochs", str(amount.head_epochs), "--no-audit", "--save", "none", "--json"),
            ),
        )

    def train(what: str, *options: str, by: str = "pipeline.finetune", seed: int = 0) -> Step:
        return Step(
            f"{name}/{what}-{seed}",
            (
                *(by, str(data), *base, "--seed", str(seed)),
                *("--head-epochs", str(amount.head_epochs), *options, "--save", "none", "--json"),
            ),
        )

    yield extract("native", views, LAYERS)
    for seed in SEEDS:
        for count in (0, views):
            yield classify("native", count, seed)
    few = str(max(1, amount.epochs // (1 + views)))
    for seed in SEEDS:
        yield train("finetune-0", "--epochs", str(amount.epochs), seed=seed)
        yield train(f"finetune-{views}", "--views", str(views), "--epochs", few, seed=seed)
    yield extract("rescale", 2 * views, LAYERS[-1:])
    for seed in SEEDS:
        for count in (0, views, 2 * views):
            yield classify("rescale", count, seed)
    if amount.scratch_epochs:
        options = ("--method", "scratch", "--epochs", str(amount.scratch_epochs))
        yield train("scratch", *options, by="benchmarks.references")
    if amount.end_to_end_epochs:
        yield Step(
            f"{name}/end_to_end-0",
            (
                *("benchmarks.references", str(data), *base, "--method", "end_to_end"),
                *("--head-epochs", str(amount.end_to_end_epochs)),
                *("--save", "none", "--json"),
            ),
        )


def run_step(step: Step, folder: Path) -> dict[str, Any]:
    """Run a step unless its results are there, of the same command; returns what it printed.

    Raises BadDataError with its last words if it fails.
    """
    answer = folder / f"{step.name}.json"
    if (known := read_answer(step, folder)) is not None:
        return known
    command = [sys.executable, "-m", *_resolved(step.arguments, folder)]
    if step.arguments[0] != "pipeline.extract":
        command += ["--out", os.fspath(folder / step.name)]
    log.info("%s: python %s", step.name, printable(" ".join(command[1:])))
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if finished.returncode:
        raise BadDataError(f"{step.name} ended with exit code {finished.returncode}: see above")
    make_folder(answer.parent)
    found: dict[str, Any] = json.loads(finished.stdout)
    text = json.dumps({"arguments": step.arguments, "answer": found}, indent=1)
    write_durably(answer, lambda file: file.write(text.encode()))
    return found


def read_answer(step: Step, folder: Path) -> dict[str, Any] | None:
    """What a step printed; None if it was not run, or with other arguments."""
    try:
        found = json.loads((folder / f"{step.name}.json").read_bytes())
    except FileNotFoundError:
        return None
    return dict(found["answer"]) if found["arguments"] == list(step.arguments) else None


def _resolved(arguments: Sequence[str], folder: Path) -> list[str]:
    """Arguments with the files that earlier steps wrote in the place of their names."""
    resolved = []
    for word in arguments:
        if word.startswith("{cache:"):
            answer = folder / f"{word.removeprefix('{cache:').removesuffix('}')}.json"
            word = json.loads(answer.read_bytes())["answer"]["cache"]
        resolved.append(word)
    return resolved
