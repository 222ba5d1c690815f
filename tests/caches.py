"""Make caches of random features or of pixels, for tests of the code that writes caches."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import feature_sets
import h5py
import numpy as np

from pipeline.cache.checksums import write_checksums
from pipeline.cache.config import ViewPlan
from pipeline.cache.file import Source, create_features, make_columns
from pipeline.cache.fill import FillResult, fill_cache
from pipeline.cache.publish import publish
from pipeline.images.hashes import hash_files
from pipeline.images.scan import scan_folder
from pipeline.spec import FeatureSpec

SIZE = 8  # pixels: height and width of the images for PixelEngine
PIXEL_SPEC = replace(feature_sets.SPEC, base="tiny", weights="none", image_size=SIZE)


def document(root: str = "/photos/pets") -> dict[str, Any]:
    spec = vars(feature_sets.SPEC).copy()
    return {"format": 1, "spec": spec, "set": "pets", "root": root, "engine": None}


def publish_random(
    path: Path, *, rows: int = 150, gone: int = 0, root: str = "/photos/pets"
) -> dict[str, np.ndarray]:
    """Write a cache of random maps and vectors, and return them.

    The images of the last ``gone`` rows are marked as deleted.
    """
    rng = np.random.default_rng(rows)
    arrays = {
        "maps": rng.normal(size=(rows, 2, 2, 3)).astype("f4"),
        "maps:avg": rng.normal(size=(rows, 3)).astype("f4"),
    }
    shard = path.with_name("source.h5")
    with h5py.File(shard, "w") as file:
        for layer, values in arrays.items():
            create_features(file, layer, values.shape[1:], rows, "float32")[...] = values
    with shard.open("r+b") as stream:
        write_checksums(stream)
    labels = rng.integers(0, 2, rows)
    labels[rows - gone :] = -1
    publish(
        path,
        document=document(root),
        classes=["고양이", "dog"],
        columns=make_columns(
            labels=labels.tolist(),
            splits=[0] * rows,
            paths=[b"a/%d-\xff.jpg" % row for row in range(rows)],
            digests=[bytes(31) + bytes([row % 256]) for row in range(rows)],
            views=[0] * rows,
        ),
        layers={
            layer: (values.shape[1:], [Source(shard, row) for row in range(rows)])
            for layer, values in arrays.items()
        },
    )
    return arrays


class PixelEngine:
    """An engine whose feature maps are the pixels; it records what it computes.

    It raises KeyboardInterrupt before the batch that would exceed ``die_after`` images.
    """

    version, weights = "1", "none"
    calls_at_once = 1

    def __init__(self, *, name: str = "pixels", die_after: int | None = None) -> None:
        self.name = name
        self.error: dict[str, float] = {}
        self.images_seen = 0
        self.computed: list[tuple[str, bytes]] = []  # layer key and pixels of each row
        self.opened: list[tuple[str, ...]] = []
        self.row_shapes: dict[str, tuple[int, ...]] = {}
        self._die_after = die_after

    def open(self, layers: Sequence[str], *_: Any) -> "PixelEngine":
        self.opened.append(tuple(layers))
        self.row_shapes = {key: (3,) if key.endswith(":avg") else (SIZE, SIZE, 3) for key in layers}
        return self

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if self._die_after is not None and self.images_seen + len(images) > self._die_after:
            raise KeyboardInterrupt
        self.images_seen += len(images)
        self.computed += [(key, pixels.tobytes()) for pixels in images for key in self.row_shapes]
        maps = images.astype(np.float32)
        return {key: maps.mean((1, 2)) if key.endswith(":avg") else maps for key in self.row_shapes}


def fill(
    root: Path,
    path: Path,
    engine: PixelEngine,
    *,
    layers: Sequence[str] = ("maps",),
    spec: FeatureSpec = PIXEL_SPEC,
    limit: int | None = None,
    batch_size: int = 8,
    **options: Any,
) -> FillResult:
    """Fill the cache file ``path`` with the images of a folder, as ``extract`` does."""
    images = scan_folder(root)
    if limit:
        images = images.limited(limit)
    digests, unreadable = hash_files(images.source, images.paths)
    return fill_cache(
        path,
        images=images,
        digests=digests,
        skipped=(*images.skipped, *unreadable),
        spec=spec,
        layers=layers,
        open_engine=engine.open,
        document={"format": 1, "spec": vars(spec), "set": root.name, "root": str(root)},
        batch_size=batch_size,
        **({"plan": ViewPlan()} | options),
    )


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Limit the files of this process to a number of bytes, as ``ulimit -f`` does."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def another_program(path: Path) -> Iterator[None]:
    """Keep a file open for writing in another process, which is killed at the end."""
    code = f"import h5py\nfile = h5py.File({str(path)!r}, 'a')\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()
