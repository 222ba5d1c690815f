"""Run one side in its own process: ``python -m benchmarks.worker <side> <settings>``.

Reads one JSON object per line from stdin, measures with it, and writes one line to stdout.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.memory import own_peak
from pipeline import errors
from pipeline.errors import PipelineError

# Each is called with the settings and returns a function, which is called with each line's object;
# the attribute ``about`` of that function, if any, has facts about the side.
SIDES = {
    "matrix product": "benchmarks.roofline:open_matrix_product",
    "book's loop": "benchmarks.book:Loop",
    "engine": "benchmarks.pipeline_sides:EngineAlone",
    "decoding": "benchmarks.pipeline_sides:open_decoding",
    "extract": "benchmarks.pipeline_sides:Extract",
    "Keras fit": "benchmarks.stage_two:open_keras",
    "dense head": "benchmarks.stage_two:open_ours",
}


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("wb") as devnull:
        os.dup2(devnull.fileno(), 1)  # hides Keras' output

    def answer(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    try:
        module, _, attribute = SIDES[sys.argv[1]].partition(":")
        side = getattr(importlib.import_module(module), attribute)(**json.loads(sys.argv[2]))
        answer({"about": getattr(side, "about", {})})
        for line in sys.stdin:
            answer({"measured": side(**json.loads(line)), "peak": own_peak()})
    except PipelineError as error:
        kind = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
        answer({"error": kind.__name__, "message": str(error)})


if __name__ == "__main__":
    _main()
