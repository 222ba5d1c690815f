"""``python -m benchmarks.sample NAME``: download a sample set into ``data/NAME``."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from benchmarks.samples import SAMPLES, PlacedSample, place_sample
from pipeline.cli import ProgressBar, parser, print_json, run
from pipeline.text import counted, printable

SUMMARY = """\
Download a sample set of images into data/NAME. Existing images are not downloaded again.

  textile        woven cloth: 1,000 nominal images, 500 with global defects, 250 x 250 pixels
  textile-local  harder: with a third class, 500 images with local defects
                 Both simulated by Megahed et al., arXiv 2501.12596; MIT licence; from the
                 package conformal-clip-data (42 MB) on the package index.
  cats_and_dogs  the photographs of Deep Learning with Python, in its layout: 1,000 train, 500
                 validation, 500 test images per class. From Dogs vs. Cats (Asirra; Elson et
                 al. 2007), an archive of 825 MB at download.microsoft.com."""

EXAMPLE = """\
python -m benchmarks.sample textile --per-class 300
  python -m benchmarks.sample cats_and_dogs --data-dir /big/disk/data"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, download the sample, print its folder and the next command."""
    options = parser(command="sample", summary=SUMMARY, example=EXAMPLE, package="benchmarks")
    options.add_argument("name", metavar="NAME", choices=tuple(SAMPLES), help=", ".join(SAMPLES))
    options.add_argument(
        "--per-class",
        type=int,
        metavar="N",
        help="number of images per class (default: all); of cats_and_dogs, N/2 are train, N/4 "
        "validation and N/4 test",
    )
    options.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="parent folder of the sets",
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
