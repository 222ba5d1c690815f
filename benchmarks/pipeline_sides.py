"""The pipeline's sides of stage one: an engine alone, decoding alone, and all of extract."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.api import Extraction, extract_features
from pipeline.bases.config import BATCH_SIZE, BaseConfig
from pipeline.engines import open_engine
from pipeline.engines.worker import run_all
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import scan_folder
from pipeline.prefetch import prefetch


class EngineAlone:
    """An open, warm engine: decoded pixels -> features, in the batches of extract."""

    def __init__(
        self,
        *,
        engine: str,
        base: str,
        image_size: int,
        weights: str,
        layer: str,
        cache_dir: Path,
        pixels: str,
    ) -> None:
        self._layer = layer
        self._images = np.load(pixels, mmap_mode="r")  # (N, S, S, 3) uint8
        first = np.array(self._images[:BATCH_SIZE])
        config = BaseConfig(
            base=base, image_size=image_size, weights=weights, engine=engine, cache_dir=cache_dir
        )
        self._engine = open_engine(config, (layer,), images=first)
        self._engine(first)
        self.about = {"version": self._engine.version}

    def __call__(self, *, features: str | None = None) -> dict[str, Any]:
        """Time all images; with ``features``, write those of the first batches to this file."""
        if features:
            computed = run_all(self._engine, self._images[: 4 * BATCH_SIZE], BATCH_SIZE)
            np.save(features, computed[self._layer])
            return {}
        started = time.perf_counter()
        batches = prefetch(
            lambda start: self._engine(np.array(self._images[start : start + BATCH_SIZE])),
            range(0, len(self._images), BATCH_SIZE),
            threads=self._engine.calls_at_once,
        )
        with closing(batches):
            for _ in batches:
                pass
        return {"seconds": time.perf_counter() - started}


def open_decoding(*, folder: str, image_size: int) -> Callable[[], dict[str, float]]:
    """Return a function that reads and decodes every image of a folder, as extract does."""
    files = scan_folder(Path(folder))
    digests, _ = hash_files(files.source, files.paths)

    def measure() -> dict[str, float]:
        started = time.perf_counter()
        images = read_images(files.source, digests, image_size=image_size, resize="squash")
        with closing(images):
            for _ in images:
                pass
        return {"seconds": time.perf_counter() - started}

    return measure


class Extract:
    """Time extract into a new cache file, minus its time for one image per class.

    Each run opens the engine, as a command does; the difference excludes that time.
    """

    def __init__(self, *, folder: str, out: str, **options: Any) -> None:
        self._folder = folder
        self._out = Path(out)
        self._options = options
        self._run(limit_per_class=1)

    def __call__(self) -> dict[str, Any]:
        first = self._run(limit_per_class=1)
        whole = self._run(limit_per_class=None)
        return {
            "seconds": whole.seconds - first.seconds,
            "images": whole.computed - first.computed,
            "engine": whole.table.document["engine"]["name"],
        }

    def _run(self, *, limit_per_class: int | None) -> Extraction:
        done = extract_features(
            self._folder,
            out=self._out,
            limit_per_class=limit_per_class,
            rehash=True,
            **self._options,
        )
        self._out.unlink()
        return done
