"""``python -m benchmarks.results``: run the experiments of docs/RESULTS.md, write that page."""

import argparse
import shutil
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

CURVES = "finetuning.png"  # next to the page


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, run the missing steps, write the page."""
    arguments = _parser().parse_args(argv)
    page = reproduce(
        [_parse_set(text) for text in arguments.sets],
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
        command=cli.command_line("benchmarks.results", argv),
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
    """Run the steps on every set, write the page and return its path.

    Parameters
    ----------
    sets : image folders, and the similarity of each to ImageNet in words. The references, which
        take longest, run on the first set only.
    only_collect : run no step; write the page from existing results.
    command : the command line, for the page.

    Raises a `pipeline.errors.PipelineError` if a step fails.
    """
    results = []
    curves: Path | None = None
    for number, (data, likeness) in enumerate(sets):
        size = replace(amount, scratch_epochs=0, end_to_end_epochs=0) if number else amount
        answers: dict[str, Any] = {}
        for step in steps_of(data, weights, size):
            answer = read_answer(step, folder) if only_collect else run_step(step, folder)
            if answer is not None:
                answers[step.name] = answer
                pictures = sorted((folder / step.name).glob("*/curves.png"))
                if "finetune-0" in step.name and pictures and curves is None:
                    curves = pictures[0]
        results.append(DatasetResults(data.name, likeness, size, answers))
    make_folder(page.parent)
    if curves:
        shutil.copyfile(curves, page.parent / CURVES)
    text = make_page(results, command, curves=CURVES if curves else None)
    write_durably(page, lambda file: file.write(text.encode()))
    return page


def _parse_set(text: str) -> tuple[Path, str]:
    """Return folder and words of ``data/pets=like ImageNet``."""
    path, _, likeness = text.partition("=")
    if not likeness:
        raise UsageError(
            f"{printable(text)}: expected FOLDER=WORDS, such as "
            f"'data/pets=photographs, like ImageNet'"
        )
    return Path(path), likeness


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        command="results",
        package="benchmarks",
        summary="Measure every method with VGG16 and write docs/RESULTS.md. This takes hours; an "
        "interrupted run continues.",
        example="python -m benchmarks.results 'data/cats_and_dogs=like ImageNet'",
    )
    parser.add_argument(
        "sets", nargs="+", metavar="FOLDER=WORDS", help="image set, and its similarity to ImageNet"
    )
    parser.add_argument("--weights", default="imagenet", metavar="W", help="imagenet or .h5 file")
    for flag, number, default, text in (
        ("--views", whole_number, 4, "views per training image"),
        ("--epochs", whole_number, 8, "epochs of fine-tuning"),
        ("--head-epochs", whole_number, 30, "epochs of heads"),
        ("--scratch-epochs", count, 30, "epochs of a convnet on the first set; 0 omits it"),
        ("--end-to-end-epochs", count, 3, "epochs end to end on the first set; 0 omits them"),
    ):
        parser.add_argument(flag, type=number, default=default, metavar="N", help=text)
    parser.add_argument(
        "--folder", type=Path, default=Path("results/reproduction"), help="folder of the runs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/RESULTS.md"), metavar="FILE", help="page to write"
    )
    parser.add_argument(
        "--collect", action="store_true", help="run nothing; write the page from existing results"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, when_interrupted="interrupted; finished steps are kept: run the same command")
