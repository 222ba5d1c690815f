"""Measure stage one: images per second of each side."""

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

from benchmarks.images import MIN_IMAGES, gather_images
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
OPERATIONS = 1.5e12  # of a pass over all images: 10 to 20 s with VGG16 on two cores
FEWEST, MOST = 128, 512  # default numbers of images

log = logging.getLogger("pipeline")

Progress = Callable[[int, int], None]
Measured = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes
    ----------
    data : image folder; None for synthetic images.
    layer : layer key, see `pipeline.spec.layer_key`.
    weights : ``imagenet``, ``random`` or a file.
    engines : engines to measure besides TensorFlow; extract uses the first. Empty for all installed
        ones; extract then selects one.
    images : number of images; None for a default that depends on the base.
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
    def base_options(self) -> dict[str, Any]:
        """Return the settings of the base, for workers."""
        return {
            "base": self.base.name,
            "image_size": self.image_size,
            "weights": self.weights,
            "cache_dir": os.fspath(self.cache_dir),
        }


def measure_stage_one(settings: Settings, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Measure all sides alternately and return the results for bench.json.

    ``scratch`` is an empty folder for images, pixels and caches.
    """
    with ExitStack() as stack:
        book = stack.enter_context(_open_book(settings, whole=False))
        operations = int(book.about["operations_per_image"])
        folder = scratch / "images"
        images = gather_images(
            settings.data, folder, settings.images or _suitable_count(operations)
        )
        stack.callback(_delete_hashes, images, settings.cache_dir / "hashes")
        log.info(
            "%s, %.2f GFLOP each; the first pass warms up and gives an estimate of the time",
            counted(len(images), "image" if settings.data else "synthetic image"), operations / 1e9,
        )  # fmt: skip
        pixels = scratch / "pixels.npy"
        engine_images = _write_pixels(folder, pixels, len(images) // 2, settings.image_size)
        command = _Command(settings, folder, scratch / "command.h5")
        first = command()  # converts the base and tries engines, if not done before
        engines, left_out = _open_engines(settings, pixels, stack)
        workers = {
            BOOK: book,
            WHOLE: stack.enter_context(_open_book(settings, whole=True)),
            **engines,
            **_open_others(settings, folder, scratch, stack),
        }
        sides: dict[str, Callable[[], Measured]] = {
            name: worker.ask for name, worker in workers.items()
        }
        for name in (BOOK, WHOLE):
            sides[name] = partial(workers[name].ask, folder=os.fspath(folder))
        sides[START] = lambda: {"seconds": command("--limit-per-class", "1").seconds}
        started = time.monotonic()
        alternate(sides, rounds=1)
        seconds = settings.rounds * (time.monotonic() - started)
        log.info("%s will take about %s", counted(settings.rounds, "round"), duration(seconds))
        measured = alternate(sides, rounds=settings.rounds, progress=progress)
        errors = _largest_errors(engines, scratch)
        counts = {name: engine_images if name in engines else len(images) for name in workers}
        document = _document(settings, measured, workers, errors, counts, operations)
        last = command()
    document["left_out"] = left_out
    document["command"] = {
        "first": {"seconds": first.seconds, "peak_bytes": first.peak},
        "again": {"seconds": last.seconds, "peak_bytes": last.peak},
    }
    return document


def _open_book(settings: Settings, *, whole: bool) -> Worker:
    return Worker(BOOK, layer=settings.layer, whole=whole, **settings.base_options)


def _open_others(
    settings: Settings, folder: Path, scratch: Path, stack: ExitStack
) -> dict[str, Worker]:
    """Return workers for decoding, matrix products and all of extract."""
    layer, pooling = split_layer_key(settings.layer)
    images = os.fspath(folder)
    enter = stack.enter_context
    return {
        DECODING: enter(Worker("decoding", folder=images, image_size=settings.image_size)),
        PRODUCT: enter(Worker(PRODUCT)),
        EXTRACT: enter(
            Worker(
                EXTRACT, folder=images, out=os.fspath(scratch / "features.h5"),
                layers=[layer], pooling=pooling, engine=settings.engine_of_extract,
                **settings.base_options,
            )
        ),
    }  # fmt: skip


def _suitable_count(operations: int) -> int:
    """Return the default number of images for a base: full batches, about 10 to 20 s per pass."""
    count = int(np.clip(OPERATIONS / operations, FEWEST, MOST))
    return count // MIN_IMAGES * MIN_IMAGES


def _write_pixels(folder: Path, target: Path, count: int, image_size: int) -> int:
    """Decode the first images into a file of (n, S, S, 3) uint8 RGB, as extract does."""
    files = scan_folder(folder)
    digests, _ = hash_files(files.source, files.paths[:count])
    images = read_images(files.source, digests, image_size=image_size, resize="squash")
    with closing(images):
        decoded = [pixels for _, pixels in images if not isinstance(pixels, Skipped)]
    np.save(target, np.stack(decoded))
    return len(decoded)


def _open_engines(
    settings: Settings, pixels: Path, stack: ExitStack
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Return a worker per engine, and the reason for each missing engine."""
    opened: dict[str, Worker] = {}
    left_out: dict[str, str] = {}
    for name in ENGINES:
        if settings.engines and name not in (TENSORFLOW, *settings.engines):
            continue
        try:
            opened[name] = stack.enter_context(
                Worker("engine", engine=name, layer=settings.layer, pixels=os.fspath(pixels),
                       **settings.base_options)
            )  # fmt: skip
        except PipelineError as error:
            if name in settings.engines or name == TENSORFLOW:
                raise
            left_out[name] = str(error)
            log.warning("engine %s is not measured: %s", name, printable(str(error)))
    return opened, left_out


class _Command:
    """Runs the command extract into a new file, to measure its start-up time and memory."""

    def __init__(self, settings: Settings, folder: Path, out: Path) -> None:
        layer, pooling = split_layer_key(settings.layer)
        self._out = out
        self._command = [
            "extract", os.fspath(folder), "--base", settings.base.name,
            "--image-size", str(settings.image_size), "--layer", layer, "--pooling", pooling,
            "--weights", settings.weights, "--engine", settings.engine_of_extract,
            "--cache-dir", os.fspath(settings.cache_dir), "--out", os.fspath(out), "--json",
        ]  # fmt: skip

    def __call__(self, *options: str) -> Finished:
        done = run_command([*self._command, *options])
        self._out.unlink()
        return done


def _delete_hashes(images: Sequence[Path], hashes: Path) -> None:
    """Delete the digests of these temporary images from the cache folder."""
    names = {f"{path.parent.name}/{path.name}" for path in images}
    for index in hashes.glob("*.json"):
        with suppress(OSError, ValueError):
            if json.loads(index.read_text()).keys() <= names:
                index.unlink()


def _largest_errors(engines: Mapping[str, Worker], scratch: Path) -> dict[str, float]:
    """Return engine -> largest relative error of a row, compared with TensorFlow."""
    features = {}
    for name, worker in engines.items():
        path = scratch / f"{name}.npy"
        worker.ask(features=os.fspath(path))
        features[name] = np.load(path)
    expected = features.pop(TENSORFLOW)
    return {name: float(relative_errors(expected, f).max()) for name, f in features.items()}


def _document(
    settings: Settings,
    measured: Mapping[str, Sequence[Measured]],
    workers: Mapping[str, Worker],
    errors: Mapping[str, float],
    image_counts: Mapping[str, int],
    operations: int,
) -> dict[str, Any]:
    """Return the measurements for JSON: rates in images/s per round, and their spread."""
    gflops = [each["gflops"] for each in measured[PRODUCT]]
    rates = {
        name: [each.get("images", image_counts[name]) / each["seconds"] for each in measured[name]]
        for name in workers
        if name != PRODUCT
    }
    engine = measured[EXTRACT][-1]["engine"]
    ceiling = [
        1 / (1 / alone + 1 / decoding)
        for alone, decoding in zip(rates[engine], rates[DECODING], strict=True)
    ]
    start = Spread.of([each["seconds"] for each in measured[START]]).median

    def side(name: str) -> dict[str, Any]:
        side_gflops = [operations * rate / 1e9 for rate in rates[name]]
        return {
            "side": name,
            "images_per_second": Spread.of(rates[name]).as_dict(),
            "against_book": Spread.of_ratio(rates[name], rates[BOOK]).as_dict(),
            "share_of_matrix_product": (
                None if name == DECODING else Spread.of_ratio(side_gflops, gflops).as_dict()
            ),
            "relative_error": errors.get(name),
            "start_seconds": start if name == EXTRACT else workers[name].start_seconds,
            "peak_bytes": workers[name].peak,
            "rounds": rates[name],
        }

    return {
        "base": settings.base.name,
        "image_size": settings.image_size,
        "layer": settings.layer,
        "images": image_counts[BOOK],
        "drawn": settings.data is None,
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
