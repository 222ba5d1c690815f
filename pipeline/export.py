"""``python -m pipeline.export``: write a base and its trained head as one model."""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline import cli
from pipeline.config import path_argument
from pipeline.errors import UsageError
from pipeline.heads.names import NOT_NETWORKS
from pipeline.text import printable


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, export, print the result."""
    arguments = _parser().parse_args(argv)
    from pipeline.models.runs import NotSavedError, find_bundle, new_export_folder, newest_run

    run = arguments.run or newest_run()
    with suppress(NotSavedError):  # another head may do
        # other errors come before seconds of imports
        bundle = find_bundle(run, arguments.head)
        if arguments.format != "onnx" and bundle.stem in NOT_NETWORKS and arguments.head:
            raise UsageError(
                f"{bundle.stem} cannot be exported to Keras or LiteRT: it is not a layer of a "
                f"network; choose --format onnx"
            )
        new_export_folder(bundle, arguments.format, arguments.out)
    from pipeline.models.export import export_run

    export = export_run(
        run,
        arguments.head,
        format=arguments.format,
        weights=arguments.weights,
        out=arguments.out,
        cache_dir=arguments.cache_dir,
        images=arguments.images,
        check_images=arguments.check_images,
    )
    parity = export.parity
    if arguments.json:
        document = {"head": export.head, "folder": os.fspath(export.folder)}
        agreement = {"max_difference": parity.max_difference, "changed": parity.changed}
        cli.print_json(document | {"images": parity.count} | agreement)
    else:
        print(f"{printable(export.head)} predicts as in the comparison: {parity}")
        print(f"python {printable(export.folder / 'predict.py')} IMAGE…")
        print(f"written to {printable(export.folder)}")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        command="export",
        summary="Export preprocessing, base and head as one model (uint8 images to class "
        "probabilities),\nwith a predict.py that does not need this project.\n"
        "Nothing is written unless its predictions equal the evaluated ones.",
        example="python -m pipeline.export results/2026-01-31_120000-a --format onnx",
    )
    parser.add_argument(
        "run",
        nargs="?",
        type=path_argument,
        help="run or saved model (default: the newest with a saved head in results/)",
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=("keras", "onnx", "tflite"),
        help="file format of the model; tflite is LiteRT's",
    )
    parser.add_argument(
        "--head",
        metavar="NAME",
        help="name of a head (default: the recommended one, or the best that can be exported)",
    )
    parser.add_argument("--weights", metavar="FILE", help="weights file of the base, if moved")
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="FOLDER",
        help="folder (default: RUN/exports/HEAD-FORMAT)",
    )
    parser.add_argument(
        "--cache-dir",
        type=path_argument,
        default=Path("cache"),
        metavar="FOLDER",
        help="folder of caches",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder with the images, if moved or renamed since extract (found by content)",
    )
    parser.add_argument(
        "--check-images", type=int, default=200, metavar="N", help="test images to compare on"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    cli.run(main, when_interrupted="interrupted; nothing was written")
