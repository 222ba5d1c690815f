"""``python -m pipeline.extract``: run a frozen base once over image folders, cache its features."""

import argparse
import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import cli
from pipeline.bases.availability import better_base, weights_sources
from pipeline.bases.config import BaseConfig
from pipeline.bases.file_base import OPTIONS
from pipeline.bases.registry import BASES, FILE_SUFFIXES, PIXELS
from pipeline.cache.config import AugmentConfig, ExtractConfig
from pipeline.config import path_argument
from pipeline.errors import NoInputError, UsageError
from pipeline.spec import MULTILABEL, REGRESSION, UNLABELLED
from pipeline.text import counted, duration, file_size, printable

if TYPE_CHECKING:
    from pipeline.api import Extraction
    from pipeline.bases.build import LayerInfo
    from pipeline.bases.onnx_file import FileLayer
    from pipeline.images.scan import FoundFile, ImageSet
    from pipeline.images.sets import Data

MAX_LISTED = 10  # skipped files in the terminal


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, extract, print the results."""
    arguments = _parser().parse_args(argv)
    if arguments.list_bases:
        _list_bases(arguments.cache_dir / "weights", as_json=arguments.json)
    elif arguments.list_layers:
        _list_layers(arguments)
    else:
        _extract(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        command="extract",
        summary="Run a frozen convolutional base once over images and cache its features.",
        example="python -m pipeline.extract data/pets --base mobilenet_v2 --pooling avg",
    )
    parser.add_argument(
        "data",
        nargs="*",
        type=path_argument,
        help="folder of class folders, or of train/, validation/ and test/ with class folders; "
        "several folders are one set; or a manifest, such as labels.csv, tar or Parquet files, or "
        "an address, such as s3://bucket/pets (default: the only set in data/)",
    )
    cli.add_options(parser, ExtractConfig)
    parser.add_argument(
        "--preview-views", action="store_true", help="write a sheet of example views and stop"
    )
    parser.add_argument(
        "--plan", action="store_true", help="choose the engine, write a plan of units, and stop"
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="compute part I of N of a plan, publish nothing; "
        "any number of processes, then extract without --part (docs/CLUSTER.md)",
    )
    parser.add_argument("--list-bases", action="store_true", help="list all bases and stop")
    parser.add_argument(
        "--on",
        metavar="CLUSTER",
        help="compute on the nodes of a Ray cluster: ray or ray://HOST:10001 (docs/CLUSTER.md)",
    )
    parser.add_argument(
        "--shared",
        metavar="ADDRESS",
        help="folder of plan and parts, of this cache only, such as s3://bucket/pets-vgg16",
    )
    parser.add_argument(
        "--list-layers", metavar="BASE", help="list the layers of a base or FILE.onnx and stop"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    cli.add_options(parser, AugmentConfig)
    return parser


def _extract(arguments: argparse.Namespace) -> None:
    from pipeline.api import extract_with_bases, preview_views

    data = arguments.data or [_only_set(Path("data"))]
    data = data if len(data) > 1 else data[0]
    augmentation = cli.augmentation_of(arguments, seed=arguments.seed)
    bases = arguments.base.split(",")
    configs = [
        cli.config_from(
            arguments,
            ExtractConfig,
            base=base,
            augmentation=augmentation,
            **_options_of_others(base, bases),
        )
        for base in bases
    ]
    several = len(configs) > 1
    for config in configs:
        if config.onnx_file and not config.layers:
            (layer,), base = config.file_layers(()), printable(config.base)
            logging.getLogger("pipeline").info(
                "%s: layer %s, the last map or tokens; --list-layers %s shows all %d",
                base, layer.name, base, len(config.measured.layers),
            )  # fmt: skip
    if arguments.preview_views:
        if several:
            raise UsageError(f"--preview-views is for one base; received {arguments.base}")
        sheet = preview_views(data, configs[0])
        cli.print_json({"sheet": os.fspath(sheet)}) if arguments.json else print(printable(sheet))
        return
    unit = "row" if several else "view" if configs[0].views else "image"
    if empty := [flag for flag in ("part", "on", "shared") if getattr(arguments, flag) == ""]:
        raise UsageError(f"--{empty[0]} is empty: is a variable unset?")
    modes = [flag for flag in ("plan", "part", "on", "shared") if getattr(arguments, flag)]
    if len(modes) - bool(arguments.shared) > 1:
        raise UsageError(f"--{' and --'.join(modes)} are separate steps: use one of them at a time")
    if modes and several:
        raise UsageError(f"--{modes[0]} is for one base; received {arguments.base}")
    if arguments.plan or arguments.part:
        if arguments.part:
            _compute_part(data, configs[0], arguments, unit)
        else:
            _plan(data, configs[0], arguments)
        return
    with (
        cli.ProgressBar("choosing an engine", unit="engine") as engine_bar,
        cli.ProgressBar("extracting", unit=unit) as bar,
    ):
        elsewhere = None
        if arguments.on or arguments.shared:
            from pipeline.distributed.parts import computed_elsewhere

            elsewhere = partial(
                computed_elsewhere,
                config=configs[0],
                on=arguments.on,
                shared=arguments.shared,
                progress=bar,
            )
        extractions = extract_with_bases(
            data,
            configs,
            progress=bar,
            engine_progress=engine_bar,
            on_scan=_log_image_set,
            elsewhere=elsewhere,
        )
    advice = better_base([done.table.document for done in extractions])
    if arguments.json:
        caches = [_as_json(done) | {"better_base": advice} for done in extractions]
        cli.print_json({"caches": caches} if several else caches[0])
        return
    for done in extractions:
        _print_summary(done, lists_skipped=done is extractions[0])
    if several:
        print(f"{len(configs)} caches in one pass; compare them: python -m pipeline.classify")
    if advice:
        print(advice)


def _plan(data: "Data", config: ExtractConfig, arguments: argparse.Namespace) -> None:
    from pipeline.distributed.parts import plan_extraction

    with cli.ProgressBar("choosing an engine", unit="engine") as bar:
        planned = plan_extraction(
            data, config, engine_progress=bar, on_scan=_log_image_set, shared=arguments.shared
        )
    units, engine = len(planned.plan.units), planned.plan.engine
    if arguments.json:
        document = {"plan": planned.name, "cache": os.fspath(planned.cache)}
        cli.print_json({**document, "rows": planned.rows, "units": units, "engine": engine})
        return
    by = f", computed by {engine['name']} {engine['version']}" if engine else ""
    print(f"{counted(planned.rows, 'row')} in {counted(units, 'unit')}{by}")
    print(printable(planned.name))
    if units:
        print("compute them: the same command with --part 1/N … N/N instead of --plan, anywhere")
    print("then publish: the same command without --plan")


def _compute_part(
    data: "Data", config: ExtractConfig, arguments: argparse.Namespace, unit: str
) -> None:
    from pipeline.distributed.parts import compute_part

    with cli.ProgressBar("extracting", unit=unit) as bar:
        computed = compute_part(
            data, config, part=arguments.part, progress=bar, shared=arguments.shared
        )
    if arguments.json:
        skipped = [file.to_dict() for file in computed.skipped]
        cli.print_json({"part": arguments.part, "computed": computed.rows, "skipped": skipped})
        return
    skipped_text = counted(len(computed.skipped), "file") + " skipped"
    print(f"part {arguments.part}: {counted(computed.rows, 'row')} computed, {skipped_text}")
    for file in computed.skipped[:MAX_LISTED]:
        print(f"  {printable(file.path)}: {file.reason}")


def _options_of_others(base: str, bases: Sequence[str]) -> dict[str, None]:
    """Return the options of a base in a file that are not for this one, but for another."""
    others = {Path(each).suffix for each in bases if each.endswith(FILE_SUFFIXES)}
    if base.endswith(".onnx") or not others:
        return {}
    if base.endswith(FILE_SUFFIXES):
        return dict.fromkeys(OPTIONS[2:]) if ".onnx" in others else {}
    return dict.fromkeys(OPTIONS)


def _only_set(folder: Path) -> Path:
    """Return the only set in ``data/``; raise a PipelineError if it is not the only one."""
    from pipeline.images.manifest import is_manifest

    entries = folder.iterdir() if folder.is_dir() else ()
    sets = sorted(
        entry for entry in entries
        if (entry.is_dir() or is_manifest(entry)) and entry.name[0] != "."
    )  # fmt: skip
    if not sets:
        raise NoInputError(
            f"no image set in {folder}/: name an image folder, or download a sample: "
            f"python -m benchmarks.sample textile"
        )
    if len(sets) > 1:
        names = ", ".join(printable(path) for path in sets)
        raise UsageError(f"{folder}/ contains several image sets: name one of {names}")
    return sets[0]


def _log_image_set(images: "ImageSet") -> None:
    """Log the counts per split and class before the extraction begins."""
    from pipeline.images.scan import SPLIT_FOLDERS, SPLIT_NAMES

    log = logging.getLogger("pipeline")
    kind = f"in {counted(len(images.classes), 'class', 'classes')}"
    if images.task == REGRESSION:
        kind = f"with numbers of {printable(images.classes[0])}"
    elif images.task == UNLABELLED:
        kind = "without labels"
    log.info("%s: %s %s", printable(images.root), counted(len(images.files), "file"), kind)
    for split in sorted({file.split for file in images.files if images.task != UNLABELLED}):
        name = SPLIT_NAMES[split] if split else "no splits, classify makes them"
        shown = _counts([file for file in images.files if file.split == split], images)
        log.info("  %s: %s", name, ", ".join(shown[:20] + ["…"] * (len(shown) > 20)))
    if groups := {file.group for file in images.files if file.group}:
        log.info("  %s, which classify keeps in one split", counted(len(groups), "group"))
    if images.skipped and images.folders:
        log.warning("%s of %s skipped, e.g. %s: %s", counted(len(images.skipped), "row"),
                    printable(images.root), printable(images.skipped[0].path),
                    images.skipped[0].reason)  # fmt: skip
    unlabelled = [name for name in images.ignored if name.lower() in SPLIT_FOLDERS]
    for name in unlabelled:
        log.warning("%s/ has no class folders: ignored, classify takes a part of train/", name)
    if others := [name for name in images.ignored if name not in unlabelled]:
        log.warning("ignored beside the class folders: %s", printable(", ".join(others)))


def _counts(files: "Sequence[FoundFile]", images: "ImageSet") -> list[str]:
    """Return ``cats 500, dogs 500``; of a multi-label set the images with each label."""
    if images.task == REGRESSION:
        numbers = [file.targets[0] for file in files]
        return [f"{len(files):,}, from {min(numbers):g} to {max(numbers):g}"]
    counts = Counter(file.label for file in files)
    if images.task == MULTILABEL:
        counts = Counter(n for file in files for n, has in enumerate(file.targets) if has)
    return [f"{printable(name)} {counts[n]:,}" for n, name in enumerate(images.classes)]


def _print_summary(done: "Extraction", *, lists_skipped: bool) -> None:
    table = done.table
    for layer, shape in table.layers.items():
        print(f"features/{printable(layer)}: {(len(table), *shape)} {table.spec.dtype}")
    skipped = counted(len(done.skipped), "file") + " skipped"
    if done.skipped and lists_skipped:
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


def _list_bases(weights_folder: Path, *, as_json: bool) -> None:
    sources = weights_sources(weights_folder)
    if as_json:
        cli.print_json(
            [
                base._asdict() | {"licence": base.licence, "weights_from": sources[base.name]}
                for base in BASES.values()
            ]
        )
        return
    head = f"{'name':20} {'size':>5}  {'features':11} {'parameters':>11} {'with top':>11}  "
    print(f"{head}{'licence':12}  weights")
    for base in BASES.values():
        shape = "×".join(map(str, base.feature_shape))
        counts = f"{base.parameters:11,} {base.parameters_with_top:11,}"
        line = f"{base.name:20} {base.image_size:5}  {shape:11} {counts}  {base.licence:12}"
        print(f"{line}  {sources[base.name]}")


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
