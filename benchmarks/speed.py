"""``python -m benchmarks.speed``: how fast the pipeline is here, beside the book's way."""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import ProgressBar, parser, print_json, run
from pipeline.text import printable

if TYPE_CHECKING:
    from benchmarks.stage_one import StageOne

log = logging.getLogger("pipeline")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, show."""
    arguments = _parser().parse_args(argv)
    asked = _stage_one(arguments)
    out = arguments.out or Path("results", f"{datetime.now():%Y-%m-%d_%H%M%S}-bench")
    from pipeline.durable import make_folder

    make_folder(out)
    document = _measure(arguments, asked)
    _write(document, out)
    if arguments.json:
        print_json(document)
    else:
        from benchmarks.table import table_lines

        print("\n".join(table_lines(document)))
    log.info("bench.json and bench.png are in %s", printable(out))


def _parser() -> argparse.ArgumentParser:
    made = parser(
        command="speed",
        package="benchmarks",
        summary="Measure images/s, seconds and memory of this pipeline beside the book's way.",
        example="python -m benchmarks.speed data/pets --base mobilenet_v2 --pooling avg",
    )
    made.add_argument("data", nargs="?", type=Path, help="an image folder (default: drawn images)")
    made.add_argument("--base", default="vgg16", help="a model of keras.applications")
    made.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="default: 150 for VGG16, else the base's"
    )
    made.add_argument("--layer", metavar="NAME", help="default: the last")
    made.add_argument("--pooling", default="none", choices=("none", "avg", "max"))
    made.add_argument(
        "--weights", default="imagenet", metavar="W", help="imagenet, random, or a Keras .h5 file"
    )
    made.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME",
        help="measure it beside TensorFlow, repeatable; extract takes the first "
        "(default: all that are installed, and extract chooses)",
    )
    made.add_argument(
        "--images", type=int, metavar="N", help="default: 128 to 512, the slower the base the fewer"
    )
    made.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    made.add_argument(
        "--stage", default="all", choices=("one", "two", "all"), help="default: %(default)s"
    )
    made.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="FOLDER")
    made.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: results/<date and time>-bench"
    )
    made.add_argument("--json", action="store_true", help="print one JSON document")
    return made


def _stage_one(arguments: argparse.Namespace) -> "StageOne":
    """What to measure of stage one; raises a PipelineError for what cannot be measured."""
    from benchmarks.images import LEAST
    from benchmarks.stage_one import StageOne
    from pipeline.bases.config import ENGINES, BaseConfig
    from pipeline.bases.registry import PIXELS
    from pipeline.errors import UsageError
    from pipeline.images.scan import scan_folder
    from pipeline.spec import layer_key

    config = BaseConfig(
        base=arguments.base, image_size=arguments.image_size, weights=arguments.weights
    )
    base = config.network
    if base.name == PIXELS:
        raise UsageError("--base pixels has no network to measure; name another base")
    if arguments.rounds < 1:
        raise UsageError(f"--rounds needs at least 1; received {arguments.rounds}")
    if arguments.images is not None and arguments.images < LEAST:
        raise UsageError(f"--images needs at least {LEAST}; received {arguments.images}")
    if arguments.layer and ":" in arguments.layer:
        raise UsageError(
            f"--layer {arguments.layer}: name the layer alone, and its pooling by --pooling"
        )
    for name in arguments.engine:
        if name not in ENGINES:
            raise UsageError(f"--engine is one of {', '.join(ENGINES)}; received {name!r}")
    if arguments.data is not None:
        scan_folder(arguments.data)
    return StageOne(
        data=arguments.data,
        base=base,
        image_size=config.size,
        layer=layer_key(arguments.layer or base.last_layer, arguments.pooling),
        weights=arguments.weights,
        cache_dir=arguments.cache_dir.resolve(),
        engines=tuple(arguments.engine),
        images=arguments.images,
        rounds=arguments.rounds,
    )


def _measure(arguments: argparse.Namespace, asked: "StageOne") -> dict[str, Any]:
    import platform

    from pipeline import __version__
    from pipeline.cores import usable_cores

    document: dict[str, Any] = {
        "run": {
            "version": __version__,
            "started": f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
            "system": platform.platform(),
            "cores": usable_cores(),
            "rounds": asked.rounds,
        }
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        if arguments.stage != "two":
            from benchmarks.stage_one import measure_stage_one

            with ProgressBar("stage one", unit="measurement") as bar:
                document["stage_one"] = measure_stage_one(asked, scratch, bar)
        if arguments.stage != "one":
            from benchmarks.stage_two import measure_stage_two

            with ProgressBar("stage two", unit="measurement") as bar:
                document["stage_two"] = measure_stage_two(rounds=asked.rounds, progress=bar)
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
