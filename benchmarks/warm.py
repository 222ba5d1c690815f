"""``python -m benchmarks.warm``: measure ``extract`` on images that are all in the cache."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cli import parser, print_json, run
from pipeline.text import counted, file_size

CLASSES = 10
SIDE = 8  # pixels of an image: decoding is not what is measured


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print the medians."""
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        document = measure(arguments.images, arguments.rounds, Path(scratch))
    if arguments.json:
        print_json(document)
        return
    print(f"extract on {counted(document['images'], 'drawn image')}, all in the cache:")
    peak = file_size(document["peak_bytes"]) if document["peak_bytes"] else "unknown"
    print(f"{np.median(document['seconds']):.1f} s (median of {arguments.rounds}), memory {peak}")


def _parser() -> argparse.ArgumentParser:
    options = parser(
        command="warm",
        package="benchmarks",
        summary="Measure extract on drawn images that are all in the cache.",
        example="python -m benchmarks.warm --images 60000",
    )
    options.add_argument(
        "--images", type=int, default=60_000, metavar="N", help="number of images (default: 60,000)"
    )
    options.add_argument("--rounds", type=int, default=3, metavar="N", help="number of rounds")
    options.add_argument("--json", action="store_true", help="print one JSON document")
    return options


def measure(count: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """Return the seconds of each warm run, its peak memory, and the rows that it computed: 0."""
    from benchmarks.process import run_command

    folder = scratch / "images"
    draw_files(folder, count)
    command = ["extract", os.fspath(folder), "--base", "pixels", "--pooling", "avg", "--json"]
    command += ["--image-size", str(SIDE), "--cache-dir", os.fspath(scratch / "cache")]
    cold = run_command(command)
    warm = [run_command(command) for _ in range(rounds)]
    return {
        "images": cold.document["images"],
        "computed": [each.document["computed"] for each in (cold, *warm)],
        "seconds": [round(each.seconds, 3) for each in warm],
        "peak_bytes": max((each.peak or 0 for each in warm), default=0),
    }


def draw_files(folder: Path, count: int) -> None:
    """Write ``count`` files of different content: one picture per class, its number at the end."""
    from PIL import Image

    for label in range(CLASSES):
        (folder / f"{label}").mkdir(parents=True)
        path = folder / f"{label}" / "picture.png"
        Image.new("L", (SIDE, SIDE), 20 * label).save(path)
        picture = path.read_bytes()
        path.unlink()
        for number in range(label, count, CLASSES):
            # Decoders ignore what follows the picture.
            (path.parent / f"{number:07d}.png").write_bytes(picture + str(number).encode())


if __name__ == "__main__":
    run(main)
