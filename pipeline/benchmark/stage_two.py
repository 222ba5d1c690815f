"""Stage two measured: heads on cached features and reading them, ours beside the usual way."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.benchmark.drawn import draw_cache
from pipeline.benchmark.process import Worker
from pipeline.benchmark.rounds import Spread, alternate

EPOCHS = 3  # of a dense head in each round; the figures are of one

Progress = Callable[[int, int], None]


class Pair(NamedTuple):
    """The same work, done twice: what it is, who does it, and what the workers are called."""

    work: str
    usual: str
    usual_side: str
    our_side: str


PAIRS = (
    Pair("dense head, an epoch", "Keras fit", "book's dense", "dense"),
    Pair("logistic regression, 6 penalties", "scikit-learn", "scikit-learn", "logistic"),
    Pair("reading 131 MB of features", "h5py", "h5py", "reading"),
)


def measure_stage_two(
    *, rounds: int, scratch: Path, progress: Progress, divisor: int = 1
) -> dict[str, Any]:
    """Measure each pair in turn on a drawn cache of the size of the book's.

    Parameters
    ----------
    divisor : of the cache's 4,000 rows, for a quick look.
    """
    cache = draw_cache(scratch / "drawn.h5", divisor=divisor)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for pair in PAIRS:
            for side in (pair.usual_side, pair.our_side):
                details = {"epochs": EPOCHS} if "dense" in side else {}
                worker = Worker(side, cache=os.fspath(cache), **details)
                workers[side] = stack.enter_context(worker)
        sides = {side: worker.ask for side, worker in workers.items()}
        alternate(sides, rounds=1)  # the first compiles, and fills the disk's cache
        measured = alternate(sides, rounds=rounds, progress=progress)
    seconds = {side: [found["seconds"] for found in all_] for side, all_ in measured.items()}
    return {
        "rows": 4000 // divisor,
        "bytes": cache.stat().st_size,
        "pairs": [
            {
                "work": pair.work,
                "usual": pair.usual,
                "usual_seconds": Spread.of(seconds[pair.usual_side]).as_dict(),
                "our_seconds": Spread.of(seconds[pair.our_side]).as_dict(),
                "times_faster": Spread.of_ratio(
                    seconds[pair.usual_side], seconds[pair.our_side]
                ).as_dict(),
                "usual_peak_bytes": workers[pair.usual_side].peak,
                "our_peak_bytes": workers[pair.our_side].peak,
            }
            for pair in PAIRS
        ],
    }
