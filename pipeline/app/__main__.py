"""``python -m pipeline.app``: a page on this machine to try, look, mend and compare."""

import argparse
import importlib.util
import threading
import webbrowser
from collections.abc import Sequence

from pipeline import cli
from pipeline.config import path_argument
from pipeline.errors import UnreachableError, UsageError
from pipeline.text import printable


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, open the run, serve the page until Ctrl-C."""
    arguments = _parser().parse_args(argv)
    if not 0 <= arguments.port <= 65_535:
        raise UsageError(f"--port needs 0 to 65535; received {arguments.port}")
    if importlib.util.find_spec("nicegui") is None:
        raise UnreachableError("nicegui is missing: pip install -e '.[app]'")
    from pipeline.app.window import Window
    from pipeline.models.runs import newest_run
    from pipeline.review.workbench import open_workbench
    from pipeline.web.server import HOST, bind, serve

    with bind(arguments.port) as bound:
        places = {name: vars(arguments)[name] for name in ("labels", "cache_dir", "images")}
        bench = open_workbench(arguments.run or newest_run(), **places)
        threading.Thread(target=bench.warm_up, daemon=True).start()
        address = f"http://{HOST}:{bound.getsockname()[1]}"
        print(f"{address} shows {printable(bench.run)} on this machine; Ctrl-C ends it", flush=True)
        if arguments.browser:
            threading.Timer(1, webbrowser.open, [address]).start()
        serve(bound, lambda: Window(bench), bench.picture)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        command="app",
        summary="Open a page on this machine: try pictures, look at the features, mend labels, "
        "train again and compare.",
        example="python -m pipeline.app results/2026-11-28_101500-pets --port 8080",
    )
    add = parser.add_argument
    add("run", nargs="?", type=path_argument, metavar="RUN", help="default: newest in results/")
    add("--port", type=int, default=0, metavar="N", help="port of 127.0.0.1 (default: a free one)")
    add("--no-browser", dest="browser", action="store_false", help="only print the address")
    add("--labels", type=path_argument, metavar="FILE", help="edits (default: RUN/labels.csv)")
    add("--images", metavar="FOLDER", help="folder or archive with the images, if moved")
    add("--cache-dir", type=path_argument, default="cache", metavar="FOLDER", help="of caches")
    return parser


if __name__ == "__main__":
    cli.run(main, when_interrupted="stopped")
