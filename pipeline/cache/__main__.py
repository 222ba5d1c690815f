"""``python -m pipeline.cache``: list, show, verify, repair and prune caches."""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import ProgressBar, parser, print_json, run
from pipeline.config import path_argument
from pipeline.errors import BadDataError, PipelineError, UsageError
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION, UNLABELLED
from pipeline.text import counted, duration, file_size, printable

if TYPE_CHECKING:
    from pipeline.cache.checksums import Damage
    from pipeline.cache.file import FeatureTable

log = logging.getLogger("pipeline")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run one of the commands."""
    main_parser = parser(
        command="cache",
        summary="List, check, repair and prune feature caches.",
        example="python -m pipeline.cache verify pets",
    )
    main_parser.set_defaults(run=lambda arguments: main_parser.error("name a command"))
    commands = main_parser.add_subparsers(metavar="COMMAND")
    for run_command, summary in (
        (_ls, "list caches: set, base, layers, rows, size, age"),
        (_show, "show a cache: spec, counts per split and class, skipped files"),
        (_verify, "check every byte; name damaged layers and rows (exit code 65)"),
        (_repair, "compute damaged rows again"),
        (_prune, "delete temporary files, old checkpoints, caches and rows of deleted images"),
    ):
        name = run_command.__name__.strip("_")
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run_command)
        command.add_argument("--json", action="store_true", help="print one JSON document")
        if run_command in (_show, _verify, _repair):
            command.add_argument(
                "names" if run_command is _verify else "name",
                type=path_argument,
                nargs="+" if run_command is _verify else None,
                metavar="CACHE",
                help="cache file, image folder or set (its last used cache)",
            )
        if run_command is _repair:
            command.add_argument(
                "--weights", type=Path, metavar="FILE", help="weights file, if moved"
            )
            command.add_argument("--wait", action="store_true", help="wait for another writer")
        command.add_argument(
            "--cache-dir", type=Path, default=Path("cache"), metavar="FOLDER",
            help="folder of caches (default: %(default)s)",
        )  # fmt: skip
        if run_command is _prune:
            command.add_argument("--yes", action="store_true", help="delete without asking")
    arguments = main_parser.parse_args(argv)
    arguments.run(arguments)


def _ls(arguments: argparse.Namespace) -> None:
    from pipeline.cache.file import cache_files, read_table

    entries: list[dict[str, Any]] = []
    for path in cache_files(arguments.cache_dir):
        entry: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size}
        entry["age_seconds"] = round(time.time() - path.stat().st_mtime)
        try:
            table = read_table(path)
            entry |= {
                "set": table.document["set"],
                "base": table.spec.base,
                "image_size": table.spec.image_size,
                "layers": list(table.layers),
                "rows": len(table),
            }
        except PipelineError as error:
            entry["error"] = str(error)
        entries.append(entry)
    if arguments.json:
        print_json(entries)
        return
    for entry in entries:
        size, age = file_size(entry["bytes"]), duration(entry["age_seconds"])
        if "error" in entry:
            print(f"{printable(entry['file'])}  {size}  unreadable: {entry['error']}")
            continue
        features = f"{entry['base']} at {entry['image_size']}: {', '.join(entry['layers'])}"
        names = [printable(text) for text in (entry["file"], entry["set"], features)]
        print(*names, f"{entry['rows']:,} rows", size, f"{age} old", sep="  ")
    if not entries:
        print(f"no caches in {printable(arguments.cache_dir)}/")


def _show(arguments: argparse.Namespace) -> None:
    from pipeline.cache.file import read_all_rows, read_table
    from pipeline.cache.fill import read_skipped
    from pipeline.cache.find import find_cache

    path = find_cache(arguments.cache_dir, arguments.name, damaged=True)
    table = read_table(path)
    skipped = read_skipped(path)
    gone = len(read_all_rows(path)) - len(table)
    counts = _count_rows(table)
    if arguments.json:
        print_json(
            {
                **table.document,
                "layers": {layer: [len(table), *shape] for layer, shape in table.layers.items()},
                "classes": list(table.classes),
                "counts": counts,
                "gone_rows": gone,
                "skipped": [file.to_dict() for file in skipped],
            }
        )
        return
    print(f"set {printable(table.document['set'])} of {printable(table.document['root'])}")
    created = printable(str(table.document.get("created", "at an unknown time")))
    print(f"fingerprint {table.spec.fingerprint}, created {created}")
    task = {} if table.task == CLASSES else {"task": table.task}
    for name, value in {**vars(table.spec), **_describe_origin(table.document), **task}.items():
        print(f"  {name:14} {printable(str(value))}")
    for layer, shape in table.layers.items():
        print(f"features/{printable(layer)}: {(len(table), *shape)} {table.spec.dtype}")
    for entry in counts:
        views = f" + {entry['views']:,} views" if entry["views"] else ""
        numbers = f", from {entry['lowest']:g} to {entry['highest']:g}" if "lowest" in entry else ""
        name = printable(entry["class"])
        print(f"  {entry['split']:12} {name:20} {entry['images']:>8,}{views}{numbers}")
    if gone:
        print(f"{gone:,} more rows of images that are gone")
    for file in skipped:
        print(f"skipped {printable(file.path)}: {printable(file.reason)}")


def _describe_origin(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the engines of a cache and, if it has views, their number and augmentation."""
    first = document["engine"] or {}
    is_file = str(document["spec"]["preprocessing"]).startswith("onnx ")
    reference = "ONNX Runtime without optimisation" if is_file else "TensorFlow"
    engines = []
    for engine in (first, *first.get("also", ())):
        error = max(dict(engine.get("error") or {}).values(), default=0.0)
        engines.append(
            f"{engine.get('name')} {engine.get('version')}"
            + (f", {error:.1e} from {reference}" if error else "")
        )
    origin = {"engine": "; ".join(engines)}
    if "augmentation" in document:
        images = "every image" if document.get("tta") else "each training image"
        origin["views"] = f"{document.get('views')} of {images}"
        ranges = dict(document["augmentation"])
        origin["augmentation"] = ", ".join(f"{name} {value}" for name, value in ranges.items())
    return origin


