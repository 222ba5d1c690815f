"""``python -m pipeline.export``: a trained head with its base as one model for use elsewhere."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import parser, print_json, run
from pipeline.text import printable


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, export, report."""
    arguments = _parser().parse_args(argv)
    from pipeline.models.export import export_bundle
    from pipeline.models.runs import find_bundle, newest_run

    done = export_bundle(
        find_bundle(arguments.run or newest_run(Path("results")), arguments.head),
        format=arguments.format,
        weights=arguments.weights,
        out=arguments.out,
        cache_dir=arguments.cache_dir,
        check_images=arguments.check_images,
    )
    if arguments.json:
        print_json(
            {
                "folder": os.fspath(done.folder),
                "images": done.parity.count,
                "max_difference": done.parity.max_difference,
                "changed": done.parity.changed,
            }
        )
    else:
        print(f"the same as measured: {done.parity}")
        print(f"python {printable(done.folder / 'predict.py')} IMAGE…")
        print(f"written to {printable(done.folder)}")


def _parser() -> argparse.ArgumentParser:
    made = parser(
        command="export",
        summary="Export preprocessing, base and head as one model (uint8 images to class "
        "probabilities),\nwith a predict.py that does not need this project.\n"
        "Nothing is written unless its predictions equal the evaluated ones.",
        example="python -m pipeline.export results/2026-01-31-120000 --format onnx --head logistic",
    )
    made.add_argument(
        "run",
        nargs="?",
        type=Path,
        help="run folder or saved model (default: the newest run in results/)",
    )
    made.add_argument(
        "--format", required=True, choices=("keras", "onnx"), help="file format of the model"
    )
    made.add_argument(
        "--head",
        metavar="NAME",
        help="dense, linear or fine-tuned head (default: the recommended one)",
    )
    made.add_argument("--weights", metavar="FILE", help="weights file of the base, if it has moved")
    made.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="output folder (default: exports/HEAD-FORMAT in the run)",
    )
    made.add_argument(
        "--cache-dir", type=Path, default=Path("cache"), metavar="FOLDER", help="folder of caches"
    )
    made.add_argument(
        "--check-images",
        type=int,
        default=200,
        metavar="N",
        help="number of test images to compare on",
    )
    made.add_argument("--json", action="store_true", help="print one JSON document")
    return made


if __name__ == "__main__":
    run(main, when_interrupted="interrupted; nothing was written")
