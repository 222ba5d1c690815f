"""``python -m pipeline.app``: a page on this machine to try, look, mend and compare."""

import argparse
import importlib.util
import logging
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.config import path_argument
from pipeline.errors import UnreachableError, UsageError
from pipeline.text import printable

log = logging.getLogger("pipeline")

LAST_PORT = 65_535


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, open the run, serve the page until Ctrl-C."""
    arguments = _parser().parse_args(argv)
    if not 0 <= arguments.port <= LAST_PORT:
        raise UsageError(f"--port needs 0 to {LAST_PORT}; received {arguments.port}")
    if importlib.util.find_spec("nicegui") is None:
        raise UnreachableError("nicegui is missing: pip install -e '.[app]'")
    from pipeline.models.runs import newest_run
    from pipeline.page.open_run import open_run
    from pipeline.page.server import HOST, bind, serve

    run = newest_run() if arguments.run is None else arguments.run
    with bind(arguments.port) as bound:
        opened = open_run(
            run, cache_dir=arguments.cache_dir, images=arguments.images, labels=arguments.labels
        )
        threading.Thread(target=opened.warm_up, daemon=True).start()
        address = f"http://{HOST}:{bound.getsockname()[1]}"
        print(f"{address} shows {printable(run)} on this machine only; Ctrl-C ends it", flush=True)
        if arguments.browser:
            threading.Timer(1, webbrowser.open, [address]).start()
        serve(bound, opened)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        command="app",
        summary="Open a page on this machine: try pictures, look at the features, mend labels, "
        "train again and compare.",
        example="python -m pipeline.app results/2026-11-28_101500-pets --port 8080",
    )
    parser.add_argument(
        "run",
        nargs="?",
        type=path_argument,
        metavar="RUN",
        help="folder of a run (default: the newest in results/)",
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="0 for a free one")
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=True, help="open a browser"
    )
    parser.add_argument(
        "--labels",
        type=path_argument,
        metavar="FILE",
        help="file of corrected labels (default: labels.csv in the run)",
    )
    parser.add_argument(
        "--images", type=path_argument, metavar="FOLDER", help="folder with the images, if moved"
    )
    parser.add_argument(
        "--cache-dir",
        type=path_argument,
        default=Path("cache"),
        metavar="FOLDER",
        help="folder of caches",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, when_interrupted="stopped")
