"""``python -m pipeline.cache``: list, show, verify, repair and prune caches."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import ProgressBar, parser, print_json, run
from pipeline.errors import BadDataError, UsageError
from pipeline.text import counted, duration, file_size, printable

if TYPE_CHECKING:
    from pipeline.cache.file import FeatureTable


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(
        command="cache",
        summary="List, show, verify, repair and prune caches.",
        example="python -m pipeline.cache verify cache/pets-vgg16-8849e8c6e7d7.h5",
    )
    made.set_defaults(do=lambda arguments: made.error("name one of the commands"))
    commands = made.add_subparsers(metavar="COMMAND")
    for do, summary in (
        (_ls, "list caches: set, base, layers, rows, size, age"),
        (_show, "show spec, counts per split and class, skipped files"),
        (_verify, "check every byte; report damaged layers and rows (exit 65)"),
        (_repair, "compute damaged rows again"),
        (_prune, "delete leftovers of stopped runs, deleted images and old checkpoints"),
    ):
        name = do.__name__.strip("_")
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(do=do)
        command.add_argument("--json", action="store_true", help="print one JSON document")
        if do in (_show, _verify, _repair):
            command.add_argument("file", type=Path, metavar="FILE", help="cache file (.h5)")
        if do is _repair:
            command.add_argument(
                "--weights", type=Path, metavar="FILE", help="weights file, if it has moved"
            )
            command.add_argument("--wait", action="store_true", help="wait for a running writer")
        if do in (_ls, _prune, _repair):
            command.add_argument(
                "--cache-dir",
                type=Path,
                default=Path("cache"),
                metavar="FOLDER",
                help="folder of caches (default: cache)",
            )
        if do is _prune:
            command.add_argument("--yes", action="store_true", help="delete without asking")
    arguments = made.parse_args(argv)
    arguments.do(arguments)


def _ls(arguments: argparse.Namespace) -> None:
    from pipeline.cache.file import cache_files, read_table

    listed: list[dict[str, Any]] = []
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
        except BadDataError as error:
            entry["error"] = str(error)
        listed.append(entry)
    if arguments.json:
        print_json(listed)
        return
    for entry in listed:
        size, age = file_size(entry["bytes"]), duration(entry["age_seconds"])
        if "error" in entry:
            print(f"{printable(entry['file'])}  {size}  unreadable: {entry['error']}")
            continue
        what = f"{entry['base']} at {entry['image_size']}: {', '.join(entry['layers'])}"
        print(f"{printable(entry['file'])}  {printable(entry['set'])}  {printable(what)}", end="  ")
        print(f"{entry['rows']:,} rows  {size}  {age} old")
    if not listed:
        print(f"no caches in {printable(arguments.cache_dir)}/")


def _show(arguments: argparse.Namespace) -> None:
    from pipeline.cache.file import read_all_rows, read_table
    from pipeline.cache.maintenance import skipped_files

    table = read_table(arguments.file)
    skipped = skipped_files(arguments.file)
    gone = len(read_all_rows(arguments.file)) - len(table)
    counts = _counts(table)
    if arguments.json:
        print_json(
            {
                **table.document,
                "layers": {layer: [len(table), *shape] for layer, shape in table.layers.items()},
                "classes": list(table.classes),
                "counts": counts,
                "gone_rows": gone,
                "skipped": [
                    {"path": os.fsdecode(item.path), "reason": item.reason} for item in skipped
                ],
            }
        )
        return
    print(f"set {printable(table.document['set'])} of {printable(table.document['root'])}")
    made = printable(str(table.document.get("created", "at an unknown time")))
    print(f"fingerprint {table.spec.fingerprint}, made {made}")
    for name, value in {**vars(table.spec), **_made_with(table.document)}.items():
        print(f"  {name:14} {printable(str(value))}")
    for layer, shape in table.layers.items():
        print(f"features/{printable(layer)}: {(len(table), *shape)} {table.spec.dtype}")
    for entry in counts:
        views = f" + {entry['views']:,} views" if entry["views"] else ""
        print(f"  {entry['split']:12} {printable(entry['class']):20} {entry['images']:>8,}{views}")
    if gone:
        print(f"{gone:,} more rows of images that are gone")
    for item in skipped:
        print(f"skipped {printable(item.path)}: {printable(item.reason)}")


def _made_with(document: Mapping[str, Any]) -> dict[str, str]:
    """The engines, and the augmentation where there are views, in words."""
    engine = document["engine"] or {}
    engines = []
    for each in (engine, *engine.get("also", ())):
        error = max(dict(each.get("error") or {}).values(), default=0.0)
        engines.append(
            f"{each.get('name')} {each.get('version')}"
            + (f", {error:.1e} from TensorFlow" if error else "")
        )
    made = {"engine": "; ".join(engines)}
    if "augmentation" in document:
        whose = "every image" if document.get("tta") else "each training image"
        made["views"] = f"{document.get('views')} of {whose}"
        ranges = dict(document["augmentation"])
        made["augmentation"] = ", ".join(f"{name} {value}" for name, value in ranges.items())
    return made


def _counts(table: "FeatureTable") -> list[dict[str, Any]]:
    from pipeline.cache.file import SPLIT_NAMES

    columns = table.columns
    pairs = list(zip(columns.splits.tolist(), columns.labels.tolist(), strict=True))
    images = Counter(pair for pair, view in zip(pairs, columns.views, strict=True) if not view)
    return [
        {
            "split": SPLIT_NAMES[split],
            "class": table.classes[label],
            "rows": rows,
            "images": images[split, label],
            "views": rows - images[split, label],
        }
        for (split, label), rows in sorted(Counter(pairs).items())
    ]


def _verify(arguments: argparse.Namespace) -> None:
    from pipeline.cache.maintenance import verify_cache

    damages = verify_cache(arguments.file)
    if arguments.json:
        places = [vars(found) for found in damages]
        print_json({"file": str(arguments.file), "whole": not damages, "damages": places})
    elif not damages and not arguments.file.exists():
        parts = printable(arguments.file.with_suffix(".parts"))
        print(f"{parts} is whole, but no file was published from it yet: run extract again")
    elif not damages:
        print(f"{printable(arguments.file)} is whole: every byte is as it was written")
    else:
        for found in damages:
            print(f"damaged: {printable(found.what)}")
    if damages:
        raise BadDataError(
            f"{printable(arguments.file)} is damaged in {counted(len(damages), 'place')}: "
            f"python -m pipeline.cache repair {printable(arguments.file)}"
        )


def _repair(arguments: argparse.Namespace) -> None:
    from pipeline.api import repair_cache

    with ProgressBar("repairing", unit="image") as bar:
        done = repair_cache(
            arguments.file,
            weights=arguments.weights,
            cache_dir=arguments.cache_dir,
            wait=arguments.wait,
            progress=bar,
        )
    if arguments.json:
        print_json({"damages": [found.what for found in done.damages], "computed": done.computed})
        return
    for found in done.damages:
        print(f"mended: {printable(found.what)}")
    if done.damages:
        print(f"{counted(done.computed, 'image')} computed again")
    else:
        print(f"{printable(arguments.file)} is whole: nothing to repair")


def _prune(arguments: argparse.Namespace) -> None:
    from pipeline.cache.maintenance import find_prunable, prune

    found = find_prunable(arguments.cache_dir)
    if arguments.json and not arguments.yes:
        raise UsageError("prune asks before it deletes; with --json give --yes, too")
    if not arguments.json:
        for item in found:
            print(f"{printable(item.path)}  {file_size(item.size)}  {item.reason}")
        if not found:
            print("nothing to prune")
            return
    if not arguments.yes:
        what = "this" if len(found) == 1 else f"these {len(found)}"
        print(f"delete {what}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):  # no answer is no
            print("nothing was deleted")
            return
    for item in found:
        prune(item)
    freed = sum(item.size for item in found)
    if arguments.json:
        pruned = [{"file": str(item.path), "reason": item.reason} for item in found]
        print_json({"pruned": pruned, "bytes": freed})
    else:
        print(f"freed {file_size(freed)}")


if __name__ == "__main__":
    run(main)
