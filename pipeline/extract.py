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
from pipeline.bases.registry import BASES
from pipeline.cache.config import AugmentConfig, ExtractConfig
from pipeline.errors import NoInputError, UsageError
from pipeline.text import counted, duration, file_size, printable

if TYPE_CHECKING:
    from pipeline.api import Extraction
    from pipeline.images.scan import ImageFolder


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, extract, report."""
    arguments = _parser().parse_args(argv)
    if arguments.list_bases:
        _list_bases(as_json=arguments.json)
    elif arguments.list_layers:
        _list_layers(arguments.list_layers, arguments.image_size, as_json=arguments.json)
    else:
        _extract(arguments)


def _parser() -> argparse.ArgumentParser:
    made = cli.parser(
        command="extract",
        summary="Run a frozen convolutional base once over image folders and cache its features.",
        example="python -m pipeline.extract data/pets --base mobilenet_v2 --pooling avg",
    )
    made.add_argument(
        "data",
        nargs="?",
        type=Path,
        help="train/ validation/ test/ with class folders, or class folders alone "
        "(default: the one set in data/)",
    )
    cli.add_options(made, ExtractConfig)
    made.add_argument(
        "--preview-views", action="store_true", help="write a sheet of views to look at, and stop"
    )
    made.add_argument("--list-bases", action="store_true", help="name, size, shape, parameters")
    made.add_argument("--list-layers", metavar="BASE", help="name, shape, parameters of each layer")
    made.add_argument("--json", action="store_true", help="print one JSON document")
    cli.add_options(made, AugmentConfig)
    return made


def _extract(arguments: argparse.Namespace) -> None:
    from pipeline.api import extract_features, preview_views

    data = arguments.data or _only_set(Path("data"))
    config = cli.config_from(
        arguments, ExtractConfig, augmentation=cli.augmentation_of(arguments, seed=arguments.seed)
    )
    if arguments.preview_views:
        sheet = preview_views(data, config)
        cli.print_json({"sheet": os.fspath(sheet)}) if arguments.json else print(printable(sheet))
        return
    with cli.ProgressBar("extracting", unit="view" if config.views else "image") as bar:
        done = extract_features(data, config, progress=bar, on_scan=_log_image_folder)
    if arguments.json:
        cli.print_json(_as_json(done))
    else:
        _print_summary(done)


def _only_set(folder: Path) -> Path:
    """The one image set in ``data/``; raises if there is none, or more than one."""
    entries = folder.iterdir() if folder.is_dir() else ()
    found = sorted(entry for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if not found:
        raise NoInputError(
            f"no image set in {folder}/: name an image folder, or get a sample with "
            f"python -m benchmarks.sample textile"
        )
    if len(found) > 1:
        names = ", ".join(printable(path) for path in found)
        raise UsageError(f"{folder}/ holds several sets: name one of {names}")
    return found[0]


def _log_image_folder(images: "ImageFolder") -> None:
    """Counts per split and class on stderr, before the long part begins."""
    from pipeline.cache.file import SPLIT_NAMES

    log = logging.getLogger("pipeline")
    files, classes = len(images.files), counted(len(images.classes), "class", "classes")
    log.info("%s: %s in %s", printable(images.root), counted(files, "file"), classes)
    counts = Counter((file.split, file.label) for file in images.files)
    for split in sorted({split for split, _ in counts}):
        name = SPLIT_NAMES[split] if split else "no split folders, classify will split"
        shown = [f"{printable(each)} {counts[split, n]:,}" for n, each in enumerate(images.classes)]
        log.info("  %s: %s", name, ", ".join(shown[:20] + ["…"] * (len(shown) > 20)))
    if images.ignored:
        log.warning("ignored beside the class folders: %s", printable(", ".join(images.ignored)))


def _print_summary(done: "Extraction") -> None:
    table = done.table
    for layer, shape in table.layers.items():
        print(f"features/{printable(layer)}: {(len(table), *shape)} {table.spec.dtype}")
    skipped = counted(len(done.skipped), "file") + " skipped"
    if done.skipped:
        print(f"{skipped}, listed in {printable(done.skipped_file)}")
    how = f"{done.computed:,} computed" if done.computed else "all from the cache"
    further = int((table.columns.views > 0).sum())
    views = f" and {counted(further, 'view')} of them" if further else ""
    print(
        f"{counted(len(table) - further, 'image')}{views} ({how}), {skipped}, "
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
        "skipped": [
            {"path": os.fsdecode(each.path), "reason": each.reason} for each in done.skipped
        ],
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


def _list_layers(name: str, image_size: int | None, *, as_json: bool) -> None:
    config = BaseConfig(base=name, image_size=image_size)
    if not config.network.module:
        raise UsageError("the base pixels has no layers: the image itself is its features")
    from pipeline.bases.build import list_layers

    layers = list_layers(config)
    if as_json:
        cli.print_json([layer._asdict() for layer in layers])
        return
    print(f"{'layer':32} {'kind':24} {'shape':18} {'parameters':>12}")
    for layer in layers:
        shape = "×".join("?" if side is None else str(side) for side in layer.shape)
        print(f"{layer.name:32} {layer.kind:24} {shape:18} {layer.parameters:12,}")
    print(f"{'in all':76} {sum(layer.parameters for layer in layers):12,}")


if __name__ == "__main__":
    cli.run(
        main,
        when_interrupted="interrupted; what was committed is kept: run the same again to go on",
    )
