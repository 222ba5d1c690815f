"""``python -m benchmarks.results``: run what docs/RESULTS.md reports, and write that page."""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.results_page import DatasetResults, make_page
from benchmarks.results_steps import Amount, read_answer, run_step, steps_of
from pipeline import cli
from pipeline.config import count, whole_number
from pipeline.durable import make_folder, write_durably
from pipeline.errors import UsageError
from pipeline.text import printable

CURVES = "finetuning.png"  # beside the page


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run what has not been run, write the page."""
    arguments = _parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    page = reproduce(
        [_set(text) for text in arguments.sets],
        weights=arguments.weights,
        amount=Amount(
            views=arguments.views,
            epochs=arguments.epochs,
            head_epochs=arguments.head_epochs,
            scratch_epochs=arguments.scratch_epochs,
            end_to_end_epochs=arguments.end_to_end_epochs,
        ),
        folder=arguments.folder,
        page=arguments.out,
        only_collect=arguments.collect,
        command=printable(shlex.join(["python", "-m", "benchmarks.results", *words])),
    )
    print(printable(page))


def reproduce(
    sets: Sequence[tuple[Path, str]],
    *,
    weights: str,
    amount: Amount,
    folder: Path,
    page: Path,
    only_collect: bool,
    command: str,
) -> Path:
    """Measure every set and write the page; returns its path.

    Parameters
    ----------
    sets : image folders, and how like ImageNet each is, in words. The references, which take
        longest, are measured on the first.
    only_collect : run nothing.
    command : what was typed.

    Raises a `pipeline.errors.PipelineError` where a step fails.
    """
    measured = []
    curves: Path | None = None
    for number, (data, likeness) in enumerate(sets):
        size = replace(amount, scratch_epochs=0, end_to_end_epochs=0) if number else amount
        answers: dict[str, Any] = {}
        for step in steps_of(data, weights, size):
            found = read_answer(step, folder) if only_collect else run_step(step, folder)
            if found is not None:
                answers[step.name] = found
                drawn = sorted((folder / step.name).glob("*/curves.png"))
                if "finetune-0" in step.name and drawn and curves is None:
                    curves = drawn[0]
        measured.append(DatasetResults(data.name, likeness, size, answers))
    make_folder(page.parent)
    if curves:
        shutil.copyfile(curves, page.parent / CURVES)
    text = make_page(measured, [command], curves=CURVES if curves else None)
    write_durably(page, lambda file: file.write(text.encode()))
    return page


def _set(text: str) -> tuple[Path, str]:
    """``data/pets=like ImageNet``."""
    path, _, likeness = text.partition("=")
    if not likeness:
        raise UsageError(
            f"{printable(text)}: say how like ImageNet the set is, as in "
            f"'data/pets=photographs, like ImageNet'"
        )
    return Path(path), likeness


def _parser() -> argparse.ArgumentParser:
    made = cli.parser(
        command="results",
        package="benchmarks",
        summary="Measure VGG16 by every method and write docs/RESULTS.md. It takes hours; what was "
        "measured is kept, so it may be interrupted.",
        example="python -m benchmarks.results 'data/cats_and_dogs=like ImageNet'",
    )
    made.add_argument(
        "sets", nargs="+", metavar="FOLDER=WORDS", help="image sets, and how like ImageNet they are"
    )
    made.add_argument("--weights", default="imagenet", metavar="W", help="imagenet or a .h5 file")
    made.add_argument("--views", type=whole_number, default=4, metavar="K")
    made.add_argument("--epochs", type=whole_number, default=8, metavar="N", help="of fine-tuning")
    made.add_argument("--head-epochs", type=whole_number, default=30, metavar="N")
    for method, default in (("scratch", 30), ("end-to-end", 3)):
        made.add_argument(
            f"--{method}-epochs",
            type=count,
            default=default,
            metavar="N",
            help="of the first set; 0 leaves it out (default: %(default)s)",
        )
    made.add_argument(
        "--folder", type=Path, default=Path("results/reproduction"), help="of the runs"
    )
    made.add_argument("--out", type=Path, default=Path("docs/RESULTS.md"), metavar="FILE")
    made.add_argument(
        "--collect", action="store_true", help="run nothing: write the page of what there is"
    )
    return made


if __name__ == "__main__":
    cli.run(main, when_interrupted="interrupted; what was measured is kept: run the same again")
