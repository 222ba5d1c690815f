"""``python -m benchmarks.bases DATA``: accuracy and speed of bases on one set of photographs.

Each base's average-pooled features train scikit-learn's logistic regression, C chosen on
validation. Engines run in turn, so that other programs disturb all of them alike.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.config import ExtractConfig
from pipeline.cli import ProgressBar, parser, print_json, run
from pipeline.errors import UsageError

BASES = "vgg16,efficientnet_lite0,efficientnet_lite1,efficientnet_lite2"
RUNTIMES = ("onnx", "ncnn")  # the fastest is reported
SAMPLE = 24  # images a round


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print the table; speeds are relative to the first base."""
    options = parser(
        command="bases",
        package="benchmarks",
        summary="Measure accuracy and speed of bases on one set of photographs.",
        example="python -m benchmarks.bases data/pets --bases vgg16,efficientnet_lite0",
    )
    options.add_argument("data", type=Path)
    options.add_argument("--bases", default=BASES, metavar="A,B", help=f"default: {BASES}")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--cache-dir", type=Path, default=Path("cache"))
    options.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = options.parse_args(argv)
    if arguments.rounds < 1:
        raise UsageError(f"--rounds needs at least 1; received {arguments.rounds}")
    names = arguments.bases.split(",")
    configs = [
        ExtractConfig(base=name, pooling="avg", cache_dir=arguments.cache_dir) for name in names
    ]
    rows = [_accuracy(arguments.data, config) for config in configs]
    speeds = _speeds(arguments.data, configs, arguments.rounds)
    rows = [{**row, **speed} for row, speed in zip(rows, speeds, strict=True)]
    if arguments.json:
        print_json(rows)
        return
    print(f"{'base':20} {'size':>4} {'test %':>7} {'images/s':>9} {'× first':>8}  range")
    for row in rows:
        low, high = row["range"]
        print(
            f"{row['base']:20} {row['image_size']:4} {100 * row['test_accuracy']:7.1f} "
            f"{row['images_per_second']:9.1f} {row['speed']:8.1f}  {low:.1f}–{high:.1f}, "
            f"{row['engine']}"
        )


def _accuracy(data: Path, config: ExtractConfig) -> dict[str, Any]:
    from pipeline import compare_heads, extract_features

    with ProgressBar(f"extracting with {config.base}", unit="image") as bar:
        table = extract_features(data, config, progress=bar).table
    result = compare_heads(table.path, heads="logistic", audit=False).results[0]
    accuracy = result.test_accuracy
    return {"base": config.base, "image_size": config.size, "test_accuracy": accuracy}


def _speeds(data: Path, configs: Sequence[ExtractConfig], rounds: int) -> list[dict[str, Any]]:
    """Return images/s of each config's fastest engine, and its ratio to the first in each round."""
    from dataclasses import replace

    from pipeline.engines import is_installed, open_engine
    from pipeline.images.decode import decode
    from pipeline.images.scan import scan_folder

    folder = scan_folder(data)
    paths = folder.paths[:: max(1, len(folder.paths) // SAMPLE)][:SAMPLE]
    contents = [folder.source.read(path) for path in paths]
    sides = []
    for number, config in enumerate(configs):
        images = np.stack([decode(each, image_size=config.size) for each in contents])
        for name in filter(is_installed, RUNTIMES):
            engine = open_engine(replace(config, engine=name), config.layer_keys, images=images)
            engine(images)
            sides.append((number, name, engine, images))
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for (_, _, engine, images), column in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            engine(images)
            column.append(time.perf_counter() - started)
    fastest = [
        min(
            (statistics.median(column), name, column)
            for (side, name, _, _), column in zip(sides, seconds, strict=True)
            if side == number
        )
        for number in range(len(configs))
    ]
    first = fastest[0][2]
    results = []
    for middle, name, column in fastest:
        ratios = [a / b for a, b in zip(first, column, strict=True)]
        speed, limits = statistics.median(ratios), [min(ratios), max(ratios)]
        rate = len(contents) / middle
        results.append({"images_per_second": rate, "speed": speed, "range": limits, "engine": name})
    return results


if __name__ == "__main__":
    run(main, when_interrupted="interrupted; committed rows are kept")
