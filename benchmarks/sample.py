"""The door to the sample sets: ``python -m benchmarks.sample NAME`` fills ``data/NAME``."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from benchmarks.samples import SAMPLES, PlacedSample, place_sample
from pipeline.cli import ProgressBar, parser, print_json, run
from pipeline.text import counted, printable

SUMMARY = """\
Put a sample set of images into data/NAME. What is there already is not fetched again.

  textile        is this cloth woven right? 1,000 nominal, 500 global defects, 250 x 250 pixels
  textile-local  the hard one: with 500 local defects as a third class
                 Both simulated by Megahed et al., arXiv 2501.12596; MIT licence; from the
                 package conformal-clip-data (42 MB) on the package index.
  cats_and_dogs  the photographs of Deep Learning with Python, in its layout: 1,000 train, 500
                 validation, 500 test images per class. From Dogs vs. Cats (Asirra; Elson et
                 al. 2007), an archive of 825 MB at download.microsoft.com."""

EXAMPLE = """\
python -m benchmarks.sample textile --per-class 300
  python -m benchmarks.sample cats_and_dogs --data-dir /big/disk/data"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, place the sample, say where it is and what comes next."""
    options = parser(command="sample", summary=SUMMARY, example=EXAMPLE, package="benchmarks")
    options.add_argument("name", metavar="NAME", choices=tuple(SAMPLES), help=", ".join(SAMPLES))
    options.add_argument(
        "--per-class",
        type=int,
        metavar="N",
        help="images per class, the first by number (default: all); with cats_and_dogs half of "
        "them are train, a quarter each validation and test; a larger N later only adds",
    )
    options.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder of the sets (default: %(default)s)",
    )
    options.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = options.parse_args(argv)
    placed = place_sample(
        SAMPLES[arguments.name],
        arguments.data_dir,
        per_class=arguments.per_class,
        progress=ProgressBar,
    )
    if arguments.json:
        print_json(_document(arguments.name, placed))
    else:
        _print_summary(placed)


def _print_summary(placed: PlacedSample) -> None:
    total = counted(sum(placed.counts.values()), "image")
    print(f"{printable(placed.folder)}: {total}, {placed.added:,} of them new")
    for class_folder, count in placed.counts.items():
        print(f"  {class_folder:<18} {count:>5,}")
    print(f"next: {_next_command(placed)}")


def _document(name: str, placed: PlacedSample) -> dict[str, object]:
    counts = [
        {"split": split or None, "class": class_name, "images": count}
        for class_folder, count in placed.counts.items()
        for split, _, class_name in [class_folder.rpartition("/")]
    ]
    return {
        "set": name,
        "folder": str(placed.folder),
        "counts": counts,
        "added": placed.added,
        "next": _next_command(placed),
    }


def _next_command(placed: PlacedSample) -> str:
    return f"python -m pipeline.extract {shlex.quote(printable(placed.folder))}"


if __name__ == "__main__":
    run(main)
