"""Run the steps, collect their results, write the page."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.durable import make_folder, write_durably
from pipeline.reproduction.page import ImageSet, make_page
from pipeline.reproduction.steps import Amount, read_answer, run_step, steps_of

CURVES = "finetuning.png"  # beside the page


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
        measured.append(ImageSet(data.name, likeness, size, answers))
    make_folder(page.parent)
    if curves:
        shutil.copyfile(curves, page.parent / CURVES)
    text = make_page(measured, [command], curves=CURVES if curves else None)
    write_durably(page, lambda file: file.write(text.encode()))
    return page
