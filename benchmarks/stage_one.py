"""Stage one measured: images through a base, side by side."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.images import LEAST, gather_images
from benchmarks.process import Finished, Worker, run_command
from benchmarks.rounds import Spread, alternate
from pipeline.bases.config import AUTO, ENGINES, TENSORFLOW
from pipeline.bases.registry import Base
from pipeline.engines import relative_errors
from pipeline.errors import PipelineError
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import Skipped, scan_folder
from pipeline.spec import split_layer_key
from pipeline.text import counted, duration, printable

BOOK, WHOLE, DECODING, EXTRACT = (
    "book's loop",
    "Keras, one predict for all",
    "decoding alone",
    "extract",
)
PRODUCT, START = "matrix product", "start-up of extract"
OPERATIONS = 1.5e12  # of a pass over all images: VGG16 takes 10 to 20 s for it on two cores
FEWEST, MOST = 128, 512  # images, unless the user says how many

log = logging.getLogger("pipeline")

Progress = Callable[[int, int], None]
Measured = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageOne:
    """What to measure.

    Attributes
    ----------
    data : the user's image folder; None draws images.
    layer : layer key, see `pipeline.spec.layer_key`.
    weights : ``imagenet``, ``random`` or a file.
    engines : those to measure beside TensorFlow, the first of which extract is told to take; none
        for all that are installed, and extract chooses.
    images : how many; None for a number that suits the base.
    """

    data: Path | None
    base: Base
    image_size: int
    layer: str
    weights: str
    cache_dir: Path
    engines: Sequence[str]
    images: int | None
    rounds: int

    @property
    def engine_of_extract(self) -> str:
        return self.engines[0] if self.engines else AUTO

    @property
    def of_base(self) -> dict[str, Any]:
        """What workers are told of the base."""
        return {
            "base": self.base.name,
            "image_size": self.image_size,
            "weights": self.weights,
            "cache_dir": os.fspath(self.cache_dir),
        }


def measure_stage_one(asked: StageOne, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Open every side, measure all in turn, and put together what came of it.

    Parameters
    ----------
    scratch : an empty folder for images, pixels and caches.
    """
    with ExitStack() as stack:
        book = stack.enter_context(_open_book(asked, whole=False))
        operations = int(book.about["operations_per_image"])
        folder = scratch / "images"
        images = gather_images(asked.data, folder, asked.images or _suitable_count(operations))
        stack.callback(_forget, images, asked.cache_dir / "hashes")
        log.info(
            "%s, %.2f GFLOP each; the first pass warms everything up and tells how long the "
            "others take",
            counted(len(images), "image" if asked.data else "drawn image"), operations / 1e9,
        )  # fmt: skip
        pixels = scratch / "pixels.npy"
        engine_images = _write_pixels(folder, pixels, len(images) // 2, asked.image_size)
        command = _Command(asked, folder, scratch / "command.h5")
        first = command()  # converts the base and tries engines, where that was not done before
        engines, left_out = _open_engines(asked, pixels, stack)
        workers = {
            BOOK: book,
            WHOLE: stack.enter_context(_open_book(asked, whole=True)),
            **engines,
            **_open_others(asked, folder, scratch, stack),
        }
        sides: dict[str, Callable[[], Measured]] = {
            name: worker.ask for name, worker in workers.items()
        }
        for name in (BOOK, WHOLE):
            sides[name] = partial(workers[name].ask, folder=os.fspath(folder))
        sides[START] = lambda: {"seconds": command("--limit-per-class", "1").seconds}
        started = time.monotonic()
        alternate(sides, rounds=1)
        seconds = asked.rounds * (time.monotonic() - started)
        log.info("%s will take about %s", counted(asked.rounds, "round"), duration(seconds))
        measured = alternate(sides, rounds=asked.rounds, progress=progress)
        errors = _largest_errors(engines, scratch)
        passes = {name: engine_images if name in engines else len(images) for name in workers}
        document = _document(asked, measured, workers, errors, passes, operations)
        last = command()
    document["left_out"] = left_out
    document["command"] = {
        "first": {"seconds": first.seconds, "peak_bytes": first.peak},
        "again": {"seconds": last.seconds, "peak_bytes": last.peak},
    }
    return document


def _open_book(asked: StageOne, *, whole: bool) -> Worker:
    return Worker("book's loop", layer=asked.layer, whole=whole, **asked.of_base)


def _open_others(
    asked: StageOne, folder: Path, scratch: Path, stack: ExitStack
) -> dict[str, Worker]:
    """Workers for decoding, matrix products, and extract as a whole."""
    layer, pooling = split_layer_key(asked.layer)
    images = os.fspath(folder)
    enter = stack.enter_context
    return {
        DECODING: enter(Worker("decoding", folder=images, image_size=asked.image_size)),
        PRODUCT: enter(Worker(PRODUCT)),
        EXTRACT: enter(
            Worker(
                EXTRACT, folder=images, out=os.fspath(scratch / "features.h5"),
                layers=[layer], pooling=pooling, engine=asked.engine_of_extract, **asked.of_base,
            )
        ),
    }  # fmt: skip


def _suitable_count(operations: int) -> int:
    count = int(np.clip(OPERATIONS / operations, FEWEST, MOST))
    return count // LEAST * LEAST


def _write_pixels(folder: Path, target: Path, count: int, image_size: int) -> int:
    """Decode the first images into a file of (n, S, S, 3) uint8 RGB, as extract would."""
    found = scan_folder(folder)
    digests, _ = hash_files(found.root, found.paths[:count])
    with closing(read_images(found.root, digests, image_size=image_size, resize="squash")) as read:
        decoded = [pixels for _, pixels in read if not isinstance(pixels, Skipped)]
    np.save(target, np.stack(decoded))
    return len(decoded)


def _open_engines(
    asked: StageOne, pixels: Path, stack: ExitStack
) -> tuple[dict[str, Worker], dict[str, str]]:
    """A worker for each engine, and why there is none for others. TensorFlow is the reference."""
    opened: dict[str, Worker] = {}
    left_out: dict[str, str] = {}
    for name in ENGINES:
        if asked.engines and name not in (TENSORFLOW, *asked.engines):
            continue
        try:
            opened[name] = stack.enter_context(
                Worker("engine", engine=name, layer=asked.layer, pixels=os.fspath(pixels),
                       **asked.of_base)
            )  # fmt: skip
        except PipelineError as error:
            if name in asked.engines or name == TENSORFLOW:
                raise
            left_out[name] = str(error)
            log.warning("engine %s is left out: %s", name, printable(str(error)))
    return opened, left_out


class _Command:
    """Extract as a user runs it, each time into a new file: for its start-up and its memory."""

    def __init__(self, asked: StageOne, folder: Path, out: Path) -> None:
        layer, pooling = split_layer_key(asked.layer)
        self._out = out
        self._command = [
            "extract", os.fspath(folder), "--base", asked.base.name,
            "--image-size", str(asked.image_size), "--layer", layer, "--pooling", pooling,
            "--weights", asked.weights, "--engine", asked.engine_of_extract,
            "--cache-dir", os.fspath(asked.cache_dir), "--out", os.fspath(out), "--json",
        ]  # fmt: skip

    def __call__(self, *options: str) -> Finished:
        done = run_command([*self._command, *options])
        self._out.unlink()
        return done


def _forget(images: Sequence[Path], hashes: Path) -> None:
    """Take the images' digests out of the cache folder: they are gone in a moment."""
    names = {f"{path.parent.name}/{path.name}" for path in images}
    for index in hashes.glob("*.json"):
        with suppress(OSError, ValueError):
            if json.loads(index.read_text()).keys() <= names:
                index.unlink()


def _largest_errors(engines: Mapping[str, Worker], scratch: Path) -> dict[str, float]:
    """Engine -> the largest relative error of a row against TensorFlow, on the same pixels."""
    features = {}
    for name, worker in engines.items():
        path = scratch / f"{name}.npy"
        worker.ask(features=os.fspath(path))
        features[name] = np.load(path)
    expected = features.pop(TENSORFLOW)
    return {name: float(relative_errors(expected, found).max()) for name, found in features.items()}


def _document(
    asked: StageOne,
    measured: Mapping[str, Sequence[Measured]],
    workers: Mapping[str, Worker],
    errors: Mapping[str, float],
    passes: Mapping[str, int],
    operations: int,
) -> dict[str, Any]:
    """What was measured in turn, for JSON; rates in images/s, one a round, and their spread."""
    gflops = [found["gflops"] for found in measured[PRODUCT]]
    rates = {
        name: [found.get("images", passes[name]) / found["seconds"] for found in measured[name]]
        for name in workers
        if name != PRODUCT
    }
    engine = measured[EXTRACT][-1]["engine"]
    ceiling = [
        1 / (1 / alone + 1 / decoding)
        for alone, decoding in zip(rates[engine], rates[DECODING], strict=True)
    ]
    start = Spread.of([found["seconds"] for found in measured[START]]).median

    def side(name: str) -> dict[str, Any]:
        done = [operations * rate / 1e9 for rate in rates[name]]  # GFLOP/s
        return {
            "side": name,
            "images_per_second": Spread.of(rates[name]).as_dict(),
            "against_book": Spread.of_ratio(rates[name], rates[BOOK]).as_dict(),
            "share_of_matrix_product": (
                None if name == DECODING else Spread.of_ratio(done, gflops).as_dict()
            ),
            "relative_error": errors.get(name),
            "start_seconds": start if name == EXTRACT else workers[name].start_seconds,
            "peak_bytes": workers[name].peak,
            "rounds": rates[name],
        }

    return {
        "base": asked.base.name,
        "image_size": asked.image_size,
        "layer": asked.layer,
        "images": passes[BOOK],
        "drawn": asked.data is None,
        "operations_per_image": operations,
        "gpus": workers[BOOK].about["gpus"],
        "matrix_product_gflops": Spread.of(gflops).as_dict(),
        "sides": [side(name) for name in rates],
        "ceiling": {
            "engine": engine,
            "images_per_second": Spread.of(ceiling).as_dict(),
            "reached": Spread.of_ratio(rates[EXTRACT], ceiling).as_dict(),
        },
    }
