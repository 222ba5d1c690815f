"""``python -m pipeline.extract``: run a frozen base once over image folders, cache its features."""

import argparse
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import cli
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import BASES, PIXELS
from pipeline.cache.config import AugmentConfig, ExtractConfig
from pipeline.config import path_argument
from pipeline.errors import NoInputError, UsageError
from pipeline.text import counted, duration, file_size, printable

if TYPE_CHECKING:
    from pipeline.api import Extraction
    from pipeline.bases.build import LayerInfo
    from pipeline.bases.onnx_file import FileLayer
    from pipeline.images.scan import ImageSet

MAX_LISTED = 10  # skipped files in the terminal


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, extract, print the results."""
    arguments = _parser().parse_args(argv)
    if arguments.list_bases:
        _list_bases(as_json=arguments.json)
    elif arguments.list_layers:
        _list_layers(arguments)
    else:
        _extract(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        command="extract",
        summary="Run a frozen convolutional base once over image folders and cache its features.",
        example="python -m pipeline.extract data/pets --base mobilenet_v2 --pooling avg",
    )
    parser.add_argument(
        "data",
        nargs="?",
        type=path_argument,
        help="folder of class folders, or of train/, validation/ and test/ with class folders "
        "(default: the only folder in data/)",
    )
    cli.add_options(parser, ExtractConfig)
    parser.add_argument(
        "--preview-views", action="store_true", help="write a sheet of example views and stop"
    )
    parser.add_argument("--list-bases", action="store_true", help="list all bases and stop")
    parser.add_argument(
        "--list-layers", metavar="BASE", help="list the layers of a base or FILE.onnx and stop"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    cli.add_options(parser, AugmentConfig)
    return parser


def _extract(arguments: argparse.Namespace) -> None:
    from pipeline.api import extract_features, preview_views

    data = arguments.data or _only_set(Path("data"))
    config = cli.config_from(
        arguments, ExtractConfig, augmentation=cli.augmentation_of(arguments, seed=arguments.seed)
    )
    if config.onnx_file and not config.layers:
        (layer,) = config.file_layers(())
        logging.getLogger("pipeline").info(
            "%s: layer %s, the last map or tokens; --list-layers %s shows all %d",
            printable(config.base), layer.name, printable(config.base), len(config.measured.layers),
        )  # fmt: skip
    if arguments.preview_views:
        sheet = preview_views(data, config)
        cli.print_json({"sheet": os.fspath(sheet)}) if arguments.json else print(printable(sheet))
        return
    with (
        cli.ProgressBar("choosing an engine", unit="engine") as engine_bar,
        cli.ProgressBar("extracting", unit="view" if config.views else "image") as bar,
    ):
        done = extract_features(
            data, config, progress=bar, engine_progress=engine_bar, on_scan=_log_image_folder
        )
    if arguments.json:
        cli.print_json(_as_json(done))
    else:
        _print_summary(done)


def _only_set(folder: Path) -> Path:
    """Return the only folder in ``data/``; raise a PipelineError if it is not the only one."""
    entries = folder.iterdir() if folder.is_dir() else ()
    sets = sorted(entry for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if not sets:
        raise NoInputError(
            f"no image set in {folder}/: name an image folder, or download a sample: "
            f"python -m benchmarks.sample textile"
        )
    if len(sets) > 1:
        names = ", ".join(printable(path) for path in sets)
        raise UsageError(f"{folder}/ contains several image sets: name one of {names}")
    return sets[0]


def _log_image_folder(images: "ImageSet") -> None:
    """Log the counts per split and class before the extraction begins."""
    from pipeline.images.scan import SPLIT_FOLDERS, SPLIT_NAMES

    log = logging.getLogger("pipeline")
    files, classes = len(images.files), counted(len(images.classes), "class", "classes")
    log.info("%s: %s in %s", printable(images.root), counted(files, "file"), classes)
    counts = Counter((file.split, file.label) for file in images.files)
    for split in sorted({split for split, _ in counts}):
        name = SPLIT_NAMES[split] if split else "no split folders, classify makes the split"
        shown = [f"{printable(c)} {counts[split, n]:,}" for n, c in enumerate(images.classes)]
        log.info("  %s: %s", name, ", ".join(shown[:20] + ["…"] * (len(shown) > 20)))
    unlabelled = [name for name in images.ignored if name.lower() in SPLIT_FOLDERS]
    for name in unlabelled:
        log.warning("%s/ has no class folders: ignored, classify takes a part of train/", name)
    if others := [name for name in images.ignored if name not in unlabelled]:
        log.warning("ignored beside the class folders: %s", printable(", ".join(others)))


def _print_summary(done: "Extraction") -> None:
    table = done.table
    for layer, shape in table.layers.items():
        print(f"features/{printable(layer)}: {(len(table), *shape)} {table.spec.dtype}")
    skipped = counted(len(done.skipped), "file") + " skipped"
    if done.skipped:
        print(f"{skipped}, listed in {printable(done.skipped_file)}")
        for file in done.skipped[:MAX_LISTED]:
            print(f"  {printable(file.path)}: {file.reason}")
    source = f"{done.computed:,} computed" if done.computed else "all from the cache"
    view_count = int((table.columns.views > 0).sum())
    views = f" and {counted(view_count, 'view')} of them" if view_count else ""
    print(
        f"{counted(len(table) - view_count, 'image')}{views} ({source}), {skipped}, "
        f"{file_size(table.path.stat().st_size)}, {duration(done.seconds)}"
    )
    print(printable(table.path))


def _as_json(done: "Extraction") -> dict[str, object]:
    table = done.table
    return {
        "cache": os.fspath(table.path),
        "fingerprint": table.spec.fingerprint,
        "images": int((table.columns.views == 0).sum()),
        "views": int((table.columns.views > 0).sum()),
        "computed": done.computed,
        "skipped": [file.to_dict() for file in done.skipped],
        "layers": {layer: [len(table), *shape] for layer, shape in table.layers.items()},
        "bytes": table.path.stat().st_size,
        "seconds": round(done.seconds, 3),
    }


def _list_bases(*, as_json: bool) -> None:
    if as_json:
        cli.print_json([base._asdict() for base in BASES.values()])
        return
    print(f"{'name':20} {'size':>5}  {'features':15} {'parameters':>12} {'with top':>12}")
    for base in BASES.values():
        shape = "×".join(map(str, base.feature_shape))
        counts = f"{base.parameters:12,} {base.parameters_with_top:12,}"
        print(f"{base.name:20} {base.image_size:5}  {shape:15} {counts}")


def _list_layers(arguments: argparse.Namespace) -> None:
    name, size, layout = arguments.list_layers, arguments.image_size, arguments.layout
    config = BaseConfig(base=name, image_size=size, layout=layout)
    layers: Sequence[FileLayer | LayerInfo]
    if config.onnx_file:
        layers = config.measured.layers
    elif config.network.name == PIXELS:
        raise UsageError("the base pixels has no layers: its features are the image")
    else:
        from pipeline.bases.build import list_layers

        layers = list_layers(config)
    if arguments.json:
        cli.print_json([layer._asdict() for layer in layers])
        return
    print(f"{'layer':32} {'kind':24} {'shape':18} {'parameters':>12}")
    for layer in layers:
        shape = "×".join("?" if side is None else str(side) for side in layer.shape)
        print(f"{layer.name:32} {layer.kind:24} {shape:18} {layer.parameters:12,}")
    print(f"{'total':76} {sum(layer.parameters for layer in layers):12,}")
    if config.onnx_file:
        print(f"default: {config.measured.default}")


if __name__ == "__main__":
    cli.run(
        main,
        when_interrupted="interrupted; committed rows are kept: run the same command to continue",
    )