def _count_rows(table: "FeatureTable") -> list[dict[str, Any]]:
    """Count rows, images and views of each split and class, or label; add the range of numbers."""
    from pipeline.images.scan import SPLIT_NAMES

    columns, labels = table.columns, table.columns.labels
    splits, views = columns.splits, columns.views
    if table.task == MULTILABEL:
        rows_with_label, labels = (columns.targets == 1).nonzero()
        splits, views = splits[rows_with_label], views[rows_with_label]
    pairs = list(zip(splits.tolist(), labels.tolist(), strict=True))
    images = Counter(pair for pair, view in zip(pairs, views, strict=True) if not view)

    def number_range(split: int) -> dict[str, float]:
        numbers = columns.targets[columns.splits == split]
        return {"lowest": float(numbers.min()), "highest": float(numbers.max())}

    return [
        {
            "split": SPLIT_NAMES[split],
            "class": table.task if table.task == UNLABELLED else table.classes[label],
            "rows": rows,
            "images": images[split, label],
            "views": rows - images[split, label],
            **(number_range(split) if table.task == REGRESSION else {}),
        }
        for (split, label), rows in sorted(Counter(pairs).items())
    ]


def _verify(arguments: argparse.Namespace) -> None:
    from pipeline.cache.find import find_caches
    from pipeline.cache.maintenance import verify_cache

    paths = find_caches(arguments.cache_dir, arguments.names, damaged=True)
    several = len(paths) > 1
    entries: list[dict[str, Any]] = []
    problems: list[PipelineError] = []
    for path in paths:
        try:
            damages = verify_cache(path)
        except PipelineError as error:  # the others are checked, too
            problems.append(error)
            continue
        entry = {"file": str(path), "whole": not damages}
        entries.append({**entry, "damages": [vars(damage) for damage in damages]})
        if damages:
            problems.append(_damage_error(path, damages))
        if not arguments.json:
            _print_damages(path, damages, f"{printable(path)} " * several)
    if arguments.json and entries:
        print_json(entries if several else entries[0])
    for problem in problems[1:]:
        log.warning("%s", problem)
    if problems:
        raise problems[0]


def _print_damages(path: Path, damages: Sequence["Damage"], prefix: str) -> None:
    for damage in damages:
        print(f"{prefix}{'damaged' if damage.is_lost else 'changed'}: {printable(damage.what)}")
    if not damages and path.exists():
        print(f"{printable(path)} is undamaged: every byte is correct")
    elif not damages:
        parts = printable(path.with_suffix(".parts"))
        print(f"{parts} is undamaged, but not published yet: run extract again")


def _damage_error(path: Path, damages: Sequence["Damage"]) -> BadDataError:
    lost = sum(damage.is_lost for damage in damages)
    found = f"is damaged, or another program changed it, in {counted(lost, 'place')}"
    return BadDataError(
        f"{printable(path)} {found if lost else 'shows no damage, but was changed'}: "
        f"python -m pipeline.cache repair {printable(path)}"
        + " mends it and computes nothing"
        * (not lost)
    )


def _repair(arguments: argparse.Namespace) -> None:
    from pipeline.api import repair_cache
    from pipeline.cache.find import find_cache

    path = find_cache(arguments.cache_dir, arguments.name, damaged=True)
    with ProgressBar("repairing", unit="image") as bar:
        repair = repair_cache(
            path,
            weights=arguments.weights,
            cache_dir=arguments.cache_dir,
            wait=arguments.wait,
            progress=bar,
        )
    if arguments.json:
        damages = [damage.what for damage in repair.damages]
        print_json({"damages": damages, "computed": repair.computed})
        return
    for damage in repair.damages:
        print(f"repaired: {printable(damage.what)}")
    if repair.damages:
        print(f"{counted(repair.computed, 'image')} computed again")
    else:
        print(f"{printable(path)} is undamaged: nothing to repair")


def _prune(arguments: argparse.Namespace) -> None:
    from pipeline.cache.maintenance import find_prunable, prune

    items = find_prunable(arguments.cache_dir)
    if arguments.json and not arguments.yes:
        raise UsageError("prune asks before it deletes: --json also needs --yes")
    if not arguments.json:
        for item in items:
            print(f"{printable(item.path)}  {file_size(item.size)}  {item.reason}")
        if not items:
            print("nothing to prune")
            return
    if not arguments.yes:
        question = "delete this?" if len(items) == 1 else f"delete these {len(items)}?"
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return
    for item in items:
        prune(item)
    freed = sum(item.size for item in items)
    if arguments.json:
        pruned = [{"file": str(item.path), "reason": item.reason} for item in items]
        print_json({"pruned": pruned, "bytes": freed})
    else:
        print(f"freed {file_size(freed)}")


if __name__ == "__main__":
    run(main)
