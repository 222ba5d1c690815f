"""Run the steps of a reproduction: commands of this project, each with an output folder.

A step with results is not run again, so an interrupted reproduction continues.
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

LAYERS = ("block4_pool", "block5_pool")  # before and after the last block of VGG16

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes
    ----------
    name : of its folder, such as ``cats_and_dogs/classify-native-4-0``.
    arguments : after ``python -m``; ``{cache:STEP}`` is the cache file of an earlier step.
    """

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Amount:
    """Number of views, epochs and seeds.

    Attributes
    ----------
    views : per training image; rescaled images are also measured with twice as many.
    epochs : of fine-tuning; with views, divided by the number of rows per image.
    scratch_epochs, end_to_end_epochs : of the references; 0 omits them.
    seeds : of each head; the references have one.
    """

    views: int = 4
    epochs: int = 8
    scratch_epochs: int = 30
    end_to_end_epochs: int = 3
    head_epochs: int = 30
    seeds: int = 3


def steps_of(data: Path, weights: str, amount: Amount) -> Iterator[Step]:
    """Yield the steps on one image set, each after those that it reads."""
    name, views, seeds = data.name, amount.views, range(amount.seeds)
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

    def train(method: str, *options: str, by: str = "pipeline.finetune", seed: int = 0) -> Step:
        return Step(
            f"{name}/{method}-{seed}",
            (
                *(by, str(data), *base, "--seed", str(seed)),
                *("--head-epochs", str(amount.head_epochs), *options, "--save", "none", "--json"),
            ),
        )

    yield extract("native", views, LAYERS)
    for seed in seeds:
        for count in (0, views):
            yield classify("native", count, seed)
    few = str(max(1, amount.epochs // (1 + views)))
    for seed in seeds:
        yield train("finetune-0", "--epochs", str(amount.epochs), seed=seed)
        yield train(f"finetune-{views}", "--views", str(views), "--epochs", few, seed=seed)
    yield extract("rescale", 2 * views, LAYERS[-1:])
    for seed in seeds:
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
    """Return the JSON that a step printed; run it unless the same command has results.

    Raises BadDataError if it fails.
    """
    answer = folder / f"{step.name}.json"
    if (document := read_answer(step, folder)) is not None:
        return document
    command = [sys.executable, "-m", *_resolved(step.arguments, folder)]
    if step.arguments[0] != "pipeline.extract":
        command += ["--out", os.fspath(folder / step.name)]
    log.info("%s: python %s", step.name, printable(" ".join(command[1:])))
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if finished.returncode:
        raise BadDataError(f"{step.name} ended with exit code {finished.returncode}: see above")
    make_folder(answer.parent)
    document = json.loads(finished.stdout)
    text = json.dumps({"arguments": step.arguments, "answer": document}, indent=1)
    write_durably(answer, lambda file: file.write(text.encode()))
    return dict(document)


def read_answer(step: Step, folder: Path) -> dict[str, Any] | None:
    """Return the JSON that a step printed; None if it was not run with these arguments."""
    try:
        stored = json.loads((folder / f"{step.name}.json").read_bytes())
    except FileNotFoundError:
        return None
    return dict(stored["answer"]) if stored["arguments"] == list(step.arguments) else None


def _resolved(arguments: Sequence[str], folder: Path) -> list[str]:
    """Replace each ``{cache:STEP}`` by the cache file of that step."""
    resolved = []
    for word in arguments:
        if word.startswith("{cache:"):
            answer = folder / f"{word.removeprefix('{cache:').removesuffix('}')}.json"
            word = json.loads(answer.read_bytes())["answer"]["cache"]
        resolved.append(word)
    return resolved
