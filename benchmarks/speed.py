"""``python -m benchmarks.speed``: measure the pipeline and the book's code on this machine."""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bases.config import AUTO, ENGINES, BaseConfig
from pipeline.cli import ProgressBar, add_options, config_from, parser, print_json, run
from pipeline.text import printable

if TYPE_CHECKING:
    from benchmarks.stage_one import Settings

log = logging.getLogger("pipeline")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print the tables."""
    arguments = _parser().parse_args(argv)
    settings = _settings(arguments)
    out = arguments.out or Path("results", f"{datetime.now():%Y-%m-%d_%H%M%S}-bench")
    from pipeline.durable import make_folder

    make_folder(out)
    document = _measure(arguments, settings)
    _write(document, out)
    if arguments.json:
        print_json(document)
    else:
        from benchmarks.table import table_lines

        print("\n".join(table_lines(document)))
    log.info("bench.json and bench.png are in %s", printable(out))


def _parser() -> argparse.ArgumentParser:
    options = parser(
        command="speed",
        package="benchmarks",
        summary="Measure images/s, seconds and memory of the pipeline and of the book's code.",
        example="python -m benchmarks.speed data/pets --base mobilenet_v2 --pooling avg",
    )
    options.add_argument("data", nargs="?", type=Path, help="default: synthetic images")
    used = ("base", "image_size", "weights", "cache_dir")
    unused = [field.name for field in fields(BaseConfig) if field.name not in used]
    add_options(options, BaseConfig, exclude=unused)
    options.add_argument("--layer", metavar="NAME", help="layer to measure (default: the last)")
    options.add_argument(
        "--pooling", default="none", choices=("none", "avg", "max"), help="pooling of feature maps"
    )
    options.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME",
        help="engine to measure besides TensorFlow, repeatable; extract uses the first (default: "
        "all installed ones, extract selects)",
    )
    options.add_argument(
        "--images", type=int, metavar="N", help="number of images (default: 128 to 512)"
    )
    options.add_argument("--rounds", type=int, default=7, metavar="N", help="number of rounds")
    options.add_argument(
        "--stage", default="all", choices=("one", "two", "all"), help="stage to measure"
    )
    options.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="output folder (default: results/<date and time>-bench)",
    )
    options.add_argument("--json", action="store_true", help="print one JSON document")
    return options


def _settings(arguments: argparse.Namespace) -> "Settings":
    """Return the settings of stage one; raise a PipelineError for invalid options."""
    from benchmarks.images import MIN_IMAGES
    from benchmarks.stage_one import Settings
    from pipeline.bases.registry import PIXELS
    from pipeline.errors import UsageError
    from pipeline.images.scan import scan_folder
    from pipeline.spec import layer_key

    config = config_from(arguments, BaseConfig, engine=AUTO)
    base = config.network
    if base.name == PIXELS:
        raise UsageError("--base pixels has no network to measure; choose another base")
    if arguments.rounds < 1:
        raise UsageError(f"--rounds needs at least 1; received {arguments.rounds}")
    if arguments.images is not None and arguments.images < MIN_IMAGES:
        raise UsageError(f"--images needs at least {MIN_IMAGES}; received {arguments.images}")
    if arguments.layer and ":" in arguments.layer:
        raise UsageError(
            f"--layer {arguments.layer}: pass the layer without its pooling; use --pooling"
        )
    for name in arguments.engine:
        if name not in ENGINES:
            raise UsageError(f"--engine is one of {', '.join(ENGINES)}; received {name!r}")
    if arguments.data is not None:
        scan_folder(arguments.data)
    return Settings(
        data=arguments.data,
        base=base,
        image_size=config.size,
        layer=layer_key(arguments.layer or base.last_layer, arguments.pooling),
        weights=config.weights,
        cache_dir=config.cache_dir.resolve(),
        engines=tuple(arguments.engine),
        images=arguments.images,
        rounds=arguments.rounds,
    )


def _measure(arguments: argparse.Namespace, settings: "Settings") -> dict[str, Any]:
    import platform

    from pipeline import __version__
    from pipeline.cores import usable_cores

    document: dict[str, Any] = {
        "run": {
            "version": __version__,
            "started": f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
            "system": platform.platform(),
            "cores": usable_cores(),
            "rounds": settings.rounds,
        }
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        if arguments.stage != "two":
            from benchmarks.stage_one import measure_stage_one

            with ProgressBar("stage one", unit="measurement") as bar:
                document["stage_one"] = measure_stage_one(settings, scratch, bar)
        if arguments.stage != "one":
            from benchmarks.stage_two import measure_stage_two

            with ProgressBar("stage two", unit="measurement") as bar:
                document["stage_two"] = measure_stage_two(rounds=settings.rounds, progress=bar)
    return document


def _write(document: dict[str, Any], out: Path) -> None:
    import json

    from benchmarks.plot import draw_benchmark
    from pipeline.durable import write_durably

    text = json.dumps(document, indent=2, ensure_ascii=False)
    write_durably(out / "bench.json", lambda file: file.write(text.encode()))
    draw_benchmark(document, out / "bench.png")


if __name__ == "__main__":
    run(main)
