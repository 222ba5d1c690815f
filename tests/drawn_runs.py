"""Runs of drawn images, with classes of awkward names."""

import shutil
from pathlib import Path

from command import run_command
from synthetic_images import draw

MARKUP = '"><img src=x onerror=alert(1)>'
KOREAN = "고양이 {b} `${1}`"


def make_run(root: Path, *, per_class: int = 30, mislabelled: int = 6) -> Path:
    """Draw a set of two classes below ``root``, extract, classify; return the run's folder.

    The first images of each class show what the other class shows.
    """
    for name in (MARKUP, KOREAN):
        folder = root / "set" / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            stripes = (name == MARKUP) != (number < mislabelled)
            image = draw(number + 1000 * (name == MARKUP), stripes=stripes)
            image.save(folder / f"{number:03d} {KOREAN}.png")
    run_command("extract", root / "set", "--base", "pixels", "--cache-dir", root / "cache")
    run_command(
        "classify", "--heads", "logistic", "--cache-dir", root / "cache", "--out", root / "results"
    )
    (run,) = (root / "results").iterdir()
    return run


def copy_run(run: Path, root: Path) -> Path:
    """Copy a run without its labels file, with its cache, to another folder."""
    shutil.copytree(run.parents[1] / "cache", root / "cache")
    return shutil.copytree(run, root / "results" / run.name)
