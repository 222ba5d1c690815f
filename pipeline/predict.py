"""``python -m pipeline.predict``: classify images with a head or a network of ImageNet."""

import argparse
import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import cli
from pipeline.config import path_argument
from pipeline.errors import CannotCreateError, UsageError
from pipeline.models.config import PredictConfig
from pipeline.spec import CLASSES
from pipeline.text import counted, duration, printable

if TYPE_CHECKING:
    from pipeline.report.prediction_formats import Tally

log = logging.getLogger("pipeline")

DEFAULT_TOP = 3  # classes per image


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, predict, print each prediction when it is computed."""
    arguments = _parser().parse_args(argv)
    _check_options(arguments)
    from pipeline.api import predict_images
    from pipeline.report.prediction_formats import Tally, summary_lines

    started = time.monotonic()
    sheet, heatmaps = _sheet_path(arguments), _heatmap_folder(arguments)
    options: dict[str, Any] = {}
    if arguments.imagenet:
        from pipeline.models.imagenet import ImagenetModel

        options["model"] = ImagenetModel(
            arguments.imagenet,
            weights=arguments.weights or "imagenet",
            labels=arguments.labels,
            image_size=arguments.image_size,
            batch_size=arguments.batch_size,
        )
    config = cli.config_from(arguments, PredictConfig, **options)
    arguments.reject = config.reject  # other options imply it
    predictions = predict_images(_expand_stdin(arguments.images), config)
    if arguments.top is not None and predictions.model.task != CLASSES:
        raise UsageError(
            f"--top is for classes; {printable(predictions.model.name)} is of "
            f"{predictions.model.task}: leave it out"
        )
    arguments.top = arguments.top or DEFAULT_TOP
    out = sys.stdout  # rich replaces it during a progress bar and writes to stderr
    progress = None if out.isatty() else cli.ProgressBar("predicting", unit="image")
    with progress or nullcontext() as bar:  # on a terminal the rows show the progress
        tally = Tally(predictions, progress=bar)
        for text in _output(tally, arguments, sheet, heatmaps):
            out.write(text)
            out.flush()
    if sheet is not None:
        from pipeline.durable import make_folder
        from pipeline.report.sheets import write_contact_sheet

        make_folder(sheet.parent)
        part = f"the first {len(tally.first)} of " if tally.images > len(tally.first) else ""
        title = f"{part}{counted(tally.images, 'image')}, {predictions.model.name}"
        top = min(arguments.top, len(predictions.model.classes))
        model = predictions.model
        write_contact_sheet(sheet, tally.first, top=top, title=title, range=model.range)
        log.info("contact sheet: %s", printable(sheet))
    if arguments.csv:
        for line in summary_lines(tally):
            log.info(line.rstrip())
    elif not arguments.json and predictions.model.task == CLASSES:
        log.info("margin: the probability minus that of the second class; near 0 is undecided")
    log.info(
        "%s (%s), %s skipped, %s",
        counted(tally.images, "image"),
        f"{tally.cached:,} from the cache" if tally.cached else "all computed",
        counted(len(tally.skipped), "file"),
        duration(time.monotonic() - started),
    )


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        command="predict",
        summary="Classify images with a trained head, or with a network trained on ImageNet.",
        example="python -m pipeline.predict holiday/ 'more/*.jpg' --csv",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="files, folders, patterns, or - for paths on stdin (one per line, or NUL-separated)",
    )
    parser.add_argument(
        "--top", type=int, metavar="K", help="classes per image (default: 3; not for other tasks)"
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--csv", action="store_true", help="print comma-separated values")
    formats.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="also write a contact sheet")
    parser.add_argument(
        "--explain-dir",
        type=path_argument,
        metavar="FOLDER",
        help="new folder of the PNG files of --explain (default: results/<time>-heatmaps)",
    )
    cli.add_options(parser, PredictConfig)
    ready = parser.add_argument_group("a network trained on ImageNet, instead of a head")
    ready.add_argument(
        "--imagenet",
        metavar="BASE",
        help="predict ImageNet's 1,000 classes, with a contact sheet in results/",
    )
    ready.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names (default: Keras' list)"
    )
    return parser


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if arguments.top is not None and arguments.top < 1:
        raise UsageError(f"--top needs at least 1; received {arguments.top}")
    if arguments.imagenet:
        for name in ("model", "head", "base", "preprocessing", "explain"):
            if getattr(arguments, name) not in (None, False):
                raise UsageError(f"--imagenet uses a ready-made network: leave out --{name}")
        for name in ("neighbors", "reject", "coverage", "max_error", "per_class"):
            if getattr(arguments, name):
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} needs a head and its cache: leave out --imagenet")
    elif arguments.labels is not None:
        raise UsageError("--labels is for --imagenet; a head has its own classes: leave it out")
    if arguments.explain_dir is not None and not arguments.explain:
        raise UsageError("--explain-dir is for heat maps: add --explain")
    if arguments.sheet is not None and arguments.sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet names a PNG file; received {printable(arguments.sheet)}")


def _expand_stdin(images: Sequence[str]) -> Iterator[str]:
    """Yield the names; replace ``-`` by the list on stdin."""
    from pipeline.images.scan import split_list

    for name in images:
        yield from split_list(sys.stdin.buffer.read()) if name == "-" else [name]


def _output(
    tally: "Tally", arguments: argparse.Namespace, sheet: Path | None, heatmaps: Path | None
) -> Iterator[str]:
    """Yield the text for stdout, part by part, while predictions are computed."""
    from pipeline.models.rejection import NONE_OF_THESE
    from pipeline.report.overlays import write_overlays
    from pipeline.report.prediction_formats import (
        csv_lines,
        json_parts,
        summary_lines,
        table_lines,
        target_lines,
    )

    predictions = tally.predictions
    classes = predictions.model.classes
    top = min(arguments.top, len(classes))
    model, items = predictions.model, iter(tally)
    if heatmaps is not None:
        items = write_overlays(tally, heatmaps, resize=model.resize, range=model.range)
    if not (arguments.csv or arguments.json):
        if predictions.model.task == CLASSES:
            labels = (*classes, NONE_OF_THESE) if arguments.reject else classes
            yield from table_lines(items, paths=predictions.paths, classes=labels, top=top)
        else:
            yield from target_lines(items, paths=predictions.paths, classes=classes)
        if summary := "".join(summary_lines(tally)):
            yield f"\n{summary}"
        return
    to_terminal = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):  # for programs: UTF-8, and names byte for byte
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    if arguments.csv:
        named = printable if to_terminal else os.fsdecode
        yield from csv_lines(items, top=top, named=named, neighbors=arguments.neighbors)
        return
    yield from json_parts(
        items,
        top=top,
        head={"model": predictions.model.describe()},
        tail=lambda: {
            "cached": tally.cached,
            "skipped": [file.to_dict() for file in tally.skipped],
            "summary": tally.summary(),
            "sheet": None if sheet is None else os.fspath(sheet),
        },
    )


def _heatmap_folder(arguments: argparse.Namespace) -> Path | None:
    """Return the new folder of the heat maps, or None without ``--explain``."""
    if not arguments.explain:
        return None
    default = Path("results", f"{datetime.now():%Y-%m-%d_%H%M%S}-heatmaps")
    path: Path = arguments.explain_dir or default
    if any(path.iterdir()) if path.is_dir() else os.path.lexists(path):
        raise CannotCreateError(f"{printable(path)} exists: name a new folder with --explain-dir")
    return path


def _sheet_path(arguments: argparse.Namespace) -> Path | None:
    """Return the path of the contact sheet, or None."""
    path: Path | None = arguments.sheet
    if path is None and arguments.imagenet:
        path = Path("results", f"{datetime.now():%Y-%m-%d_%H%M%S}-imagenet.png")
    if path is not None and path.is_dir():
        raise CannotCreateError(f"{printable(path)} is a folder: name a file with --sheet")
    return path


if __name__ == "__main__":
    cli.run(main)
